"""The camera: shift, zoom and roll of an image, and the motions of a video."""

import dataclasses

import numpy as np

from uvit_jax.errors import UvitError, nearest

MOTIONS = ("static", "pan", "tilt", "zoom", "roll")
AMPLITUDES = {"S": 0.15, "M": 0.3, "L": 0.6}
"""Over a whole video: scene units of a pan or tilt, log of a zoom factor, radians of a roll."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """The position of the camera.

    Attributes:
      x, y: the point of the scene at the centre of the image.
      zoom: magnification.
      roll: counter-clockwise rotation of the camera; the scene appears rotated clockwise.
    """

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0
    roll: float = 0.0

    def to_scene(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image coordinates → scene coordinates."""
        c, s = np.float32(np.cos(self.roll) / self.zoom), np.float32(np.sin(self.roll) / self.zoom)
        return c * x - s * y + np.float32(self.x), s * x + c * y + np.float32(self.y)

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Scene coordinates → image coordinates."""
        c, s = np.cos(self.roll) * self.zoom, np.sin(self.roll) * self.zoom
        x, y = x - self.x, y - self.y
        return float(c * x + s * y), float(c * y - s * x)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of size × size pixels, float32 (size, size) each, row 0 on top."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return np.meshgrid(line, -line)


def moved(camera: Camera, motion: str, amplitude: str, frames: int) -> list[Camera]:
    """The cameras of a video's frames, in equal steps around `camera`.

    Args:
      motion: one of `MOTIONS`; pan moves right, tilt up, zoom in, roll counter-clockwise.
      amplitude: a key of `AMPLITUDES`, the change from the first frame to the last.

    Raises:
      UvitError: if one of them is unknown, or `frames` is less than 1.
    """
    if motion not in MOTIONS:
        raise UvitError(f"camera motion {motion!r} is unknown{nearest(motion, MOTIONS)}")
    if amplitude not in AMPLITUDES:
        raise UvitError(f"amplitude {amplitude!r} is unknown{nearest(amplitude, AMPLITUDES)}")
    if frames < 1:
        raise UvitError(f"frames must be at least 1, got {frames}")
    change = AMPLITUDES[amplitude]
    cameras = []
    for t in np.linspace(-0.5, 0.5, frames) if frames > 1 else (0.0,):
        moved_fields = {
            "static": {},
            "pan": {"x": camera.x + change * t},
            "tilt": {"y": camera.y + change * t},
            "zoom": {"zoom": camera.zoom * float(np.exp(change * t))},
            "roll": {"roll": camera.roll + change * t},
        }[motion]
        cameras.append(dataclasses.replace(camera, **moved_fields))
    return cameras
