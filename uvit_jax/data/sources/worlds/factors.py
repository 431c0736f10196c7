"""The identities of totems: eight factors, 2048 identities in splits, combinations held out."""

import functools

import numpy as np

HUES = ("red", "orange", "yellow", "lime", "green", "teal")
HUES += ("sky", "blue", "violet", "magenta", "pink", "brown")

FACTORS = {
    "profile": ("pillar", "cone", "goblet", "barrel", "waist", "bell", "vase", "beads"),
    "hue": HUES,
    "second_hue": HUES,
    "pattern": ("bands", "stripes", "checks", "spiral", "base", "dots"),
    "front": ("left", "right", "top", "bottom", "disc", "spot", "cross", "quarters"),
    "back": ("left", "right", "top", "bottom", "disc", "spot", "cross", "quarters"),
    "top": ("ball", "cone", "plate", "spike", "funnel", "beads"),
    "arm": ("none", "out", "up", "down"),
}
"""Factor → its values. An identity is one index per factor, in this order."""

NAMES = tuple(FACTORS)
SIZES = tuple(len(values) for values in FACTORS.values())
MIN_DISTANCE = 3
"""Any two identities differ in at least this many factors."""

COUNTS = {"train": 1600, "validation": 192, "test": 160, "test_pairs": 96}
"""Identities per split. `test` and `test_pairs` are the 256 test identities; the latter have pairs
of factor values that no other identity has."""

SEED = 2024


@functools.cache
def identities() -> dict[str, np.ndarray]:
    """Split → its identities, int32 (N, 8), the same at every call.

    Any two of all 2048 differ in `MIN_DISTANCE` factors; hue and second hue differ.
    """
    rng = np.random.default_rng(SEED)
    found = np.empty((0, len(SIZES)), np.int32)
    splits = {}
    for split, count in COUNTS.items():
        first = len(found)
        while len(found) < first + count:
            one = rng.integers(0, SIZES).astype(np.int32)
            if not valid(one) or has_held_out_pair(one) != (split == "test_pairs"):
                continue
            if (np.sum(found != one, axis=1) >= MIN_DISTANCE).all():
                found = np.concatenate([found, one[None]])
        splits[split] = found[first:]
    for split in splits.values():
        split.flags.writeable = False
    return splits


def valid(identity: np.ndarray) -> np.ndarray:
    """Whether hue and second hue differ, so that the pattern is visible. (..., 8) → bool (...)."""
    identity = np.asarray(identity)
    return identity[..., 1] != identity[..., 2]


def has_held_out_pair(identity: np.ndarray) -> np.ndarray:
    """Whether it has a pair of values held out from training, (..., 8) → bool (...).

    These are 6 of the 72 pairs (hue, pattern) and 6 of the 48 pairs (profile, top).
    """
    identity = np.asarray(identity)
    profile, hue, pattern, top = (identity[..., i] for i in (0, 1, 3, 6))
    return ((hue + 2 * pattern) % 12 == 5) | ((profile + top) % 8 == 5)


def held_out_couple(first: int, second: int) -> bool:
    """Whether two training identities, by index, share no training scene; true of an eighth of the
    pairs."""
    low, high = sorted((int(first), int(second)))
    return (low * 7919 + high * 104729) % 8 == 0


def neighbours(identity: np.ndarray, factor: str) -> np.ndarray:
    """All identities that differ from this one in one factor only, int32 (K, 8)."""
    column = NAMES.index(factor)
    found = np.repeat(np.asarray(identity, np.int32)[None], SIZES[column], axis=0)
    found[:, column] = np.arange(SIZES[column])
    return found[(found[:, column] != identity[column]) & valid(found)]


def visible(yaw: np.ndarray) -> np.ndarray:
    """Which factors are visible from `yaw` (...), bool (..., 8).

    An emblem is visible up to 60° from the view's axis; arms are, unless they point at the viewer
    to within about 25°. All other factors are visible from every side.
    """
    yaw = np.asarray(yaw, np.float64)
    seen = np.ones((*yaw.shape, len(NAMES)), bool)
    seen[..., NAMES.index("front")] = np.cos(yaw) >= 0.5 - 1e-6
    seen[..., NAMES.index("back")] = np.cos(yaw) <= -0.5 + 1e-6
    seen[..., NAMES.index("arm")] = np.abs(np.cos(yaw)) >= 0.42
    return seen
