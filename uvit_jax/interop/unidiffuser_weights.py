"""UniDiffuser checkpoints, official and diffusers': their keys, and the model config they imply.

official    a flat state dict: 416 tensors of v0, 418 of v1
diffusers   `UniDiffuserModel`: separate queries, keys and values, and a second patch embedding,
            which it does not use
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models, mapping
from uvit_jax.interop.mapping import LINEAR, ROW, Entry, Tensors, linear
from uvit_jax.models.model_config import BackboneConfig, ModelConfig
from uvit_jax.models.presets.unidiffuser import SIZES, preset
from uvit_jax.tokens.segment import Segment

NAME = "UniDiffuser"

# The names outside and inside the blocks, official and diffusers'.
_OUTSIDE = {
    "official": dict(
        patches="patch_embed.proj",
        text="text_embed",
        clip_image="clip_img_embed",
        data_type="token_embedding.weight",
        position="pos_embed_token",
        head="decoder_pred",
        norm="norm",
        blocks="",
    ),
    "diffusers": dict(
        patches="vae_img_in.proj",
        text="text_in",
        clip_image="clip_img_in",
        data_type="data_type_token_embedding.weight",
        position="data_type_pos_embed_token",
        head="vae_img_out",
        norm="transformer.norm_out",
        blocks="transformer.transformer_",
    ),
}
# Of an out-block, prefixes of its skip and of the rest; then the names in a block.
_BLOCK = {
    "official": ("skip_linear", "norm1", "", "attn.proj", "norm2", "norm3", "mlp.fc1", "mlp.fc2"),
    "diffusers": (
        "skip.skip_linear",
        "skip.norm",
        "block.",
        "attn1.to_out.0",
        "norm1",
        "norm3",
        "ff.net.0.proj",
        "ff.net.2",
    ),
}
_UNUSED = "transformer.pos_embed.proj"


def style_of(tensors: Tensors) -> str | None:
    """`official` or `diffusers` if these look like a UniDiffuser's tensors, else None."""
    roots = {name.split(".")[0] for name in tensors}
    if {"in_blocks", "out_blocks", "clip_img_embed"} <= roots:
        return "official"
    return "diffusers" if {"transformer", "clip_img_in", "vae_img_in"} <= roots else None


def constants(config: ModelConfig, style: str = "official") -> dict[str, np.ndarray]:
    """A file's tensors that are not parameters: none."""
    del config, style
    return {}


def entries(config: ModelConfig, style: str = "official") -> Iterator[Entry]:
    """Every tensor of the checkpoint of the model `config`.

    Args:
      style: `official` or `diffusers`.
    """
    names, segments = _OUTSIDE[style], _segments(config)
    start = 0
    for name, segment in segments.items():
        path = f"embed/positions/{segment.name}"
        if name == "data_type":
            yield Entry(names["position"], path, ROW)
            continue
        rows = slice(start, start := start + segment.num_tokens)
        yield Entry("pos_embed", path, ROW, rows=rows)
    yield from _outside(segments, style)
    yield from _norm(names["norm"], "backbone/norm")
    half, prefix = config.backbone.depth // 2, names["blocks"]
    for i in range(half):
        yield from _block(f"{prefix}in_blocks.{i}", "in_blocks", i, config.backbone, style)
    yield from _block(f"{prefix}mid_block", "mid_block", None, config.backbone, style)
    skip, norm, rest, *_ = _BLOCK[style]
    for i in range(half):
        # Ours are in the order of the in-blocks whose skips they take.
        key, layer = f"{prefix}out_blocks.{i}", half - 1 - i
        yield from linear(f"{key}.{skip}", "backbone/out_blocks/skip", LINEAR, layer)
        yield from _norm(f"{key}.{norm}", "backbone/out_blocks/norm_skip", layer)
        yield from _block(f"{key}.{rest}".rstrip("."), "out_blocks", layer, config.backbone, style)


def _segments(config: ModelConfig) -> dict[str, Segment]:
    """A model's segments by the preset's names, in the preset's order.

    Raises:
      UvitError: if the model is not of the preset's segments.
    """
    noisy = [config.segments[n] for n in config.sequence if config.segments[n].role == "noisy"]
    features = [s for s in noisy if s.kind == "features"]
    images = [s for s in noisy if s.kind == "patches"]
    clip = [s for s in features if images and s.time_key == images[0].time_key]
    text = [s for s in features if s not in clip]
    labels = [s for s in config.segments.values() if s.kind == "label"]
    if not (len(images) == len(clip) == len(text) == 1 and len(labels) <= 1):
        raise UvitError(
            f"this model is not a {NAME}, which denoises latents and a feature at one time, and "
            "the features of a text at another"
        )
    found = dict(text=text[0], clip_image=clip[0], image=images[0])
    for segment in (config.segments[n] for n in config.sequence):
        if segment.kind == "time":
            found["text_time" if segment.time == text[0].time_key else "image_time"] = segment
    if labels:
        found["data_type"] = labels[0]
    order = ("image_time", "text_time", "data_type", "text", "clip_image", "image")
    if len(found) != len(config.sequence):
        raise UvitError(
            f"this model is not a {NAME}, whose segments are {', '.join(order)}; it has "
            f"{', '.join(config.sequence)}"
        )
    return {name: found[name] for name in order if name in found}


def _outside(segments: dict[str, Segment], style: str) -> Iterator[Entry]:
    names, image = _OUTSIDE[style], segments["image"]
    conv = mapping.patches(image.patch_size, image.shape[-1])
    path = f"embed/segments/{image.name}/proj"
    yield from linear(names["patches"], path, conv)
    if style == "diffusers":
        for entry in linear(_UNUSED, path, conv):
            yield entry.as_unused()
    yield from linear(names["head"], f"heads/segments/{image.name}/proj")
    for name, out in (("text", "text_out"), ("clip_image", "clip_img_out")):
        yield from linear(names[name], f"embed/segments/{segments[name].name}/proj")
        yield from linear(out, f"heads/segments/{segments[name].name}/proj")
    if "data_type" in segments:
        path = f"embed/segments/{segments['data_type'].name}/table/embedding"
        yield Entry(names["data_type"], path)


def _norm(key: str, path: str, layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale", layer=layer)
    yield Entry(f"{key}.bias", f"{path}/bias", layer=layer)


def _block(
    key: str, stack: str, layer: int | None, backbone: BackboneConfig, style: str
) -> Iterator[Entry]:
    path, H = f"backbone/{stack}", backbone.num_heads
    out, norm1, norm2, fc1, fc2 = _BLOCK[style][3:]
    if style == "official":
        qkv = mapping.qkv_kernel(H)
        yield Entry(f"{key}.attn.qkv.weight", f"{path}/attention/qkv/kernel", qkv, layer)
    else:
        for part, name in enumerate(("to_q", "to_k", "to_v")):
            yield Entry(
                f"{key}.attn1.{name}.weight",
                f"{path}/attention/qkv/kernel",
                mapping.heads_kernel(H),
                layer,
                part=part,
            )
    yield from linear(f"{key}.{out}", f"{path}/attention/out", mapping.heads_out(H), layer)
    yield from _norm(f"{key}.{norm1}", f"{path}/norm1", layer)
    yield from _norm(f"{key}.{norm2}", f"{path}/norm2", layer)
    yield from linear(f"{key}.{fc1}", f"{path}/mlp/fc1", LINEAR, layer)
    yield from linear(f"{key}.{fc2}", f"{path}/mlp/fc2", LINEAR, layer)


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
      num_heads: not implied by shapes; None is the published 24 of the published width and depth.
      num_classes: must be None or 0.
      image_size: side of the latents. text_tokens: of the text. Shapes imply only the sum of both;
        with neither, the text has the published 77 tokens.

    Raises:
      UvitError: if the size is not the published one and `num_heads` is None, or the number of
        positions does not form a square image.
      KeyError, ValueError, IndexError: if a required tensor is missing or has too few axes.
    """
    style = style_of(tensors) or "official"
    names = _OUTSIDE[style]
    if num_classes:
        raise UvitError(
            f"{where} is a {NAME}, which has no classes; drop num_classes={num_classes}"
        )
    _, num_tokens, width = tensors["pos_embed"].shape
    root = f"{names['blocks']}in_blocks."
    depth = 2 * len({k.removeprefix(root).split(".")[0] for k in tensors if k.startswith(root)})
    _, channels, patch_size, _ = tensors[f"{names['patches']}.weight"].shape
    if num_heads is None:
        if (width, depth) != SIZES[""][:2]:
            raise UvitError(
                f"{where}: width {width} and depth {depth} are not of a published {NAME}, and the "
                "number of heads does not follow from shapes; give num_heads="
            )
        num_heads = SIZES[""][2]
    if text_tokens is None:
        text_tokens = 77
        if image_size is not None:
            text_tokens = num_tokens - 3 - (image_size // patch_size) ** 2
    patches = num_tokens - 3 - text_tokens
    side = round(max(patches, 0) ** 0.5)
    if side < 1 or side * side != patches or text_tokens < 1:
        raise UvitError(
            f"{where}: {num_tokens} positions less 3 and those of {text_tokens} text tokens do not "
            "form a square image; give text_tokens="
        )
    if image_size not in (None, side * patch_size):
        raise UvitError(f"{where} is a model of image_size={side * patch_size}, not {image_size}")
    fc1 = _BLOCK[style][6]
    hidden = tensors[f"{names['blocks']}mid_block.{fc1}.weight"].shape[0]
    return preset(
        "v1" if names["data_type"] in tensors else "v0",
        (side * patch_size, side * patch_size, channels),
        patch_size=patch_size,
        text_shape=(text_tokens, tensors[f"{names['text']}.weight"].shape[1]),
        clip_size=tensors[f"{names['clip_image']}.weight"].shape[1],
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=hidden / width,
    )


def counterpart(config: ModelConfig) -> dict[str, Any]:
    """The UniDiffuser most similar to a model; it is equal if the model is one.

    Raises:
      UvitError: if the model has other segments, or its images are not square.
    """
    segments = _segments(config)
    image, text = segments["image"], segments["text"]
    if image.shape[0] != image.shape[1]:
        raise UvitError(f"this model is not a {NAME}: its images, {image.shape}, are not square")
    model = preset(
        "v1" if "data_type" in segments else "v0",
        image.shape,
        patch_size=image.patch_size,
        text_shape=text.shape,
        clip_size=segments["clip_image"].shape[-1],
        **compare_models.sizes(config.backbone),
    )
    if "data_type" in segments:  # the default is not a part of the checkpoint
        model["segments"]["data_type"]["default_class"] = segments["data_type"].default_class
    ours = {segment.name: dict(model["segments"][name]) for name, segment in segments.items()}
    for name in ("image", "clip_image", "text"):
        ours[segments[name].name]["time"] = segments[name].time
    ours[segments["image_time"].name]["time"] = image.time_key
    ours[segments["text_time"].name]["time"] = text.time_key
    return {**model, "segments": ours, "sequence": tuple(ours)}


def diffusers_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of diffusers' `UniDiffuserModel` for the model `config`.

    Raises:
      UvitError: if diffusers' class does not support the model.
    """
    backbone, segments = config.backbone, _segments(config)
    if int(backbone.mlp_ratio * backbone.width) != 4 * backbone.width:
        raise UvitError(f"diffusers' {NAME} supports only mlp_ratio=4, not {backbone.mlp_ratio}")
    image = segments["image"]
    return dict(
        _class_name="UniDiffuserModel",
        text_dim=segments["text"].shape[1],
        clip_img_dim=segments["clip_image"].shape[1],
        num_text_tokens=segments["text"].shape[0],
        num_attention_heads=backbone.num_heads,
        attention_head_dim=backbone.width // backbone.num_heads,
        in_channels=image.shape[-1],
        out_channels=image.shape[-1],
        num_layers=backbone.depth,
        sample_size=image.shape[0],
        patch_size=image.patch_size,
        use_data_type_embedding="data_type" in segments,
        **DIFFUSERS,
    )


# Settings of diffusers' class that are the same for both published models.
DIFFUSERS = dict(
    activation_fn="gelu",
    attention_bias=False,
    block_type="unidiffuser",
    norm_elementwise_affine=True,
    norm_type="layer_norm",
    pre_layer_norm=False,
    use_patch_pos_embed=False,
    use_timestep_embedding=False,
)
