"""UniDiffuser's published models as model configs (Bao et al., "One Transformer Fits All
Distributions in Multi-Modal Diffusion at Scale", ICML 2023).

    [time of image | time of text | (data type) | text × 77 | CLIP image | latents × 1024]

Latents and the CLIP feature of an image are noisy and share a time; the text, CLIP's features of a
caption reduced to 64 numbers a token, is noisy as well and has its own.

Plain nested dicts: config files call `preset` without importing JAX.
"""

from typing import Any

from uvit_jax.errors import UvitError, nearest

# width, depth, number of heads
SIZES = {"": (1536, 30, 24)}
VERSIONS = ("v0", "v1")
DATA_TYPES = ("web", "internal")
"""The sets that v1 was trained on; the second is curated, and the default of sampling."""


def preset(
    version: str = "v1",
    image_shape: tuple[int, int, int] = (64, 64, 4),
    *,
    patch_size: int = 2,
    text_shape: tuple[int, int] = (77, 64),
    clip_size: int = 512,
    **backbone: Any,
) -> dict[str, Any]:
    """The model config of a UniDiffuser.

    Args:
      version: `v0`, or `v1`, which has a token for the type of data (see `DATA_TYPES`).
      image_shape: (H, W, C) of the latents. patch_size: side of a patch; it must divide H and W.
      text_shape: (N, F) of the text's features. clip_size: of the image's feature.
      backbone: any key of `BackboneConfig`, also width, depth and num_heads.

    Raises:
      UvitError: if the version is unknown.
    """
    if version not in VERSIONS:
        raise UvitError(f"unknown version {version!r}{nearest(version, VERSIONS)}")
    width, depth, num_heads = SIZES[""]
    segments: dict[str, Any] = {
        "image_time": dict(kind="time", time="image"),
        "text_time": dict(kind="time", time="text"),
        "data_type": dict(kind="label", num_classes=2, null_class=False, default_class=1),
        "text": dict(kind="features", role="noisy", shape=tuple(text_shape)),
        "clip_image": dict(kind="features", role="noisy", time="image", shape=(1, clip_size)),
        "image": dict(
            kind="patches",
            role="noisy",
            shape=tuple(image_shape),
            patch_size=patch_size,
            final_conv="none",
        ),
    }
    if version == "v0":
        del segments["data_type"]
    return dict(
        sequence=tuple(segments),
        segments=segments,
        backbone=dict(width=width, depth=depth, num_heads=num_heads, norm="post") | backbone,
        dtype="float32",
    )
