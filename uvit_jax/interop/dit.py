"""The official DiT checkpoints, and DiT as diffusers stores it: keys, and the model they describe.

XL/2 has 292 tensors officially. diffusers keeps queries, keys and values apart, and a copy of the
embeddings of time and label in every block, of which the first is the one it uses for the output.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop import mapping
from uvit_jax.interop.mapping import LINEAR, Entry, Tensors, linear
from uvit_jax.models.config import ModelConfig
from uvit_jax.models.dit import SIZES, preset

OFFICIAL_POSITIONS = "pos_embed"  # fixed, so neither needed nor written


def recognises(tensors: Tensors) -> bool:
    """Whether these look like a DiT's tensors, in either form."""
    return "x_embedder.proj.weight" in tensors or _is_diffusers(tensors)


def _is_diffusers(tensors: Tensors) -> bool:
    return {"pos_embed.proj.weight", "proj_out_2.weight"} <= set(tensors)


def normalised(tensors: Tensors) -> dict[str, np.ndarray]:
    """The official names for the tensors of either form, without the fixed positions."""
    if not _is_diffusers(tensors):
        return {k: v for k, v in tensors.items() if k != OFFICIAL_POSITIONS}
    out: dict[str, np.ndarray] = {}
    rest = {k: v for k, v in tensors.items() if k != "pos_embed.pos_embed"}
    first = "transformer_blocks.0.norm1.emb"
    for theirs, ours in (
        ("pos_embed.proj", "x_embedder.proj"),
        ("proj_out_1", "final_layer.adaLN_modulation.1"),
        ("proj_out_2", "final_layer.linear"),
        (f"{first}.timestep_embedder.linear_1", "t_embedder.mlp.0"),
        (f"{first}.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        (f"{first}.class_embedder.embedding_table", "y_embedder.embedding_table"),
    ):
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in rest:
                out[f"{ours}.{kind}"] = rest.pop(f"{theirs}.{kind}")
    for key in sorted(rest):
        parts = key.split(".")
        if parts[0] != "transformer_blocks":
            out[key] = rest[key]  # will be named as unexpected
            continue
        block, inner, kind = f"blocks.{parts[1]}", ".".join(parts[2:-1]), parts[-1]
        if inner.startswith("norm1.emb."):
            same = rest[key], tensors[".".join(["transformer_blocks.0", *parts[2:]])]
            if not np.array_equal(*same):
                raise UvitError(f"{key} differs from the first block's: one embedding was expected")
        elif inner == "norm1.linear":
            out[f"{block}.adaLN_modulation.1.{kind}"] = rest[key]
        elif inner == "attn1.to_q":
            others = [rest.get(key.replace("to_q", name)) for name in ("to_k", "to_v")]
            if any(o is None for o in others):
                raise UvitError(f"missing: {key.replace('to_q', 'to_k')} or its to_v")
            out[f"{block}.attn.qkv.{kind}"] = np.concatenate([rest[key], *others])
        elif inner not in ("attn1.to_k", "attn1.to_v"):
            renamed = {
                "attn1.to_out.0": "attn.proj",
                "ff.net.0.proj": "mlp.fc1",
                "ff.net.2": "mlp.fc2",
            }
            out[f"{block}.{renamed.get(inner, inner)}.{kind}"] = rest[key]
    return out


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of the official checkpoint of a model like `config`, but the fixed positions."""
    image = next(s for s in config.segments.values() if s.modality == "image")
    patches = mapping.patches(image.patch_size, image.shape[-1])
    embed, H = "embed/segments", config.backbone.num_heads
    yield from linear("x_embedder.proj", f"{embed}/image/proj", patches)
    yield from linear("t_embedder.mlp.0", f"{embed}/time/fc1")
    yield from linear("t_embedder.mlp.2", f"{embed}/time/fc2")
    yield Entry("y_embedder.embedding_table.weight", f"{embed}/label/table/embedding")
    for i in range(config.backbone.depth):
        block, path = f"blocks.{i}", "backbone/blocks"
        qkv = f"{path}/attention/qkv"
        yield Entry(f"{block}.attn.qkv.weight", f"{qkv}/kernel", mapping.qkv_kernel(H), i)
        yield Entry(f"{block}.attn.qkv.bias", f"{qkv}/bias", mapping.qkv_bias(H), i)
        out = mapping.heads_out(H)
        yield from linear(f"{block}.attn.proj", f"{path}/attention/out", out, i)
        yield from linear(f"{block}.mlp.fc1", f"{path}/mlp/fc1", LINEAR, i)
        yield from linear(f"{block}.mlp.fc2", f"{path}/mlp/fc2", LINEAR, i)
        modulation = f"{path}/modulation/linear"
        yield from linear(f"{block}.adaLN_modulation.1", modulation, LINEAR, i)
    yield from linear("final_layer.linear", "heads/segments/image/proj")
    yield from linear("final_layer.adaLN_modulation.1", "backbone/modulation/linear")


def describe(
    tensors: Tensors,
    where: str,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """The model config that the shapes of a checkpoint (official names) describe.

    Args:
      num_heads: None looks the size up among the published ones.
      num_classes: None takes the label table's last row to be the null class, as published.
      image_size: side of the latents. The positions are fixed, so nothing in the file tells it;
        None is 32 (256×256 pixels).

    Raises:
      UvitError: if the size is not a published one and `num_heads` is not given.
    """
    width, channels, patch_size, _ = tensors["x_embedder.proj.weight"].shape
    depth = len({k.split(".")[1] for k in tensors if k.startswith("blocks.")})
    size = next((s for s, (w, d, _) in SIZES.items() if (w, d) == (width, depth)), None)
    if num_heads is None and size is None:
        raise UvitError(
            f"{where}: width {width} and depth {depth} are no published DiT, and shapes do not "
            "tell the number of heads; give num_heads="
        )
    rows = tensors["y_embedder.embedding_table.weight"].shape[0]
    outputs = tensors["final_layer.linear.weight"].shape[0] // patch_size**2
    side = image_size or 32
    return preset(
        size or "S",
        (side, side, channels),
        patch_size=patch_size,
        num_classes=num_classes or rows - 1,
        learned_range=outputs == 2 * channels,
        width=width,
        depth=depth,
        num_heads=num_heads or SIZES[size][2],
        mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
