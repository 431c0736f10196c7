"""The motion of a video of a scene: paths of its camera and of its subjects' yaw, all exact."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from uvit_jax.data.sources.worlds.random_scenes import rng_of
from uvit_jax.data.sources.worlds.scene_camera import AMPLITUDES, Camera
from uvit_jax.data.sources.worlds.scenes import Scene, render
from uvit_jax.errors import UvitError, nearest

MOVES = {
    "pan": ("x", "pans right", "pans left"),
    "tilt": ("y", "tilts up", "tilts down"),
    "zoom": ("zoom", "zooms in", "zooms out"),
    "roll": ("roll", "rolls left", "rolls right"),
}
"""Camera move → its field of `Motion`, and its words by sign. A roll to the left is
counter-clockwise: the scene appears rotated clockwise."""
TURNS = {"S": 0.6, "M": 1.2, "L": 2.4}
"""By amplitude, the yaw in radians by which a subject turns over a video, from the side that its
caption names: with the largest, past its side, so that its other emblem is seen."""
LIMITS = {"x": 1.0, "y": 1.0, "zoom": 1.0, "roll": float(np.pi)}
"""The largest changes that a camera may be asked for: scene units, log of a factor, radians."""
CAMERA_FIELDS = ("given", *LIMITS)
"""The features of a camera token, those of `uvit_jax.tokens.modalities.camera.PLANAR`, with shifts
in scene units: up to a scene's own zoom and roll, which differ little, halves of the image's side.
"""
JITTER = 0.15
"""Exact values differ from those of `AMPLITUDES` and `TURNS` by up to this share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """Changes from the first frame of a video to the last, at constant speed.

    Attributes:
      x, y: of the camera's position, in scene units. zoom: log of the factor. roll: in radians.
      turns: of each subject's yaw, in radians, from its pose in the first frame; empty for none.
      amplitude: a key of `AMPLITUDES`, by which the others were drawn.
      worded: whether the caption names the camera's moves.

    Raises:
      UvitError: for an unknown amplitude, or a change beyond `LIMITS`.
    """

    x: float = 0.0
    y: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    turns: tuple[float, ...] = ()
    amplitude: str = "M"
    worded: bool = True

    def __post_init__(self) -> None:
        if self.amplitude not in AMPLITUDES:
            raise UvitError(
                f"amplitude={self.amplitude!r} is unknown{nearest(self.amplitude, AMPLITUDES)}"
            )
        for key, limit in LIMITS.items():
            if not abs(getattr(self, key)) <= limit:
                raise UvitError(
                    f"camera {key}={getattr(self, key)} is outside of [-{limit:.4g}, {limit:.4g}]"
                )

    @property
    def moves(self) -> tuple[str, ...]:
        """The camera's moves, of `MOVES`; empty if it is static."""
        return tuple(move for move, (field, *_) in MOVES.items() if getattr(self, field))

    @property
    def wording(self) -> str:
        """What the caption says of the motion, such as `, the camera pans left, @1 turns right`.
        The front of a subject that turns right moves to the right in the image."""
        parts = []
        if self.worded:
            words = [MOVES[m][1 if getattr(self, MOVES[m][0]) > 0 else 2] for m in self.moves]
            parts.append(f"the camera {' and '.join(words) or 'is static'}")
        for s, turn in enumerate(self.turns):
            if turn:
                parts.append(f"@{s + 1} turns {'left' if turn > 0 else 'right'}")
        return "".join(f", {part}" for part in parts)

    def cameras(self, camera: Camera, frames: int) -> list[Camera]:
        """The cameras of T frames, in equal steps around `camera`; that of one frame is `camera`
        itself."""
        return [
            dataclasses.replace(
                camera,
                x=camera.x + self.x * t,
                y=camera.y + self.y * t,
                zoom=camera.zoom * float(np.exp(self.zoom * t)),
                roll=camera.roll + self.roll * t,
            )
            for t in steps(frames)
        ]

    def camera_path(self, frames: int) -> np.ndarray:
        """The camera tokens of T frames, float32 (T, 5) of `CAMERA_FIELDS`."""
        t_T = steps(frames)
        change = np.array([self.x, self.y, self.zoom, self.roll])
        return np.pad((t_T - t_T[0])[:, None] * change, ((0, 0), (1, 0)), constant_values=1).astype(
            np.float32
        )

    def of_amplitude(self, amplitude: str) -> "Motion":
        """The same moves and turns with another amplitude."""
        camera = AMPLITUDES[amplitude] / AMPLITUDES[self.amplitude]
        return dataclasses.replace(
            self,
            **{field: getattr(self, field) * camera for field in LIMITS},
            turns=tuple(t * TURNS[amplitude] / TURNS[self.amplitude] for t in self.turns),
            amplitude=amplitude,
        )

    def size(self) -> np.ndarray:
        """The amplitude as a condition, float32 (2,): 1, which tells it from the null value, and
        its number in `AMPLITUDES`."""
        return np.array([1, AMPLITUDES[self.amplitude]], np.float32)

    def poses(self, scene: Scene, frames: int) -> list[Scene]:
        """The scene at each of T frames: its camera and the poses of its subjects."""
        cameras, t_T = self.cameras(scene.camera, frames), steps(frames)
        turns = np.resize([*self.turns, *[0.0] * len(scene.subjects)], len(scene.subjects))
        return [
            dataclasses.replace(
                scene,
                camera=camera,
                subjects=tuple(
                    dataclasses.replace(
                        one, pose=(one.pose[0] + float(turn * (t - t_T[0])), one.pose[1])
                    )
                    for one, turn in zip(scene.subjects, turns, strict=True)
                ),
            )
            for camera, t in zip(cameras, t_T, strict=True)
        ]


def steps(frames: int) -> np.ndarray:
    """The times of T frames, from -1/2 to 1/2; that of one frame is 0."""
    if frames < 1:
        raise UvitError(f"frames must be at least 1, got {frames}")
    return np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)


def draw_motion(world_name: str, split: str, index: int, subjects: int) -> Motion:
    """The random motion of video `index` of a split. Something always moves.

    A sixth of the cameras are static, a sixth make two moves at once, the others one; each subject
    turns in half of the videos, and the first one always if the camera is static.
    """
    rng = rng_of("motion", world_name, split, index)
    amplitude = tuple(AMPLITUDES)[rng.integers(len(AMPLITUDES))]

    def change(size: float) -> float:
        return float(size * rng.choice((-1, 1)) * rng.uniform(1 - JITTER, 1 + JITTER))

    count = (0, 1, 1, 1, 1, 2)[rng.integers(6)]
    names = [tuple(MOVES)[i] for i in rng.permutation(len(MOVES))[:count]]
    moves = {MOVES[name][0]: change(AMPLITUDES[amplitude]) for name in names}
    turning = rng.random(subjects) < 0.5
    turning[0] |= not names
    turns = tuple(change(TURNS[amplitude]) if turn else 0.0 for turn in turning)
    return Motion(**moves, turns=turns, amplitude=amplitude, worded=bool(rng.random() < 0.5))


def render_video(scene: Scene, motion: Motion, size: int, frames: int) -> np.ndarray:
    """T frames of a scene in motion, float32 (T, H, W, 3) in [-1, 1]; that of one frame is the
    scene's image."""
    bare = dataclasses.replace(
        scene, subjects=tuple(dataclasses.replace(s, references=()) for s in scene.subjects)
    )
    return np.stack([render(frame, size).image for frame in motion.poses(bare, frames)])


def camera_flow(cameras: Sequence[Camera], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How points of the image move from each frame to the next if the scene is at rest.

    Args:
      cameras: of T frames. x, y: image coordinates (H, W), see `scene_camera.grid`.

    Returns:
      float32 (T - 1, H, W, 2), in image coordinates (y up).
    """
    flows = []
    for before, after in itertools.pairwise(cameras):
        u, v = before.to_scene(x, y)
        u, v = u - after.x, v - after.y
        c, s = np.cos(after.roll) * after.zoom, np.sin(after.roll) * after.zoom
        flows.append(np.stack([c * u + s * v - x, c * v - s * u - y], axis=-1))
    return np.asarray(flows, np.float32)
