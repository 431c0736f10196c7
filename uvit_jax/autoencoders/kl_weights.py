"""The KL autoencoder's checkpoints with three sets of names, read and written by one mapping.

diffusers       encoder.down_blocks.0.resnets.0.conv1.weight, mid_block.attentions.0.to_q …
diffusers_old   the same, with attentions.0.query, key, value and proj_attn
compvis         encoder.down.0.block.0.conv1.weight, mid.attn_1.q …; alone, or with the prefix
                `first_stage_model.` in a Stable Diffusion checkpoint
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.autoencoders.kl import Autoencoder, AutoencoderConfig, build_autoencoder
from uvit_jax.config import brief, parse
from uvit_jax.errors import UvitError, nearest
from uvit_jax.interop import files, mapping
from uvit_jax.interop.mapping import CONV, LINEAR, Entry, Tensors, Transform
from uvit_jax.io import read_json
from uvit_jax.models.model import Params
from uvit_jax.paths import local_path

STYLES = ("diffusers", "diffusers_old", "compvis")
PREFIX = "first_stage_model."
_WEIGHTS = "diffusion_pytorch_model"

# A linear layer stored as a 1×1 convolution: (out, in, 1, 1) ↔ (in, out).
POINTWISE = Transform(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])

_ATTENTION = {
    # style: names of norm, q, k, v, out
    "diffusers": ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    "diffusers_old": ("group_norm", "query", "key", "value", "proj_attn"),
    "compvis": ("norm", "q", "k", "v", "proj_out"),
}


def style_of(tensors: Tensors) -> str | None:
    """The one of `STYLES` that the tensors are named in, apart from the prefix; None if none is."""
    names = {name.removeprefix(PREFIX) for name in tensors}
    if not {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= names:
        return None
    if "encoder.down.0.block.0.conv1.weight" in names:
        return "compvis"
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in names:
        old = "encoder.mid_block.attentions.0.query.weight" in names
        return "diffusers_old" if old else "diffusers"
    return None


def own_tensors(tensors: Tensors) -> dict[str, np.ndarray]:
    """The autoencoder's tensors in a file, without prefix.

    In a Stable Diffusion checkpoint, those with the prefix `first_stage_model.`; else all but the
    tensors of training losses and averages (`loss.`, `model_ema.`).
    """
    below = {n.removeprefix(PREFIX): a for n, a in tensors.items() if n.startswith(PREFIX)}
    return {
        n: a for n, a in (below or tensors).items() if not n.startswith(("loss.", "model_ema."))
    }


def entries(config: AutoencoderConfig, style: str = "diffusers") -> Iterator[Entry]:
    """All tensors of a checkpoint of an autoencoder, named in `style`.

    Raises:
      UvitError: if the style is unknown.
    """
    if style not in STYLES:
        raise UvitError(f"unknown style {style!r}{nearest(style, STYLES)}")
    for side, extra in (("encoder", 0), ("decoder", 1)):
        yield from _conv(f"{side}.conv_in", f"{side}/conv_in")
        yield from _levels(config, style, side, config.num_blocks + extra)
        yield from _mid(config, style, side)
        norm = "norm_out" if style == "compvis" else "conv_norm_out"
        yield from _norm(f"{side}.{norm}", f"{side}/norm_out")
        yield from _conv(f"{side}.conv_out", f"{side}/conv_out")
    if config.quant_conv:
        yield from _conv("quant_conv", "quant_conv")
    if config.post_quant_conv:
        yield from _conv("post_quant_conv", "post_quant_conv")


def _levels(config: AutoencoderConfig, style: str, side: str, num_blocks: int) -> Iterator[Entry]:
    last = len(config.widths) - 1
    up = side == "decoder"
    widths = config.widths[::-1] if up else config.widths
    for i, width in enumerate(widths):
        path = f"{side}/levels/{i}"
        if style == "compvis":  # numbers the decoder's levels by resolution, not by execution
            key = f"{side}.up.{last - i}" if up else f"{side}.down.{i}"
            block, resample = f"{key}.block", f"{key}.{'upsample' if up else 'downsample'}.conv"
        else:
            key = f"{side}.{'up' if up else 'down'}_blocks.{i}"
            block = f"{key}.resnets"
            resample = f"{key}.{'upsamplers' if up else 'downsamplers'}.0.conv"
        for j in range(num_blocks):
            changes = j == 0 and i > 0 and widths[i - 1] != width
            yield from _block(f"{block}.{j}", f"{path}/blocks/{j}", style, shortcut=changes)
        if i < last:
            yield from _conv(resample, f"{path}/resample")


def _block(key: str, path: str, style: str, *, shortcut: bool = False) -> Iterator[Entry]:
    for i in (1, 2):
        yield from _norm(f"{key}.norm{i}", f"{path}/norm{i}")
        yield from _conv(f"{key}.conv{i}", f"{path}/conv{i}")
    if shortcut:
        name = "nin_shortcut" if style == "compvis" else "conv_shortcut"
        yield from _conv(f"{key}.{name}", f"{path}/shortcut")


def _mid(config: AutoencoderConfig, style: str, side: str) -> Iterator[Entry]:
    blocks, attention = ("mid_block.resnets.0", "mid_block.resnets.1"), "mid_block.attentions.0"
    product = LINEAR
    if style == "compvis":
        blocks, attention = ("mid.block_1", "mid.block_2"), "mid.attn_1"
        product = POINTWISE
    for i, block in enumerate(blocks, start=1):
        yield from _block(f"{side}.{block}", f"{side}/mid/block{i}", style)
    if config.mid_attention:
        norm, *products = _ATTENTION[style]
        key, path = f"{side}.{attention}", f"{side}/mid/attention"
        yield from _norm(f"{key}.{norm}", f"{path}/norm")
        for theirs, ours in zip(products, ("q", "k", "v", "out"), strict=True):
            yield from _conv(f"{key}.{theirs}", f"{path}/{ours}", product)


def _conv(key: str, path: str, transform: Transform = CONV) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/kernel", transform)
    yield Entry(f"{key}.bias", f"{path}/bias")


def _norm(key: str, path: str) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale")
    yield Entry(f"{key}.bias", f"{path}/bias")


def describe(tensors: Tensors, where: str, *, num_groups: int = 32) -> AutoencoderConfig:
    """The config of a checkpoint, from the names and shapes of its tensors.

    Args:
      tensors: the autoencoder's, without prefix. where: the file, for messages.
      num_groups: of the GroupNorms, which shapes do not determine; 32 in all published ones.

    Raises:
      UvitError: if the tensors are not those of a KL autoencoder, or `num_groups` does not fit.
    """
    style = style_of(tensors)
    if style is None:
        some = ", ".join(sorted(tensors)[:4])
        raise UvitError(f"{where} has no supported KL autoencoder; its tensors: {some}, …")
    level, block = ("down", "block") if style == "compvis" else ("down_blocks", "resnets")
    middle = "mid.attn_1" if style == "compvis" else "mid_block.attentions.0"

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != 4:
            raise UvitError(f"{where}: {name} is missing or not a convolution")
        return tensors[name].shape

    def count(pattern: str) -> int:
        number = 0
        while any(name.startswith(f"{pattern}.{number}.") for name in tensors):
            number += 1
        return number

    levels = count(f"encoder.{level}")
    widths = [shape(f"encoder.{level}.{i}.{block}.0.conv1.weight")[0] for i in range(levels)]
    config = dict(
        widths=widths,
        num_blocks=count(f"encoder.{level}.0.{block}"),
        latent_channels=shape("decoder.conv_in.weight")[1],
        image_channels=shape("encoder.conv_in.weight")[1],
        num_groups=num_groups,
        mid_attention=any(name.startswith(f"encoder.{middle}.") for name in tensors),
        quant_conv="quant_conv.weight" in tensors,
        post_quant_conv="post_quant_conv.weight" in tensors,
    )
    return parse(AutoencoderConfig, config, where)


def load_autoencoder(
    path: str | os.PathLike, *, num_groups: int | None = None, dtype: str = "float32"
) -> tuple[Autoencoder, Params]:
    """Loads a KL autoencoder.

    Args:
      path: a `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file with names of any of `STYLES`
        (the last four need PyTorch), or a folder as diffusers writes it (`config.json` and
        `diffusion_pytorch_model.safetensors`), or a file `diffusion_pytorch_model*` in it.
      num_groups: of the GroupNorms; None is the folder's `norm_num_groups`, or 32 for a file of no
        such folder.
      dtype: of the computation, float32 or bfloat16.

    Returns:
      `(autoencoder, params)`, params float32.

    Raises:
      UvitError: if the file is missing, damaged, or not a supported KL autoencoder, naming the
        tensors that are missing, unexpected, or of another shape.
    """
    file, settings = resolve(path)
    if num_groups is None:
        num_groups = settings.get("norm_num_groups", 32)
    tensors = own_tensors(_read(file))
    config = describe(tensors, str(file), num_groups=num_groups)
    config = _with_statistics(config, settings, str(file.with_name("config.json")))
    autoencoder = build_autoencoder(dataclasses.replace(config, dtype=dtype))
    listed = entries(config, style_of(tensors))
    return autoencoder, mapping.imported(listed, tensors, autoencoder.abstract_params, str(file))


def resolve(path: str | os.PathLike) -> tuple[Path, dict]:
    """The file of tensors at `path`, a file or diffusers' folder, and the folder's config.json.

    A file `diffusion_pytorch_model*` is one of diffusers' folder, whose config.json it has too.

    Raises:
      UvitError: if a folder has no such file, or its config.json is damaged or of another class.
    """
    path = local_path(path)
    file = path / f"{_WEIGHTS}.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UvitError(f"the folder {path} has no {file.name}; pass the autoencoder's file")
    path = file.parent
    if not file.name.startswith(_WEIGHTS) or not (path / "config.json").exists():
        return file, {}
    settings = read_json(path / "config.json")
    kind = settings.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise UvitError(f"{path} holds diffusers' {brief(kind)}; only AutoencoderKL is supported")
    if settings.get("act_fn", "silu") != "silu":
        raise UvitError(
            f"{path / 'config.json'}: act_fn={brief(settings['act_fn'])} is not supported; use an "
            "autoencoder with 'silu'"
        )
    return file, settings


def _with_statistics(
    config: AutoencoderConfig, settings: Mapping[str, Any], where: str
) -> AutoencoderConfig:
    """The config with the mean and standard deviation of the latents that diffusers' folder has.

    Its pipelines take `(z - shift_factor) * scaling_factor`, or per channel
    `(z - latents_mean) * scaling_factor / latents_std`.

    Raises:
      UvitError: if they are not numbers of every channel, or there are both.
    """
    C, shift = config.latent_channels, settings.get("shift_factor")
    mean, std = settings.get("latents_mean"), settings.get("latents_std")
    if shift and mean is not None:
        raise UvitError(
            f"{where} has both shift_factor={brief(shift)} and latents_mean; remove the one that "
            "the model was not trained with"
        )
    mean = [shift] * C if mean is None and shift else mean
    changes = {}
    for key, value in (("latents_mean", mean), ("latents_std", std)):
        if value is None:
            continue
        name = "shift_factor" if key == "latents_mean" and shift else key
        real = isinstance(value, list) and all(type(v) in (int, float) for v in value)
        if not real or len(value) != C or not all(abs(v) < 2.0**128 for v in value):
            given = brief(shift if name == "shift_factor" else value)
            raise UvitError(f"{where}: {name}={given} must be finite, of {C} latent channels")
        changes[key.replace("latents", "latent")] = tuple(map(float, value))
    try:
        return dataclasses.replace(config, **changes)
    except UvitError as error:
        raise UvitError(f"{where}: {error}") from None


def export_autoencoder(
    autoencoder: Autoencoder, params: Params, *, style: str = "diffusers", prefix: str = ""
) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in one of `STYLES`, float32; the inverse of loading.

    `prefix="first_stage_model."` names them as in a Stable Diffusion checkpoint.
    """
    tensors = mapping.exported(entries(autoencoder.config, style), params)
    return {prefix + name: array for name, array in tensors.items()}


def _read(file: Path) -> Mapping[str, np.ndarray]:
    if file.suffix not in (".bin", ".ckpt"):
        return files.read_tensors(file)
    if not file.is_file():
        raise UvitError(f"{file} does not exist")
    if file.suffix == ".bin":
        return files.read_torch(file)
    try:
        import torch
    except ImportError:
        raise UvitError(f"reading {file} needs PyTorch: pip install 'uvit-jax[interop]'") from None
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UvitError(f"{file} cannot be read with weights_only=True: {reason}") from None
    stored = stored.get("state_dict", stored) if isinstance(stored, Mapping) else {}
    tensors = {k: v for k, v in stored.items() if isinstance(v, torch.Tensor)}
    wanted = [k for k in tensors if k.startswith(PREFIX)] or list(tensors)
    return {k: tensors[k].float().numpy() for k in wanted}
