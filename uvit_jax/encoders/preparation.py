"""What a benchmark does to a picture before its encoder sees it: resize, crop, normalise.

A score depends on it as on the encoder's weights, so it has a word that every figure carries.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.encoders import clip
from uvit_jax.errors import UvitError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue in [0, 1]."""
CLIP = (clip.MEAN, clip.STD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Pixels of any size to a network's input.

    Attributes:
      resize: the side that the short side of a picture becomes; its shape stays.
      crop: the side of the square cut out of the centre; 0 for none.
      filter: `bicubic` or `bilinear`.
      antialias: as Pillow does it: the filter widens where a picture shrinks, and rows and then
        columns are rounded to 256 levels. Without, as torchvision resizes tensors with
        `antialias=False`: no widening, and rounding to 256 levels at the end.
      centre: where an odd border leaves half a pixel: `torchvision` rounds it to even,
        `transformers` down.
      moments: mean and standard deviation that are taken out of values in [0, 1].
    """

    resize: int
    crop: int = 0
    filter: str = "bicubic"
    antialias: bool = True
    centre: str = "torchvision"
    moments: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET

    def __post_init__(self):
        if self.filter == "bicubic" and not self.antialias:
            raise UvitError("bicubic resizing without antialiasing is not handled")
        if self.filter not in ("bicubic", "bilinear") or self.resize < max(self.crop, 1):
            raise UvitError(f"a preparation resizes by a filter to at least its crop, got {self}")
        if self.centre not in ("torchvision", "transformers"):
            raise UvitError(f"centre is torchvision or transformers, got {self.centre!r}")

    @property
    def word(self) -> str:
        """What it does, in one word, such as `256bicubic-crop224`."""
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
            # Pillow's order: along rows first.
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
"""DINO's own evaluation; DreamBench's reimplementations, CustomConcept101 and DreamBench++."""
DINOV2 = Preparation(resize=256, crop=224, centre="transformers")
"""transformers' processor of DINOv2, which DreamBench++ uses."""
CLIP_224 = Preparation(resize=224, crop=224, centre="transformers", moments=CLIP)
"""Of CLIP's towers for 224 pixels."""
VBENCH = Preparation(resize=224, filter="bilinear", antialias=False)
"""VBench's, of frames: no crop, so that the network interpolates its positions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention:
    """How a benchmark measures identity: record it with every figure.

    Attributes:
      encoder: its name in `encoders.ENCODERS`. preparation: of the pictures.
      pairing: `all` real × generated pairs, `one_to_one`, or `frames` of a video.
      scale: what the mean cosine is multiplied by.
    """

    encoder: str
    preparation: Preparation
    pairing: str
    scale: float = 1.0

    @property
    def metric(self) -> str:
        """The figure's name: of the encoder, the preparation and the pairing."""
        return f"{self.encoder}_{self.preparation.word}_{self.pairing}"


CONVENTIONS: dict[str, tuple[Convention, ...]] = {
    # Ruiz et al. 2022, as its reimplementations have it; the paper names no preparation.
    "dreambench": (
        Convention(encoder="dino_vits16", preparation=DINO, pairing="all"),
        Convention(encoder="clip_vit_b32", preparation=CLIP_224, pairing="all"),
    ),
    # Kumari et al. 2023.
    "customconcept101": (
        Convention(encoder="dino_vits16", preparation=DINO, pairing="all"),
        Convention(encoder="clip_vit_b32", preparation=CLIP_224, pairing="all"),
    ),
    # Peng et al. 2024.
    "dreambench_plus": (
        Convention(encoder="dino_vits8", preparation=DINO, pairing="one_to_one", scale=100),
        Convention(encoder="dinov2_vits14", preparation=DINOV2, pairing="one_to_one", scale=100),
        Convention(encoder="clip_vit_b32", preparation=CLIP_224, pairing="one_to_one", scale=100),
    ),
    # Huang et al. 2023.
    "vbench": (Convention(encoder="dino_vitb16", preparation=VBENCH, pairing="frames"),),
}
"""By benchmark."""


_CUBIC = -0.5  # Keys's coefficient, as in Pillow
_BITS = 22  # of Pillow's weights, which are whole numbers


def _pillow(x_BHWC: jax.Array, size: int, axis: int, kind: str) -> jax.Array:
    """Pillow's resampling of 8-bit pixels along an axis, bit for bit: float32 in [0, 255]."""
    if x_BHWC.shape[axis] == size:
        return x_BHWC
    places, weights = _taps(x_BHWC.shape[axis], size, kind)
    pixels = jnp.round(x_BHWC).astype(jnp.int32)
    shape = [1] * x_BHWC.ndim
    shape[axis] = size
    total = jnp.int32(1 << (_BITS - 1))
    for place, weight in zip(places.T, weights.T, strict=True):
        total += jnp.take(pixels, place, axis=axis) * weight.reshape(shape)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.float32)


def _taps(before: int, after: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel of the result those of the picture and their weights, int32 (after, taps)."""
    reach, kernel = (
        (2, _cubic) if kind == "bicubic" else (1, lambda x: np.maximum(1 - np.abs(x), 0))
    )
    scale = before / after
    widening = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - reach * widening + 0.5).astype(int), 0)
    stop = np.minimum((centres + reach * widening + 0.5).astype(int), before)
    places = first[:, None] + np.arange((stop - first).max())
    inside = places < stop[:, None]
    weights = np.where(inside, kernel((places - centres[:, None] + 0.5) / widening), 0)
    weights = weights / weights.sum(axis=1, keepdims=True) * (1 << _BITS)
    whole = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(places, before - 1).astype(np.int32), whole


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
