"""Logs metrics and samples to Weights & Biases, if `config.train.wandb` names a project."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.io import write_text


class WandbWriter:
    """A run of a project. A resumed run continues the same one: its id is in `folder/wandb_id.txt`.

    Args:
      project: its name. folder: the workdir. config: shown with the run.

    Raises:
      UvitError: if the package is not installed, or the run cannot be started.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UvitError(
                "config.train.wandb needs the package wandb: pip install 'uvit-jax[wandb]', or set "
                "config.train.wandb=''"
            ) from None
        file = folder / "wandb_id.txt"
        if not file.exists():
            write_text(file, secrets.token_hex(4))
        self._image = wandb.Image
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                dir=str(folder),
                id=file.read_text().strip(),
                resume="allow",
                config=dict(config),
            )
        except wandb.Error as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise UvitError(
                f"config.train.wandb={project!r}: {reason}; run `wandb login`, set "
                "WANDB_MODE=offline, or set config.train.wandb=''"
            ) from None
        # Their own count of steps would refuse the steps that a killed run repeats.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the scalars of one step."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, file: Path) -> None:
        """Logs an image file."""
        self._run.log({"step": step, name: self._image(str(file))})

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
