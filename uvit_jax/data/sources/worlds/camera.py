"""The camera: shift, zoom and roll of one picture, and the motions of a video, all exact."""

import dataclasses

import numpy as np

from uvit_jax.errors import UvitError, nearest

MOTIONS = ("static", "pan", "tilt", "zoom", "roll")
AMPLITUDES = {"S": 0.15, "M": 0.3, "L": 0.6}
"""Of a whole video: scene units of a pan or tilt, log of the zoom's factor, radians of a roll."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """Where a picture is taken from.

    Attributes:
      x, y: the scene's point in the picture's middle. zoom: how much larger things look.
      roll: by which the camera is turned counter-clockwise, so that the scene turns clockwise.
    """

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0
    roll: float = 0.0

    def scene(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scene's points that picture points show."""
        c, s = np.float32(np.cos(self.roll) / self.zoom), np.float32(np.sin(self.roll) / self.zoom)
        return c * x - s * y + np.float32(self.x), s * x + c * y + np.float32(self.y)

    def picture(self, x: float, y: float) -> tuple[float, float]:
        """Where the picture shows a scene's point: the inverse of `scene`."""
        c, s = np.cos(self.roll) * self.zoom, np.sin(self.roll) * self.zoom
        x, y = x - self.x, y - self.y
        return float(c * x + s * y), float(c * y - s * x)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The centres of size² pixels in [-1, 1]², float32 (size, size) each, row 0 on top."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return np.meshgrid(line, -line)


def moved(camera: Camera, motion: str, amplitude: str, frames: int) -> list[Camera]:
    """The cameras of a video's frames: even steps, with `camera` in the middle.

    Args:
      motion: of `MOTIONS`: a pan goes right, a tilt up, a zoom in, a roll counter-clockwise.
      amplitude: of `AMPLITUDES`, the difference between the first frame and the last.

    Raises:
      UvitError: if one of them is unknown or there is no frame.
    """
    if motion not in MOTIONS:
        raise UvitError(f"camera motion {motion!r} is unknown{nearest(motion, MOTIONS)}")
    if amplitude not in AMPLITUDES:
        raise UvitError(f"amplitude {amplitude!r} is unknown{nearest(amplitude, AMPLITUDES)}")
    if frames < 1:
        raise UvitError(f"a video has at least 1 frame, got {frames}")
    way = AMPLITUDES[amplitude]
    cameras = []
    for t in np.linspace(-0.5, 0.5, frames) if frames > 1 else (0.0,):
        change = {
            "static": {},
            "pan": {"x": camera.x + way * t},
            "tilt": {"y": camera.y + way * t},
            "zoom": {"zoom": camera.zoom * float(np.exp(way * t))},
            "roll": {"roll": camera.roll + way * t},
        }[motion]
        cameras.append(dataclasses.replace(camera, **change))
    return cameras
