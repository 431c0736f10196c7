"""What a benchmark does to a picture before its encoder sees it: resize, crop, normalise.

A score depends on it as on the encoder's weights, so it has a word that every figure carries.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.models import clip

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
        if (height, width) != (H, W):
            if self.antialias:
                # Two passes with rounding between them, columns of the picture's width first.
                for shape in ((B, H, width, C), (B, height, width, C)):
                    if shape != x.shape:
                        # Halves go up in Pillow, and to even in PyTorch.
                        x = jnp.floor(_resize(x, shape, self.filter, True) + 0.5).clip(0, 255)
            else:
                x = jnp.round(_resize(x, (B, height, width, C), self.filter, False)).clip(0, 255)
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


def _resize(x: jax.Array, shape: tuple[int, ...], kind: str, antialias: bool) -> jax.Array:
    """Antialiased, as Pillow; else as PyTorch, whose plain cubic has another coefficient."""
    if kind == "bicubic" and not antialias:
        raise UvitError("bicubic resizing without antialiasing is not handled")
    method = {"bicubic": "cubic", "bilinear": "linear"}[kind]
    precision = jax.lax.Precision.HIGHEST
    return jax.image.resize(x, shape, method, antialias=antialias, precision=precision)
