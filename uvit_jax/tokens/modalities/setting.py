"""A setting as one token: a number that the objective or the sampler chooses, not the data."""

import dataclasses
from typing import Literal

import numpy as np

from uvit_jax.tokens.modalities.scalars import Scalars


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingToken(Scalars):
    """One number, float (B, 1), 0 where the inputs have none.

    Attributes:
      sets: what it is.
        `interval`: t - r, the time over which a mean velocity is taken (`diffusion.mean_flow`); at
        0 the network is one of ordinary flow matching.
        `guidance`: the scale s of classifier-free guidance that the prediction has
        (`ObjectiveConfig.guidance`); at 0 it has none.
    """

    kind: Literal["setting"] = "setting"
    shape: tuple[int, ...] = (1,)
    sets: Literal["interval", "guidance"] = "interval"

    def problem(self) -> str:
        return "" if self.shape == (1,) else f"shape must be (1,), got {self.shape}"

    def default(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, 1), np.float32)
