"""The camera of a video: a token for each frame, on the frame axis.

A planar camera has the five features `PLANAR`, and with them says which point of the scene each
patch of a frame shows (`CameraPoses.seen_points`).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.tokens.segment import Grid, Segment, normal

PLANAR = ("given", "x", "y", "zoom", "roll")
"""The features of a planar camera's frame: 1, which tells it from the null value, then what changed
since the first frame: its position, x to the right and y up, in halves of the side of the clip's
middle view and along its axes; the log of the zoom factor; the counter-clockwise roll in radians.
"""


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

    @property
    def is_planar(self) -> bool:
        """Whether it has the features `PLANAR`."""
        return self.shape[1] == len(PLANAR)

    def seen_points(
        self, camera_BTF: jax.Array, points_nA: np.ndarray, grid: tuple[int, int]
    ) -> jax.Array:
        """Where in the clip's middle view the points are that each frame of a planar camera shows.

        The middle view is that of the mean of the camera's path: a camera at rest shows each point
        where it is, and the furthest frames are as near to it as they can be.

        Args:
          camera_BTF: (B, T, 5), features `PLANAR` of all frames.
          points_nA: rows and columns in a frame, (n, 2), in patches from the first one's centre.
          grid: the patches of a frame, rows and columns. The fewer of them are the image's side.

        Returns:
          Rows and columns, float32 (B, T, n, 2).
        """
        moved_BTF = camera_BTF - camera_BTF.mean(axis=1, keepdims=True)
        x, y, zoom, roll = (moved_BTF[..., PLANAR.index(f), None] for f in PLANAR[1:])
        centre_A, half = (np.asarray(grid) - 1) / 2, min(grid) / 2
        down_n, right_n = ((points_nA - centre_A) / half).astype(np.float32).T
        cos, sin = jnp.cos(roll) * jnp.exp(-zoom), jnp.sin(roll) * jnp.exp(-zoom)
        row_BTn = centre_A[0] - half * (sin * right_n - cos * down_n + y)
        column_BTn = centre_A[1] + half * (cos * right_n + sin * down_n + x)
        return jnp.stack([row_BTn, column_BTn], axis=-1)

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
