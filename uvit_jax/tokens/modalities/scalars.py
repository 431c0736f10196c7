"""A few numbers as one token, such as the amplitude of a video's motion."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from uvit_jax.tokens.segment import Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scalars(Segment):
    """F numbers, float (B, F). Zeros are the null value: where they can be data too, make the first
    number 1 in all examples.

    Attributes:
      shape: (F,).
    """

    kind: Literal["scalars"] = "scalars"
    shape: tuple[int, ...] = ()

    def problem(self) -> str:
        if len(self.shape) != 1 or self.shape[0] < 1:
            return f"shape must be (F,), a positive number, got {self.shape}"
        return ""

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return ScalarsEmbedding(self, width, dtype=dtype, rngs=rngs)

    def null(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, *self.shape), np.float32)


class ScalarsEmbedding(nnx.Module):
    """(B, F) → (B, 1, D) by Linear, SiLU, Linear."""

    def __init__(self, segment: Scalars, width: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(dtype=dtype, kernel_init=normal, rngs=rngs)
        self.fc1 = nnx.Linear(segment.shape[0], width, **options)
        self.fc2 = nnx.Linear(width, width, **options)

    def __call__(self, values_BF: jax.Array) -> jax.Array:
        return self.fc2(nnx.silu(self.fc1(values_BF)))[:, None]
