"""Attention within windows of a clip's frames: which tokens see which, as static groups.

A clip with `Patches.window` = w has windows of w frames. A token sees its own window and the two
beside it, and all tokens that are not of the clip, which see everything and connect distant frames
(block-local attention with global tokens; Zaheer et al. 2020, "Big Bird"). A group of queries with
equal keys is attended to as one full attention, so windows save time and memory with any
implementation, and need no mask.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uvit_jax.tokens.segment import Segment

_APART = 2**20  # between the windows of two clips, none of which are neighbours


class Group(NamedTuple):
    """Queries that see the same keys, each as slices of the sequence, ascending."""

    queries: tuple[slice, ...]
    keys: tuple[slice, ...]


Windowed = tuple[Segment, Segment, int]
"""A segment, the one whose parameters it uses, and the number of its first frame in its clip."""


def groups(queries: Sequence[Windowed], keys: Sequence[Windowed]) -> tuple[Group, ...] | None:
    """The groups of a sequence; None if no clip in it has windows.

    Args:
      queries, keys: the sequence's segments in order.
    """
    clips = [source for _, source, _ in keys if source.window]
    number_N, number_M = (_numbers(part, clips) for part in (queries, keys))
    if (number_N < 0).all():
        return None
    groups_ = []
    for number in np.unique(number_N):
        seen_M = (number_M < 0) | (abs(number_M - number) <= 1) if number >= 0 else number_M >= -1
        groups_.append(Group(_slices(number_N == number), _slices(seen_M)))
    return tuple(groups_)


def _numbers(segments: Sequence[Windowed], clips: Sequence[Segment]) -> np.ndarray:
    """The number of each token's window, -1 for tokens without."""
    by_segment = []
    for segment, source, first in segments:
        numbers = np.full(segment.num_tokens, -1)
        if source.window and segment.role == "noisy":
            frames, rows, columns = segment.grid
            first_T = first + np.arange(frames) * segment.frames_per_token
            numbers = np.repeat(first_T // source.window, rows * columns)
            numbers = numbers + _APART * clips.index(source)
        by_segment.append(numbers)
    return np.concatenate(by_segment)


def _slices(chosen: np.ndarray) -> tuple[slice, ...]:
    edges = np.flatnonzero(np.diff(np.pad(chosen.astype(int), 1))).reshape(-1, 2)
    return tuple(slice(int(a), int(b)) for a, b in edges)
