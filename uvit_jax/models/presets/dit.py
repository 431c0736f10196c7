"""DiT's published models as model configs (Peebles & Xie, ICCV 2023).

Plain nested dicts: config files call `preset` without importing JAX.
"""

import dataclasses
import re
from typing import Any

from uvit_jax.errors import UvitError, nearest

# width, depth, number of heads
SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}

# (`enter` of time and label, `modulation` of the blocks); section 3.2 of the paper.
CONDITIONINGS = {
    "adaln_zero": ("adaln", "adaln_zero"),
    "adaln": ("adaln", "adaln"),
    "cross": ("cross", "none"),
    "in_context": ("token", "none"),
}


def preset(
    size: str,
    image_shape: tuple[int, int, int],
    *,
    patch_size: int,
    num_classes: int = 1000,
    null_class: bool = True,
    conditioning: str = "adaln_zero",
    learned_range: bool = True,
    **backbone: Any,
) -> dict[str, Any]:
    """The model config of a DiT: image tokens in the sequence, time and label as `conditioning`.

    Args:
      size: a key of `SIZES`; its width, depth and num_heads can be overridden in `backbone`.
      image_shape: (H, W, C) of the latents that are denoised.
      patch_size: side of a patch; it must divide H and W.
      num_classes: without the null class.
      null_class: whether the label table has one, as with label dropout in training.
      conditioning: a key of `CONDITIONINGS`; the published checkpoints are `adaln_zero`.
      learned_range: whether the output has 2C channels (DiT) or C (SiT's flows may have either).
      backbone: any other key of `BackboneConfig`.

    Raises:
      UvitError: if the size or conditioning is unknown.
    """
    if size not in SIZES:
        raise UvitError(f"unknown size {size!r}{nearest(size, SIZES)}")
    width, depth, num_heads = SIZES[size]
    if conditioning not in CONDITIONINGS:
        raise UvitError(
            f"unknown conditioning {conditioning!r}{nearest(conditioning, CONDITIONINGS)}"
        )
    enter, modulation = CONDITIONINGS[conditioning]
    # As in the original, the extra tokens have no positions.
    entry = dict(enter=enter, position="none")
    table = {} if null_class else dict(null_class=False)
    segments = dict(
        time=dict(kind="time", time="image", sinusoid_size=256, mlp_ratio=1.0, **entry),
        label=dict(kind="label", num_classes=num_classes, init_std=0.02, **table, **entry),
        image=dict(
            kind="patches",
            role="noisy",
            shape=tuple(image_shape),
            patch_size=patch_size,
            patch_init="xavier",
            final_conv="none",
            learned_range=learned_range,
            position="sincos",
        ),
    )
    return dict(
        sequence=("time", "label", "image"),
        segments=segments,
        backbone=dict(
            width=width,
            depth=depth,
            num_heads=num_heads,
            mid_block=False,
            skip="none",
            # Without modulation the norms need their own scale and shift.
            norm_affine=modulation == "none",
            norm_eps=1e-6,
            activation="gelu_tanh",
            qkv_bias=True,
            init="xavier",
            modulation=modulation,
        )
        | backbone,
        dtype="float32",
    )


PATCHES = (2, 4, 8)
RESOLUTIONS = (256, 512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A DiT on the latents of an autoencoder with downsampling 8 and 4 channels.

    Attributes:
      size: a key of `SIZES`. patch_size: in latents. resolution: of the images, in pixels.
      conditioning: a key of `CONDITIONINGS`.
    """

    size: str
    patch_size: int
    resolution: int
    conditioning: str = "adaln_zero"

    @property
    def published(self) -> bool:
        """Whether it is the size and the conditioning of the released checkpoints, XL/2."""
        return (self.size, self.patch_size, self.conditioning) == ("XL", 2, "adaln_zero")

    def model(self, **options: Any) -> dict[str, Any]:
        """Its model config; `options` are those of `uvit_jax.models.presets.dit.preset`."""
        side = self.resolution // 8
        return preset(
            self.size,
            (side, side, 4),
            patch_size=self.patch_size,
            conditioning=self.conditioning,
            **options,
        )


def parse_variant(text: str) -> Variant:
    """`SIZE/PATCH-RESOLUTION`, and optionally `-CONDITIONING`, as a `Variant`.

    Raises:
      UvitError: if the variant is unknown, listing the known ones.
    """
    match = re.fullmatch(r"(\w+)/(\d+)-(\d+)(?:-(\w+))?", text)
    if match:
        size, patch, resolution, conditioning = match.groups(default="adaln_zero")
        variant = Variant(
            size=size,
            patch_size=int(patch),
            resolution=int(resolution),
            conditioning=conditioning,
        )
        if (
            size in SIZES
            and variant.patch_size in PATCHES
            and variant.resolution in RESOLUTIONS
            and conditioning in CONDITIONINGS
        ):
            return variant
    raise UvitError(
        f"there is no variant {text!r}; a variant is SIZE/PATCH-RESOLUTION, such as XL/2-256, with "
        f"a size of {', '.join(SIZES)}, a patch of {', '.join(map(str, PATCHES))} and a resolution "
        f"of {', '.join(map(str, RESOLUTIONS))}, or with one of -{', -'.join(CONDITIONINGS)} "
        "behind it (default -adaln_zero)"
    )
