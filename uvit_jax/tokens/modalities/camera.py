"""The camera of a video: a token for each frame, on the frame axis."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from uvit_jax.tokens.segment import Grid, Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraPoses(Segment):
    """F numbers for each of T frames, float (B, T, F): shift, zoom, roll, or a flattened pose.
    Zeros, a camera at rest, are the null value.

    Attributes:
      shape: (T, F).
      trained_shape: the shape that its positions belong to; empty for `shape` (see `Patches`).
    """

    kind: Literal["camera"] = "camera"
    shape: tuple[int, ...] = ()
    trained_shape: tuple[int, ...] = ()

    def problem(self) -> str:
        if len(self.shape) != 2 or min(self.shape) < 1:
            return f"shape must be (T, F), positive numbers, got {self.shape}"
        return ""

    @property
    def grid(self) -> Grid:
        return (self.shape[0], 1, 1)

    @property
    def trained_grid(self) -> Grid:
        return ((self.trained_shape or self.shape)[0], 1, 1)

    @property
    def grid_axes(self) -> tuple[int, ...]:
        return (0,)

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return CameraEmbedding(self, width, dtype=dtype, rngs=rngs)

    def null(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, *self.shape), np.float32)


class CameraEmbedding(nnx.Module):
    """(B, T, F) → (B, T, D) by Linear, SiLU, Linear."""

    def __init__(self, segment: CameraPoses, width: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(dtype=dtype, kernel_init=normal, rngs=rngs)
        self.fc1 = nnx.Linear(segment.shape[-1], width, **options)
        self.fc2 = nnx.Linear(width, width, **options)

    def __call__(self, camera_BTF: jax.Array) -> jax.Array:
        return self.fc2(nnx.silu(self.fc1(camera_BTF)))
