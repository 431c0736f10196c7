"""DiT checkpoints, official and diffusers': their keys, and the model config that they imply.

official    XL/2 has 292 tensors, including the fixed position embedding
diffusers   separate queries, keys and values; a copy of the time and label embeddings in every
            block, of which the output's modulation uses the first; no position embedding

diffusers divides the exponents of the time frequencies by one less than the official code with
which the weights were trained, so with the same weights its outputs differ slightly from the
official ones, and from ours.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models, mapping
from uvit_jax.interop.mapping import LINEAR, Entry, Tensors, linear
from uvit_jax.models.model_config import ModelConfig
from uvit_jax.models.presets.dit import SIZES, preset
from uvit_jax.tokens.positions import sincos

logger = logging.getLogger(__name__)

NAME = "DiT"

# The names outside and inside the blocks, official and diffusers'.
_OUTSIDE = {
    "official": ("x_embedder.proj", "final_layer.linear", "final_layer.adaLN_modulation.1"),
    "diffusers": ("pos_embed.proj", "proj_out_2", "proj_out_1"),
}
_TIME_AND_LABEL = {
    "official": ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table.weight"),
    "diffusers": (
        "norm1.emb.timestep_embedder.linear_1",
        "norm1.emb.timestep_embedder.linear_2",
        "norm1.emb.class_embedder.embedding_table.weight",
    ),
}
_BLOCK = {
    "official": ("blocks", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"),
    "diffusers": (
        "transformer_blocks",
        "attn1.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "norm1.linear",
    ),
}


def style_of(tensors: Tensors) -> str | None:
    """`official` or `diffusers` if these look like a DiT's tensors, else None."""
    roots = {name.split(".")[0] for name in tensors}
    if len(roots & {"x_embedder", "blocks", "y_embedder", "final_layer"}) >= 3:
        return "official"
    if "transformer_blocks" in roots and roots & {"proj_out_1", "proj_out_2"}:
        return "diffusers"
    return None


def constants(config: ModelConfig, style: str = "official") -> dict[str, np.ndarray]:
    """A file's tensors that are not parameters: official files have fixed positions (1, N, D)."""
    if style != "official":
        return {}
    image = _segments(config)["patches"]
    return {"pos_embed": sincos(image, config.backbone.width)[None]}


def entries(config: ModelConfig, style: str = "official") -> Iterator[Entry]:
    """Every tensor of a checkpoint of the model `config` except the fixed positions.

    Args:
      style: `official` or `diffusers`.
    """
    by_kind = _segments(config)
    names = {kind: segment.name for kind, segment in by_kind.items()}
    image, H = by_kind["patches"], config.backbone.num_heads
    patches = mapping.patches(image.patch_size, image.shape[-1])
    embedder, head, modulation = _OUTSIDE[style]
    yield from linear(embedder, f"embed/segments/{names['patches']}/proj", patches)
    if style == "official":
        yield from _time_and_label("", style, names)
    root, out, fc1, fc2, adaln = _BLOCK[style]
    for i in range(config.backbone.depth):
        block, path = f"{root}.{i}", "backbone/blocks"
        if style == "diffusers":
            yield from _time_and_label(f"{block}.", style, names)
        yield from _queries_keys_values(block, f"{path}/attention/qkv", i, H, style)
        yield from linear(f"{block}.{out}", f"{path}/attention/out", mapping.heads_out(H), i)
        yield from linear(f"{block}.{fc1}", f"{path}/mlp/fc1", LINEAR, i)
        yield from linear(f"{block}.{fc2}", f"{path}/mlp/fc2", LINEAR, i)
        yield from linear(f"{block}.{adaln}", f"{path}/modulation/linear", LINEAR, i)
    yield from linear(head, f"heads/segments/{names['patches']}/proj")
    yield from linear(modulation, "backbone/modulation/linear")


def _segments(config: ModelConfig) -> Mapping[str, Any]:
    return {config.segments[name].kind: config.segments[name] for name in config.sequence}


def _time_and_label(prefix: str, style: str, names: Mapping[str, str]) -> Iterator[Entry]:
    fc1, fc2, table = _TIME_AND_LABEL[style]
    yield from linear(f"{prefix}{fc1}", f"embed/segments/{names['time']}/fc1")
    yield from linear(f"{prefix}{fc2}", f"embed/segments/{names['time']}/fc2")
    yield Entry(f"{prefix}{table}", f"embed/segments/{names['label']}/table/embedding")


def _queries_keys_values(
    block: str, path: str, layer: int, num_heads: int, style: str
) -> Iterator[Entry]:
    if style == "official":
        kernel, bias = mapping.qkv_kernel(num_heads), mapping.qkv_bias(num_heads)
        yield Entry(f"{block}.attn.qkv.weight", f"{path}/kernel", kernel, layer)
        yield Entry(f"{block}.attn.qkv.bias", f"{path}/bias", bias, layer)
        return
    kernel, bias = mapping.heads_kernel(num_heads), mapping.heads_bias(num_heads)
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        key = f"{block}.attn1.{name}"
        yield Entry(f"{key}.weight", f"{path}/kernel", kernel, layer, part=part)
        yield Entry(f"{key}.bias", f"{path}/bias", bias, layer, part=part)


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
      num_classes: must agree with the label table if given, which has as many rows, or one more
        for the null class. None assumes a null class, but for official files of 1000 rows, of
        ImageNet without label dropout; of other sizes than ImageNet's it says so in the log.
        diffusers' have one always.
      image_size: side of the latents. Official files imply it by their fixed positions, and it must
        agree if given; diffusers' do not, and None is 32 (256×256 pixels).
      text_tokens: must be None.

    Raises:
      UvitError: if the size is not a published one and `num_heads` is None, or an argument
        disagrees with the shapes.
      KeyError, ValueError, IndexError: if a required tensor is missing or has too few axes.
    """
    if text_tokens is not None:
        raise UvitError(f"{where} is a DiT, which has no text; drop text_tokens={text_tokens}")
    style = style_of(tensors) or "official"
    embedder, head, _ = _OUTSIDE[style]
    root, _, fc1, _, _ = _BLOCK[style]
    width, channels, patch_size, _ = tensors[f"{embedder}.weight"].shape
    depth = len({k.split(".")[1] for k in tensors if k.startswith(f"{root}.")})
    size = next((s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)), None)
    if num_heads is None and size is None:
        raise UvitError(
            f"{where}: width {width} and depth {depth} are not of a published DiT, and the number "
            "of heads does not follow from shapes; give num_heads="
        )
    table = _TIME_AND_LABEL[style][2]
    rows = tensors[table if style == "official" else f"{root}.0.{table}"].shape[0]
    if num_classes is None:
        num_classes = rows if style == "official" and rows == 1000 else rows - 1
        if style == "official" and rows not in (1000, 1001):
            logger.warning(
                "%s: the label table has %d rows: taken as %d classes and a null class; if it has "
                "none, pass num_classes=%d",
                where,
                rows,
                rows - 1,
                rows,
            )
    if rows - num_classes not in ((0, 1) if style == "official" else (1,)):
        raise UvitError(
            f"{where}: the label table has {rows} rows, which is not num_classes={num_classes} + 1"
            f"{' or num_classes' if style == 'official' else ''}; correct num_classes"
        )
    if style == "official" and "pos_embed" in tensors:
        num_tokens = tensors["pos_embed"].shape[1]
        side = round(num_tokens**0.5)
        if side * side != num_tokens:
            raise UvitError(f"{where}: {num_tokens} positions do not form a square image")
        if image_size not in (None, side * patch_size):
            raise UvitError(
                f"{where} is a model of image_size={side * patch_size}, not {image_size}"
            )
        image_size = side * patch_size
    image_size = image_size or 32
    outputs = tensors[f"{head}.weight"].shape[0] // patch_size**2
    return preset(
        size or "S",
        (image_size, image_size, channels),
        patch_size=patch_size,
        num_classes=num_classes,
        null_class=rows > num_classes,
        learned_range=outputs == 2 * channels,
        width=width,
        depth=depth,
        num_heads=num_heads or SIZES[size][2],
        mlp_ratio=tensors[f"{root}.0.{fc1}.weight"].shape[0] / width,
    )


def counterpart(config: ModelConfig) -> dict[str, Any]:
    """The official DiT most similar to a model; it is equal if the model is an official DiT.

    Raises:
      UvitError: if the model has segments of kinds that a DiT lacks, or lacks one itself.
    """
    by_kind = compare_models.segments_by_kind(
        config, NAME, needed=("time", "label", "patches"), other=()
    )
    model = preset(
        "S",
        by_kind["patches"].shape,
        patch_size=by_kind["patches"].patch_size,
        num_classes=by_kind["label"].num_classes,
        null_class=by_kind["label"].null_class,
        learned_range=by_kind["patches"].learned_range,
        **compare_models.sizes(config.backbone),
    )
    return compare_models.with_segment_names(model, by_kind)


def diffusers_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of diffusers' `DiTTransformer2DModel` for the model `config`.

    Raises:
      UvitError: if diffusers' class does not support the model.
    """
    backbone, segments = config.backbone, _segments(config)
    image = segments["patches"]
    if int(backbone.mlp_ratio * backbone.width) != 4 * backbone.width:
        raise UvitError(f"diffusers' DiT supports only mlp_ratio=4, not {backbone.mlp_ratio}")
    if not segments["label"].null_class:
        raise UvitError(
            "diffusers' DiT supports only label tables with a null class; use --format=official"
        )
    return dict(
        _class_name="DiTTransformer2DModel",
        num_attention_heads=backbone.num_heads,
        attention_head_dim=backbone.width // backbone.num_heads,
        in_channels=image.shape[-1],
        out_channels=image.shape[-1] * (1 + image.learned_range),
        num_layers=backbone.depth,
        sample_size=image.shape[0],
        patch_size=image.patch_size,
        num_embeds_ada_norm=segments["label"].num_classes,
        **DIFFUSERS,
    )


# Settings of diffusers' class that are the same for all published DiTs.
DIFFUSERS = dict(
    activation_fn="gelu-approximate",
    attention_bias=True,
    norm_type="ada_norm_zero",
    norm_elementwise_affine=False,
)
