"""DINO's and DINOv2's checkpoints, with the names of their authors or of transformers.

blocks.0.attn.qkv.weight                             the authors' code
encoder.layer.0.attention.attention.query.weight     transformers', in published files
layers.0.attention.q_proj.weight                     transformers', in memory since version 5
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from uvit_jax.encoders import clip_weights
from uvit_jax.encoders.vit import ViT, ViTConfig
from uvit_jax.errors import UvitError
from uvit_jax.interop import files, mapping
from uvit_jax.interop.mapping import SAME, Entry, Tensors, Transform, linear, patches
from uvit_jax.models.model import Params

HEAD_SIZE = 64
"""Of the attention heads of all published DINOs, for files without a config."""
OFFICIAL_OFFSET = 0.1
"""`ViTConfig.position_offset` of the authors' code, for networks without registers."""

# From each of the namings to the names of `entries`; the first match counts.
_BLOCK = r"(?:encoder\.layer|layers|layer|blocks)\.(\d+)\."
_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(?:embeddings\.)?cls_token", "cls"),
        (r"pos_embed|embeddings\.position_embeddings", "positions"),
        (r"(?:embeddings\.)?register_tokens", "registers"),
        (r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)", "patches"),
        (r"(?:norm|layernorm)", "norm"),
        (_BLOCK + r"attn\.qkv", r"blocks.\1.qkv"),
        (_BLOCK + r"attention\.attention\.query", r"blocks.\1.q"),
        (_BLOCK + r"attention\.attention\.key", r"blocks.\1.k"),
        (_BLOCK + r"attention\.attention\.value", r"blocks.\1.v"),
        (_BLOCK + r"attention\.([qkv])_proj", r"blocks.\1.\2"),
        (_BLOCK + r"(?:attn\.proj|attention\.output\.dense|attention\.o_proj)", r"blocks.\1.out"),
        (_BLOCK + r"(?:mlp\.fc1|intermediate\.dense)", r"blocks.\1.fc1"),
        (_BLOCK + r"(?:mlp\.fc2|output\.dense)", r"blocks.\1.fc2"),
        (_BLOCK + r"(?:norm1|layernorm_before)", r"blocks.\1.norm1"),
        (_BLOCK + r"(?:norm2|layernorm_after)", r"blocks.\1.norm2"),
        (_BLOCK + r"(?:(?:ls|layer_scale)([12])\.(?:gamma|lambda1))", r"blocks.\1.scale\2"),
    )
]
# Tensors of training only: mask tokens, classifiers, poolers.
_UNUSED = re.compile(r"(?:embeddings\.)?mask_token|(?:pooler|classifier|head)\..*")
_OPTIONAL_PREFIX = re.compile(r"^(?:module\.|backbone\.|vit\.|dinov2\.|dinov2_with_registers\.)+")


def load_vit(path: str | os.PathLike, *, dtype: str = "float32") -> tuple[ViT, Params]:
    """Loads a DINO or DINOv2.

    Positions are interpolated as in the code whose names the file uses.

    Args:
      path: a `.safetensors`, `.pth` or `.pt` file, or a folder as Hugging Face's with
        `model.safetensors` or `pytorch_model.bin`. dtype: of the computation.

    Returns:
      `(tower, params)`, params float32 numpy arrays.

    Raises:
      UvitError: if the file is missing, damaged, or of another network; it names the tensors.
    """
    file, settings = clip_weights.resolve(path, "vision")
    read = files.read_torch if file.suffix == ".bin" and file.is_file() else files.read_tensors
    tensors, official = canonical(read(file), str(file))
    config = describe(tensors, settings, official, str(file))
    tower = ViT(dataclasses.replace(config, dtype=dtype))
    params = mapping.imported(entries(config), tensors, tower.abstract_params, str(file))
    return tower, params


def canonical(tensors: Tensors, where: str) -> tuple[dict[str, np.ndarray], bool]:
    """The tensors under the names of `entries`, and whether the file has the authors' names.

    Raises:
      UvitError: on names of another network.
    """
    renamed: dict[str, np.ndarray] = {}
    official, unknown = False, ""
    for name, array in tensors.items():
        bare = _OPTIONAL_PREFIX.sub("", name)
        if _UNUSED.fullmatch(bare):
            continue
        stem, dot, kind = bare.rpartition(".")
        if kind not in ("weight", "bias"):
            stem, dot, kind = bare, "", ""
        official |= stem == "pos_embed"
        for pattern, ours in _NAMES:
            if match := pattern.fullmatch(stem):
                stem = match.expand(ours)
                break
        else:
            unknown = unknown or name
        if stem.endswith(".qkv"):
            for part, letter in zip(np.split(array, 3), "qkv", strict=True):
                renamed[f"{stem[:-3]}{letter}{dot}{kind}"] = part
        else:
            renamed[f"{stem}{dot}{kind}"] = array
    if "positions" not in renamed or "patches.weight" not in renamed:
        raise UvitError(f"{where} has no DINO or DINOv2: no positions, or no patch embedding")
    if unknown:
        gated = " (the gated MLP of DINOv2 ViT-g is not supported)" if "mlp." in unknown else ""
        raise UvitError(f"{where} holds {unknown}, which no supported DINO has{gated}")
    return renamed, official


def describe(
    tensors: Tensors, settings: Mapping[str, Any], official: bool, where: str
) -> ViTConfig:
    """The config, from canonical tensors and the settings of config.json, or {}."""
    blocks = {int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")}
    fc1, patch, positions = (
        tensors.get(name) for name in ("blocks.0.fc1.weight", "patches.weight", "positions")
    )
    if fc1 is None or fc1.ndim != 2 or patch.ndim != 4 or positions.ndim != 3:
        raise UvitError(f"{where} has no DINO or DINOv2: its tensors have other shapes")
    width, patch_size = int(patch.shape[0]), int(patch.shape[-1])
    registers = int(tensors["registers"].shape[-2]) if "registers" in tensors else 0
    return ViTConfig(
        width=width,
        depth=max(blocks) + 1,
        num_heads=settings.get("num_attention_heads") or max(width // HEAD_SIZE, 1),
        mlp_width=int(fc1.shape[0]),
        eps=settings.get("layer_norm_eps", 1e-6),
        layer_scale="blocks.0.scale1" in tensors,
        image_size=patch_size * round((positions.shape[1] - 1) ** 0.5),
        patch_size=patch_size,
        registers=registers,
        position_offset=OFFICIAL_OFFSET if official and not registers else 0.0,
        position_antialias=registers > 0,
    )


def entries(config: ViTConfig) -> Iterator[Entry]:
    """All tensors under their canonical names."""
    yield Entry("cls", "cls", _FLAT)
    yield Entry("positions", "positions", _FIRST)
    if config.registers:
        yield Entry("registers", "registers", _FIRST)
    yield from linear("patches", "patches", patches(config.patch_size, 3))
    yield from _norm("norm", "norm")
    for i in range(config.depth):
        for name in ("q", "k", "v", "out", "fc1", "fc2"):
            yield from linear(f"blocks.{i}.{name}", f"blocks/{name}", layer=i)
        for number in (1, 2):
            yield from _norm(f"blocks.{i}.norm{number}", f"blocks/norm{number}", i)
            if config.layer_scale:
                yield Entry(f"blocks.{i}.scale{number}", f"blocks/scale{number}", layer=i)


_FLAT = Transform(np.ravel, lambda a: a[None, None])
_FIRST = Transform(lambda a: a[0], lambda a: a[None])


def _norm(key: str, path: str, layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale", SAME, layer)
    yield Entry(f"{key}.bias", f"{path}/bias", SAME, layer)
