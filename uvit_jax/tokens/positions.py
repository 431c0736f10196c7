"""Positions of tokens, from their segment's grid: learned, sin-cos, and rotary on up to four axes.

A grid has three axes (frames, rows, columns). A segment that is used on another grid than the one
it was trained on has interpolated positions: a learned table is resized, coordinates are scaled.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.tokens.segment import Grid, Segment

AXES = ("segment", "frame", "row", "column")
"""The axes of rotary positions: which reference a token is of, and the axes of the grid."""


def grid_axes(segments: Iterable[Segment]) -> tuple[str, ...]:
    """The axes of `AXES` that the grids of the segments with rotary positions have; rows and
    columns if there are none."""
    used = {axis for s in segments if s.position == "rope" for axis in s.grid_axes}
    return tuple(AXES[1 + axis] for axis in sorted(used or {1, 2}))


def coordinates(segment: Segment) -> np.ndarray:
    """Frame, row and column of a segment's tokens from 0, float64 (n, 3).

    Rows and columns are in patches of the trained grid. Frames are in frames, so that segments
    share this axis whatever the length of their patches: a patch of several is at the first.
    """
    axes = [
        (np.arange(size) + 0.5) * (trained / size) - 0.5
        for size, trained in zip(segment.grid, segment.trained_grid, strict=True)
    ]
    axes[0] = axes[0] * segment.frames_per_token + segment.start
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def sincos(segment: Segment, width: int, axes: Sequence[int] = ()) -> np.ndarray:
    """Fixed positions on the axes of a segment's grid, float32 (n, width), as in MAE and DiT.

    Each axis has an equal share of the width, the last one first (with two axes: column, row); what
    does not divide goes to the first axis of the grid. A share is `[sin, cos]` with frequencies
    10000^(-i / (share / 2)).

    Args:
      axes: other axes (of 0, 1, 2) than its own: those of the segment that it shares with.
    """
    axes = tuple(axes) or segment.grid_axes
    return sincos_of(coordinates(segment)[:, list(axes)], width).astype(np.float32)


def sincos_of(points: Any, width: int) -> Any:
    """Sin-cos features (..., n, width) of points (..., n, A) on A axes: float32 of JAX arrays,
    float64 of NumPy's."""
    xp = jnp if isinstance(points, jax.Array) else np
    features = []
    for axis, share in reversed(list(enumerate(shares(width, points.shape[-1])))):
        half = share // 2
        frequencies = 10_000.0 ** (-np.arange(half) / half)
        if xp is jnp:
            frequencies = frequencies.astype(np.float32)
        angles = points[..., axis, None] * frequencies
        features += [xp.sin(angles), xp.cos(angles)]
    return xp.concatenate(features, axis=-1)


def shares(width: int, axes: int) -> list[int]:
    """How many of `width` features, an even number, each of so many axes has: even numbers, the
    first of which includes what does not divide."""
    share = 2 * (width // (2 * axes))
    return [width - share * (axes - 1), *[share] * (axes - 1)]


def position_ids(
    segment: Segment,
    axes: tuple[str, ...],
    number: Any = 0,
    grid: Sequence[int] = (),
    points: Any = None,
) -> Any:
    """The position of a segment's tokens on each of `axes`, for RoPE: float32 (n, A), or (B, n, A)
    where they differ by example.

    The first patch of a frame has row and column 1; tokens without RoPE have 0 on all axes, where
    nothing is rotated.

    Args:
      axes: of `AXES`.
      number: the position on the axis `segment`: 0, or of a reference 1 + its subject slot ·
        max_views + its view slot. As an array (B, 1, 1) it gives position ids (B, n, A).
      grid: (rows, columns) that the diagonal offset places it behind, by default its own.
      points: rows and columns (B, n, 2) in place of those of its grid; of no reference, which
        `number` and `grid` are for.
    """
    if segment.position != "rope":
        return np.zeros((segment.num_tokens, len(axes)), np.float32)
    ids_n4 = np.pad(coordinates(segment) + np.array([0, 1, 1]), ((0, 0), (1, 0))).astype(np.float32)
    shift = np.array([1, 0, 0, 0], np.float32)
    if segment.offset == "diagonal":
        shift[2:] = tuple(grid) or segment.trained_grid[1:]
    chosen = [AXES.index(axis) for axis in axes]
    if points is not None:
        fixed = jnp.broadcast_to(ids_n4[:, :2], (*points.shape[:-1], 2))
        return jnp.concatenate([fixed, points + 1], axis=-1)[..., chosen]
    return ids_n4[:, chosen] + number * shift[chosen]


def rope_angles(position_ids_NA: Any, head_size: int, theta: float) -> Any:
    """Angles of rotation of queries and keys, float32 (..., N, K/2).

    Of A axes each rotates an equal share of the K/2 pairs (what does not divide goes to the first),
    the F pairs of a share by frequencies theta^(-i / F), i = 0 .. F - 1 (axial RoPE, Su et al.
    2021; Heo et al. 2024, with theta = 100; Wan, with 10000).
    """
    sizes = [size // 2 for size in shares(head_size, position_ids_NA.shape[-1])]
    angles = [
        position_ids_NA[..., axis, None] * theta ** (-np.arange(size) / size)
        for axis, size in enumerate(sizes)
    ]
    xp = jnp if isinstance(position_ids_NA, jax.Array) else np
    return xp.concatenate(angles, axis=-1).astype(np.float32)


def resized(table_ND: jax.Array, trained: Grid, grid: Grid) -> jax.Array:
    """A learned table (n, D) of one grid for another, by linear interpolation on all three axes."""
    if trained == grid:
        return table_ND
    D = table_ND.shape[-1]
    resized = jax.image.resize(table_ND.reshape(*trained, D), (*grid, D), "linear", antialias=False)
    return resized.reshape(-1, D)
