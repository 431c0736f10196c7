"""The names of DiT's variants, as `--config=configs/dit.py:XL/2-256-in_context` gives them."""

import dataclasses
import re
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.models.dit import CONDITIONINGS, SIZES, preset

PATCHES = (2, 4, 8)
RESOLUTIONS = (256, 512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A DiT on the latents of an autoencoder that makes each 8×8 pixels one of 4 channels.

    Attributes:
      size: a key of `SIZES`. patch_size: in latents. resolution: of the pictures, in pixels.
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
        """Its model config; `options` are those of `uvit_jax.models.dit.preset`."""
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
      UvitError: if there is no such variant, listing those that there are.
    """
    found = re.fullmatch(r"(\w+)/(\d+)-(\d+)(?:-(\w+))?", text)
    if found:
        size, patch, resolution, conditioning = found.groups(default="adaln_zero")
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
