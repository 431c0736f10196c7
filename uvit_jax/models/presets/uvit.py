"""U-ViT's published models as model configs (Bao et al., "All are Worth Words", CVPR 2023).

Plain nested dicts: config files call `preset` without importing JAX.
"""

from typing import Any

from uvit_jax.errors import UvitError, nearest

# width, depth, number of heads
SIZES = {
    "S": (512, 12, 8),
    "S-deep": (512, 16, 8),
    "M": (768, 16, 12),
    "L": (1024, 20, 16),
    "H": (1152, 28, 16),
}


def preset(
    size: str,
    image_shape: tuple[int, int, int],
    *,
    patch_size: int,
    num_classes: int = 0,
    null_class: bool = True,
    text_shape: tuple[int, int] | None = None,
    vocab_size: int = 0,
    text_length: int = 0,
    final_conv: str = "after",
    time_mlp: bool = False,
    **backbone: Any,
) -> dict[str, Any]:
    """The model config of a U-ViT: tokens [label, time, patches] or [time, text, patches].

    Args:
      size: a key of `SIZES`; its width, depth and num_heads can be overridden in `backbone`.
      image_shape: (H, W, C) of the pixels or latents that are denoised.
      patch_size: side of a patch; it must divide H and W.
      num_classes: 0 for no label. null_class: whether the label has a null class for guidance.
      text_shape: (N, F) of precomputed text features, None for none.
      vocab_size, text_length: of a text whose token embeddings are trained, 0 for none.
      final_conv: position of the final 3×3 convolution, see `Patches` (`none` for the H models).
      time_mlp: sends the time sinusoid through an MLP (no published model does).
      backbone: any other key of `BackboneConfig`.

    Raises:
      UvitError: if the size is unknown.
    """
    if size not in SIZES:
        raise UvitError(f"unknown size {size!r}{nearest(size, SIZES)}")
    width, depth, num_heads = SIZES[size]
    segments: dict[str, Any] = {
        "time": dict(kind="time", time="image", mlp_ratio=4.0 if time_mlp else 0.0),
        "image": dict(
            kind="patches",
            role="noisy",
            shape=tuple(image_shape),
            patch_size=patch_size,
            final_conv=final_conv,
        ),
    }
    sequence = ["time", "image"]
    if text_shape:
        segments["text"] = dict(kind="features", shape=tuple(text_shape))
        sequence.insert(1, "text")
    elif vocab_size:
        segments["text"] = dict(kind="text", shape=(text_length,), vocab_size=vocab_size)
        sequence.insert(1, "text")
    if num_classes:
        segments["label"] = dict(kind="label", num_classes=num_classes, null_class=null_class)
        sequence.insert(0, "label")
    return dict(
        sequence=tuple(sequence),
        segments=segments,
        backbone=dict(width=width, depth=depth, num_heads=num_heads) | backbone,
        dtype="float32",
    )
