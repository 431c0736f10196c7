"""Official U-ViT checkpoints: their keys, and the model config that a file's shapes imply.

A checkpoint is a flat state dict (`nnet_ema.pth`): 164 tensors for S, 213 for M, 261 for L, 355 for
H, 166 for the text-to-image S.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models, mapping
from uvit_jax.interop.mapping import CONV, LINEAR, ROW, Entry, Tensors, linear
from uvit_jax.models.model_config import BackboneConfig, ModelConfig
from uvit_jax.models.presets.uvit import SIZES, preset
from uvit_jax.tokens.layout import Layout

logger = logging.getLogger(__name__)

NAME = "U-ViT"


def style_of(tensors: Tensors) -> str | None:
    """`official` if these look like a U-ViT's tensors, else None."""
    roots = {name.split(".")[0] for name in tensors}
    # UniDiffuser's tensors have the same names, and more.
    if {"in_blocks", "out_blocks"} <= roots and "clip_img_embed" not in roots:
        return "official"
    return None


def constants(config: ModelConfig, style: str = "official") -> dict[str, np.ndarray]:
    """A file's tensors that are not parameters: none."""
    del config, style
    return {}


def entries(config: ModelConfig, style: str = "official") -> Iterator[Entry]:
    """Every tensor of the official checkpoint of the model `config`."""
    if style != "official":
        raise UvitError(f"U-ViT has no {style} form; use the official one")
    layout = config.layout()
    yield from _outside(layout)
    half = config.backbone.depth // 2
    for i in range(half):
        yield from _block(f"in_blocks.{i}", "backbone/in_blocks", i, config.backbone)
    yield from _block("mid_block", "backbone/mid_block", None, config.backbone)
    for i in range(half):
        # Ours are in the order of the in-blocks whose skips they take.
        layer = half - 1 - i
        yield from _block(f"out_blocks.{i}", "backbone/out_blocks", layer, config.backbone)
        yield from linear(f"out_blocks.{i}.skip_linear", "backbone/out_blocks/skip", LINEAR, layer)


def _outside(layout: Layout) -> Iterator[Entry]:
    for segment in layout.tokens:
        rows = layout.slices[segment.name]
        yield Entry("pos_embed", f"embed/positions/{segment.name}", ROW, rows=rows)
        path = f"embed/segments/{segment.name}"
        if segment.kind == "patches":
            conv = mapping.patches(segment.patch_size, segment.shape[-1])
            yield from linear("patch_embed.proj", f"{path}/proj", conv)
            head = f"heads/segments/{segment.name}"
            yield from linear("decoder_pred", f"{head}/proj", LINEAR)
            if segment.final_conv == "after":
                yield from linear("final_layer", f"{head}/conv", CONV)
        elif segment.kind == "label":
            yield Entry("label_emb.weight", f"{path}/table/embedding")
        elif segment.kind == "features":
            yield from linear("context_embed", f"{path}/proj", LINEAR)
        elif segment.kind == "time" and segment.mlp_ratio:
            yield from linear("time_embed.0", f"{path}/fc1", LINEAR)
            yield from linear("time_embed.2", f"{path}/fc2", LINEAR)
    yield from _norm("norm", "backbone/norm")


def _norm(key: str, path: str, layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale", layer=layer)
    yield Entry(f"{key}.bias", f"{path}/bias", layer=layer)


def _block(key: str, path: str, layer: int | None, backbone: BackboneConfig) -> Iterator[Entry]:
    yield from _norm(f"{key}.norm1", f"{path}/norm1", layer)
    yield from _norm(f"{key}.norm2", f"{path}/norm2", layer)
    qkv = mapping.qkv_kernel(backbone.num_heads)
    yield Entry(f"{key}.attn.qkv.weight", f"{path}/attention/qkv/kernel", qkv, layer)
    if backbone.qkv_bias:
        qkv_bias = mapping.qkv_bias(backbone.num_heads)
        yield Entry(f"{key}.attn.qkv.bias", f"{path}/attention/qkv/bias", qkv_bias, layer)
    out = mapping.heads_out(backbone.num_heads)
    yield from linear(f"{key}.attn.proj", f"{path}/attention/out", out, layer)
    yield from linear(f"{key}.mlp.fc1", f"{path}/mlp/fc1", LINEAR, layer)
    yield from linear(f"{key}.mlp.fc2", f"{path}/mlp/fc2", LINEAR, layer)


def describe(
    tensors: Tensors,
    where: str,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    text_tokens: int | None = None,
) -> dict[str, Any]:
    """The model config that a checkpoint's shapes imply; the values of tensors are not read.

    Args:
      num_heads: not implied by shapes; None looks the size up among the published ones.
      num_classes: shapes do not imply whether the label table's last row is the null class. None
        assumes it for 1001 rows (ImageNet with guidance) only; of other sizes than ImageNet's it
        says so in the log.
      image_size: implied by the positions if there is no text, and must agree if given. With text,
        the positions beyond those of the image are the text's.
      text_tokens: of the text, if there is one; None assumes 77, unless image_size is given.

    Raises:
      UvitError: if the size is not a published one and `num_heads` is None, or the number of
        positions does not form a square image.
      KeyError, ValueError, IndexError: if a required tensor is missing or has too few axes.
    """
    _, num_tokens, width = tensors["pos_embed"].shape
    halves = {k.split(".")[1] for k in tensors if k.startswith("in_blocks.")}
    depth = 2 * len(halves)
    _, channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    size = next((s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)), None)
    if num_heads is None:
        if size is None:
            raise UvitError(
                f"{where}: width {width} and depth {depth} are not of a published U-ViT, and the "
                "number of heads does not follow from shapes; give num_heads="
            )
        num_heads = SIZES[size][2]
    label = tensors.get("label_emb.weight")
    rows = label.shape[0] if label is not None else 0
    if num_classes is None:
        num_classes = 1000 if rows == 1001 else rows
        if rows not in (0, 1000, 1001):
            logger.warning(
                "%s: the label table has %d rows: taken as %d classes without a null class; if the "
                "last row is one, pass num_classes=%d",
                where,
                rows,
                rows,
                rows - 1,
            )
    if rows - num_classes not in (0, 1):
        raise UvitError(
            f"{where}: the label table has {rows} rows, not num_classes={num_classes} or one more"
        )
    context = tensors.get("context_embed.weight")
    others = 1 + (label is not None)
    text_length = 0
    if context is not None:
        # 77 is the length of CLIP's text, the only one of the official models.
        text_length = 77 if text_tokens is None else text_tokens
        if text_tokens is None and image_size is not None:
            text_length = num_tokens - others - (image_size // patch_size) ** 2
    others += text_length
    side = round(max(num_tokens - others, 0) ** 0.5)
    if side < 1 or side * side != num_tokens - others or text_length < 0:
        raise UvitError(
            f"{where}: {num_tokens} positions less {others} of other tokens do not form a square "
            "image"
        )
    if image_size not in (None, side * patch_size):
        raise UvitError(f"{where} is a model of image_size={side * patch_size}, not {image_size}")
    return preset(
        size or "S",
        (side * patch_size, side * patch_size, channels),
        patch_size=patch_size,
        num_classes=num_classes,
        null_class=rows > num_classes,
        text_shape=(text_length, context.shape[1]) if context is not None else None,
        final_conv="after" if "final_layer.weight" in tensors else "none",
        time_mlp="time_embed.0.weight" in tensors,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=tensors["mid_block.mlp.fc1.weight"].shape[0] / width,
        qkv_bias="mid_block.attn.qkv.bias" in tensors,
    )


def counterpart(config: ModelConfig) -> dict[str, Any]:
    """The official U-ViT most similar to a model; it is equal if the model is an official U-ViT.

    Raises:
      UvitError: if the model has segments of kinds that a U-ViT lacks, or lacks one itself.
    """
    by_kind = compare_models.segments_by_kind(
        config, NAME, needed=("time", "patches"), other=("label", "features")
    )
    image, label, text = by_kind["patches"], by_kind.get("label"), by_kind.get("features")
    model = preset(
        "S",
        image.shape,
        patch_size=image.patch_size,
        num_classes=label.num_classes if label else 0,
        null_class=label is None or label.null_class,
        text_shape=text.shape if text else None,
        final_conv="none" if image.final_conv == "none" else "after",
        time_mlp=by_kind["time"].mlp_ratio > 0,
        **compare_models.sizes(config.backbone),
        qkv_bias=config.backbone.qkv_bias,
    )
    return compare_models.with_segment_names(model, by_kind)
