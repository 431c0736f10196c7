"""Renders emoji: a subject is a concept as drawn by one vendor; rotated, mirrored, at any scale."""

import functools
import io
import threading
import zipfile
import zlib
from importlib import resources

import numpy as np
from PIL import Image

from uvit_jax.data.sources import emoji

HELD_OUT_VENDOR = "twemoji"
"""The vendor whose emoji are in no training or validation scene. It could not be one of the two
Fluent sets, which are near-copies of one design."""

REFERENCE_POSES = ((0.0, False), (0.7, True), (-0.7, False), (1.4, True))
"""(Rotation, mirrored) of the references, in their order."""


_READING = threading.Lock()  # an archive has one file position


@functools.cache
def identities() -> dict[str, np.ndarray]:
    """Split → subjects, int32 (N, 1): indices of the records of `emoji.index()`.

    `train`, `validation` and `test` have the other three vendors and share no concept;
    `test_vendor` has the concepts of `test` by `HELD_OUT_VENDOR`.
    """
    splits = {"train": [], "validation": [], "test": [], "test_vendor": []}
    for number, record in enumerate(emoji.index()):
        split = record["split"]
        if split == "train" and zlib.crc32(record["code"].encode()) % 12 == 0:
            split = "validation"
        if record["vendor"] != HELD_OUT_VENDOR:
            splits[split].append(number)
        elif split == "test":
            splits["test_vendor"].append(number)
    return {split: np.array(found, np.int32)[:, None] for split, found in splits.items()}


def attributes() -> tuple[int, ...]:
    """How many values the column of a subject has: one for each emoji."""
    return (len(emoji.index()),)


def layer(
    identity_NF: np.ndarray, pose_N2: np.ndarray, x_NP: np.ndarray, y_NP: np.ndarray, pixel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Renders N sprites at P points each.

    Args:
      identity_NF: int (N, 1).
      pose_N2: rotation in radians, counter-clockwise, and 1 if mirrored (before the rotation).
      x_NP, y_NP: float32, coordinates of the sprite, which covers [-1, 1]².
      pixel: (N,), the distance of neighbouring points in the sprite's coordinates.

    Returns:
      Colours times alpha float32 (N, P, 3) in [0, 1], and alpha float32 (N, P).
    """
    colour_NP3 = np.zeros((*x_NP.shape, 3), np.float32)
    alpha_NP = np.zeros(x_NP.shape, np.float32)
    for n, (identity, (angle, mirrored)) in enumerate(zip(identity_NF, pose_N2, strict=True)):
        levels = _pyramid(int(identity[0]))
        # The coarsest level whose pixels are finer than the distance of points.
        level = int(np.clip(np.floor(np.log2(max(pixel[n] * 32, 1)) + 0.25), 0, len(levels) - 1))
        sprite = levels[level]
        side = len(sprite) - 2
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u = (c * x_NP[n] + s * y_NP[n]) * np.float32(-1 if mirrored else 1)
        v = c * y_NP[n] - s * x_NP[n]
        near = np.flatnonzero((np.abs(u) < 1) & (np.abs(v) < 1))
        column, row = (u[near] + 1) * (side / 2) + 0.5, (1 - v[near]) * (side / 2) + 0.5
        i, j = row.astype(np.int32), column.astype(np.int32)
        di, dj = (row - i)[:, None], (column - j)[:, None]
        above = sprite[i, j] * (1 - dj) + sprite[i, j + 1] * dj
        below = sprite[i + 1, j] * (1 - dj) + sprite[i + 1, j + 1] * dj
        values = above * (1 - di) + below * di
        colour_NP3[n, near], alpha_NP[n, near] = values[:, :3], values[:, 3]
    return colour_NP3, alpha_NP


@functools.cache
def _records() -> list[dict]:
    return emoji.index()


@functools.cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO((resources.files(emoji) / "images.zip").read_bytes()))


@functools.lru_cache(4096)
def _pyramid(number: int) -> list[np.ndarray]:
    """A sprite at 64², 32², 16² and 8² pixels, colours times alpha, with a transparent border."""
    with _READING:
        data = _archive().read(f"{_records()[number]['key']}.webp")
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), np.float32) / 255
    sprite = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)
    levels = []
    while len(sprite) >= 8:
        levels.append(np.pad(sprite, ((1, 1), (1, 1), (0, 0))))
        half = len(sprite) // 2
        sprite = sprite.reshape(half, 2, half, 2, 4).mean((1, 3))
    return levels
