"""Image preprocessing of encoders and benchmarks: resize, crop, normalise.

Scores depend on it as on the weights, so it is part of the encoder's version.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.config import Config
from uvit_jax.encoders import clip
from uvit_jax.errors import UvitError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue in [0, 1]."""
CLIP = (clip.MEAN, clip.STD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation(Config):
    """Pixels of any size to a network's input.

    Attributes:
      resize: the new length of the short side; the aspect ratio is kept.
      crop: side of the central square crop; 0 for none.
      filter: of the resizing.
      antialias: resizes as Pillow: the filter widens when shrinking, and rows, then columns, are
        rounded to 256 levels. False resizes as torchvision resizes tensors with `antialias=False`,
        and rounds to 256 levels at the end.
      centre: rounding of a half-pixel border: `torchvision` rounds to even, `transformers` down.
      moments: mean and standard deviation by which values in [0, 1] are normalised.
    """

    resize: int
    crop: int = 0
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    centre: Literal["torchvision", "transformers"] = "torchvision"
    moments: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET

    def __post_init__(self):
        super().__post_init__()
        if self.filter == "bicubic" and not self.antialias:
            raise UvitError("filter='bicubic' does not support antialias=False")
        if self.resize < max(self.crop, 1):
            raise UvitError(f"resize={self.resize} must be at least crop={self.crop}, and positive")

    @property
    def word(self) -> str:
        """An identifier, such as `256bicubic-crop224`."""
        plain = "" if self.antialias else "-plain"
        crop = f"-crop{self.crop}" if self.crop else ""
        floor = "-floor" if self.crop and self.centre == "transformers" else ""
        return f"{self.resize}{self.filter}{plain}{crop}{floor}"

    def __call__(self, pixels_BHWC: jax.Array) -> jax.Array:
        """float32 (B, H, W, 3) in [0, 255] → float32 (B, crop, crop, 3), normalised."""
        B, H, W, C = pixels_BHWC.shape
        short = min(H, W)
        height, width = (int(self.resize * side / short) for side in (H, W))
        x = pixels_BHWC
        if self.antialias:
            # Pillow resizes along rows first.
            x = _pillow(_pillow(x, width, 2, self.filter), height, 1, self.filter)
        elif (height, width) != (H, W):
            options = dict(antialias=False, precision=jax.lax.Precision.HIGHEST)
            x = jax.image.resize(x, (B, height, width, C), "linear", **options)
            x = jnp.round(x)
        if self.crop:
            top, left = (self._border(side) for side in (height, width))
            x = x[:, top : top + self.crop, left : left + self.crop]
        mean, std = (np.asarray(m, np.float32) for m in self.moments)
        return (x / 255 - mean) / std

    def _border(self, side: int) -> int:
        spare = side - self.crop
        return round(spare / 2) if self.centre == "torchvision" else spare // 2


DINO = Preparation(resize=256, crop=224)
"""DINO's own evaluation; also of DreamBench's reimplementations, CustomConcept101, DreamBench++."""
DINOV2 = Preparation(resize=256, crop=224, centre="transformers")
"""DINOv2's processor in transformers, as in DreamBench++."""


_CUBIC = -0.5  # Keys's coefficient, as in Pillow
_BITS = 22  # of Pillow's integer weights


def _pillow(x_BHWC: jax.Array, size: int, axis: int, kind: str) -> jax.Array:
    """Pillow's resampling of 8-bit pixels along an axis, bit for bit: float32 in [0, 255]."""
    if x_BHWC.shape[axis] == size:
        return x_BHWC
    positions, weights = _taps(x_BHWC.shape[axis], size, kind)
    pixels = jnp.round(x_BHWC).astype(jnp.int32)
    shape = [1] * x_BHWC.ndim
    shape[axis] = size
    total = jnp.int32(1 << (_BITS - 1))
    for position, weight in zip(positions.T, weights.T, strict=True):
        total += jnp.take(pixels, position, axis=axis) * weight.reshape(shape)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.float32)


def _taps(before: int, after: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The input pixels of each output pixel and their weights, both int32 (after, taps)."""
    reach, kernel = (
        (2, _cubic) if kind == "bicubic" else (1, lambda x: np.maximum(1 - np.abs(x), 0))
    )
    scale = before / after
    widening = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - reach * widening + 0.5).astype(int), 0)
    stop = np.minimum((centres + reach * widening + 0.5).astype(int), before)
    positions = first[:, None] + np.arange((stop - first).max())
    inside = positions < stop[:, None]
    weights = np.where(inside, kernel((positions - centres[:, None] + 0.5) / widening), 0)
    weights = weights / weights.sum(axis=1, keepdims=True) * (1 << _BITS)
    rounded = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(positions, before - 1).astype(np.int32), rounded


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
