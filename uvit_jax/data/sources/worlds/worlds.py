"""The interface of the two worlds: their subjects, poses and how they are rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from uvit_jax.data.sources.worlds import factors, sprites, totems
from uvit_jax.errors import UvitError, nearest

Pose = tuple[float, float]
"""(angle, mirrored): a totem's yaw, never mirrored; a sprite's rotation, and 1 if mirrored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Subjects and how to render them.

    Attributes:
      name: the key in `WORLDS`.
      identities: returns split → subjects, int (N, F).
      facings: the words of captions for the sides of subjects; ("",) if they have none.
      reference_poses: the possible poses in references.
      draw_pose: (rng, facing) → a random pose for a target, different from the references'.
      layer: (identity_NF, pose_N2, x_NP, y_NP, pixel_N) → colours times alpha (N, P, 3), and
        alpha (N, P), float32.
      size: of subjects, relative to a totem.
      attributes: how many values each column of an identity has.
    """

    name: str
    identities: Callable[[], dict[str, np.ndarray]]
    facings: tuple[str, ...]
    reference_poses: tuple[Pose, ...]
    draw_pose: Callable[[np.random.Generator, str], Pose]
    layer: Callable[..., tuple[np.ndarray, np.ndarray]]
    size: float
    attributes: Callable[[], tuple[int, ...]]

    def split(self, name: str) -> np.ndarray:
        """The identities of a split; UvitError if there is none of that name."""
        splits = self.identities()
        if name not in splits:
            raise UvitError(f"{self.name} have no split {name!r}{nearest(name, splits)}")
        return splits[name]


def _totem_pose(rng: np.random.Generator, facing: str) -> Pose:
    # At least 12° from every reference, and at most 48° from the front or back.
    turn = np.deg2rad(rng.uniform(12, 48)) * rng.choice((-1, 1))
    return (float(turn + (np.pi if facing == BEHIND else 0)), 0.0)


def _totem_layer(identity_NF, pose_N2, x_NP, y_NP, pixel_N):
    colour_NP3, cover_NP = totems.layer(identity_NF, pose_N2[:, 0], x_NP, y_NP)
    return colour_NP3, cover_NP.astype(np.float32)


def _sprite_pose(rng: np.random.Generator, facing: str) -> Pose:
    return (float(rng.uniform(0.15, 0.5) * rng.choice((-1, 1))), float(rng.integers(2)))


FRONT, BEHIND = "from the front", "from behind"

WORLDS = {
    "totems": World(
        name="totems",
        identities=factors.identities,
        facings=(FRONT, BEHIND),
        reference_poses=tuple((yaw, 0.0) for yaw in totems.REFERENCE_YAWS),
        draw_pose=_totem_pose,
        layer=_totem_layer,
        size=1.0,
        attributes=lambda: factors.SIZES,
    ),
    "emoji_scenes": World(
        name="emoji_scenes",
        identities=sprites.identities,
        facings=("",),
        reference_poses=tuple((angle, float(m)) for angle, m in sprites.REFERENCE_POSES),
        draw_pose=_sprite_pose,
        layer=sprites.layer,
        size=0.8,
        attributes=sprites.attributes,
    ),
}


def world(name: str) -> World:
    """A world by name; UvitError if there is none of that name."""
    if name not in WORLDS:
        raise UvitError(f"the world {name!r} is unknown{nearest(name, WORLDS)}")
    return WORLDS[name]
