"""The state of an unfinished fine-tuning in one file, from which it resumes bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop.files import read_metadata, read_tensors, write_tensors

_KEY = "uvit_jax.tuning"


@dataclasses.dataclass(frozen=True)
class TuningCheckpoint:
    """Where and how often the state is saved.

    Attributes:
      path: ends in .safetensors. every: interval in steps.
      identity: plain JSON of all that the result depends on; a state of another one is refused.
    """

    path: Path
    every: int
    identity: Any

    def restore(self, like: Any) -> tuple[int, Any, list[Any]] | None:
        """The stored (step, state, losses of each step), or None if there is no file.

        Args:
          like: a state of the same structure and shapes.

        Raises:
          UvitError: if the file is damaged or of another fine-tuning.
        """
        if not self.path.exists():
            return None
        stored = json.loads(read_metadata(self.path).get(_KEY, "{}"))
        if stored.get("identity") != json.loads(json.dumps(self.identity)):
            raise UvitError(
                f"{self.path} is the unfinished state of other flags or images; delete it to start "
                "anew, or give the same ones to resume"
            )
        tensors = read_tensors(self.path, raw=True)
        leaves, structure = jax.tree.flatten(like)
        values = [tensors[f"state/{i}"] for i in range(len(leaves))]
        own = list(tensors["losses"])
        prior = list(tensors["prior_losses"]) if "prior_losses" in tensors else [None] * len(own)
        state = jax.tree.map(jax.numpy.asarray, jax.tree.unflatten(structure, values))
        return stored["step"], state, list(zip(own, prior, strict=True))

    def save(self, step: int, state: Any, losses: list[Any]) -> None:
        """Writes the state after a step, atomically."""
        own, prior = zip(*jax.device_get(losses), strict=True)
        tensors = {f"state/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        tensors["losses"] = np.stack(own)
        if prior[0] is not None:
            tensors["prior_losses"] = np.stack(prior)
        metadata = {_KEY: json.dumps({"step": step, "identity": self.identity})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path, tensors, metadata)

    def remove(self) -> None:
        """Removes the file, after the result has been saved."""
        self.path.unlink(missing_ok=True)
