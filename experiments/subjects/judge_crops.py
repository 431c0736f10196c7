"""Crops of single totems for training and calibrating judges: random pose, position and camera."""

import numpy as np

from experiments.subjects import crops
from experiments.subjects.totem_judge import SIZE
from uvit_jax.data.sources.worlds import backgrounds, factors, totems
from uvit_jax.data.sources.worlds.scene_camera import Camera, grid

RESOLUTIONS = (13, 16, 20, 24, 32)
"""Sides of crops before resizing: in 32², one of three subjects has 13 pixels, one alone 32."""
PLAIN = len(backgrounds.NAMES)


def totem_crops(
    rng: np.random.Generator,
    identity_BF: np.ndarray,
    yaw_B: np.ndarray,
    *,
    resolutions: tuple[int, ...] = RESOLUTIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """Crops of totems at random positions before random backgrounds.

    Args:
      identity_BF: int (B, 8). yaw_B: radians.
      resolutions: one is sampled for every eight crops.

    Returns:
      float32 (B, 32, 32, 3) in [-1, 1], and the indices of the backgrounds, int32 (B,), in
      `backgrounds.NAMES`, or `PLAIN`.
    """
    parts = []
    for first in range(0, len(identity_BF), 8):
        some = slice(first, first + 8)
        side = int(rng.choice(resolutions))
        parts.append(_crops_at(rng, identity_BF[some], yaw_B[some], side))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _crops_at(rng, identity_BF, yaw_B, side: int) -> tuple[np.ndarray, np.ndarray]:
    B = len(identity_BF)
    fine_x, fine_y = grid(2 * side)
    half_B = crops.MARGIN * rng.uniform(0.94, 1.08, B)
    centre_B2 = rng.uniform(-0.08, 0.08, (B, 2))
    roll_B = rng.uniform(-0.16, 0.16, B)
    views = [
        Camera(x=float(cx), y=float(cy), zoom=float(1 / half), roll=float(roll))
        for (cx, cy), half, roll in zip(centre_B2, half_B, roll_B, strict=True)
    ]
    points = np.stack([np.stack(view.to_scene(fine_x, fine_y)) for view in views])
    colour, cover = totems.layer(
        identity_BF, yaw_B, points[:, 0].reshape(B, -1), points[:, 1].reshape(B, -1)
    )
    colour = _halve(colour.reshape(B, 2 * side, 2 * side, 3))
    open_ = 1 - _halve(cover.reshape(B, 2 * side, 2 * side, 1).astype(np.float32))
    ground_B = rng.integers(0, PLAIN + 1, B)
    # A subject of 13 pixels in an image of 32 fills 13 / 32 of it, and so does its background.
    x_B, y_B, zoom = rng.uniform(-0.5, 0.5, B), rng.uniform(-0.4, 0.1, B), SIZE / side
    around = [
        Camera(x=float(x), y=float(y), zoom=zoom, roll=float(roll))
        for x, y, roll in zip(x_B, y_B, roll_B, strict=True)
    ]
    images = colour + open_ * empty(rng, ground_B, around, side)
    middle = np.zeros((B, 2))
    return crops.crop(images * 2 - 1, middle, np.ones(B), SIZE), ground_B


def empty(
    rng: np.random.Generator, ground_B: np.ndarray, cameras: list[Camera], side: int
) -> np.ndarray:
    """Backgrounds without a subject, float32 (B, side, side, 3) in [0, 1]."""
    x, y = grid(side)
    names = (*backgrounds.NAMES, backgrounds.PLAIN)
    return np.stack(
        [
            backgrounds.paint(names[number], *camera.to_scene(x, y), float(rng.random()))
            for number, camera in zip(ground_B, cameras, strict=True)
        ]
    )


def empty_crops(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random crops without a subject, float32 (B, 32, 32, 3) in [-1, 1]."""
    ground_B = rng.integers(0, PLAIN + 1, count)
    images = empty(rng, ground_B, [Camera()] * count, SIZE)
    half_B = rng.uniform(0.35, 0.8, count)
    centre_B2 = rng.uniform(-1, 1, (count, 2)) * (1 - half_B)[:, None]
    return crops.crop(images * 2 - 1, centre_B2, half_B, SIZE)


def yaws(rng: np.random.Generator, factor: str, count: int) -> np.ndarray:
    """Random yaws from which a factor is visible; 40 % of them are the yaws of references."""
    column = factors.NAMES.index(factor)
    found = np.empty(0)
    while len(found) < count:
        some = rng.uniform(-np.pi, np.pi, 4 * count)
        fixed = rng.choice(totems.REFERENCE_YAWS, 4 * count)
        some = np.where(rng.random(4 * count) < 0.4, fixed, some)
        found = np.concatenate([found, some[factors.visible(some)[:, column]]])
    return found[:count]


def near_miss(rng: np.random.Generator, identity_F: np.ndarray, factor: str) -> np.ndarray:
    """An identity that differs in this factor alone, int32 (8,)."""
    return rng.choice(factors.neighbours(identity_F, factor))


def _halve(fine: np.ndarray) -> np.ndarray:
    rows = fine[:, 0::2] + fine[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)
