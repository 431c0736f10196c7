"""The causal video autoencoder's checkpoints with two sets of names, by one mapping.

wan         encoder.downsamples.0.residual.2.weight, encoder.middle.1.to_qkv …, as Wan publishes it
diffusers   encoder.down_blocks.0.conv1.weight, mid_block.attentions.0.to_qkv …
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from uvit_jax.autoencoders.causal_video import (
    WAN_MEAN,
    WAN_STD,
    VideoAutoencoder,
    VideoAutoencoderConfig,
    build_video_autoencoder,
)
from uvit_jax.config import parse, to_dict
from uvit_jax.errors import UvitError, nearest
from uvit_jax.interop import files, mapping
from uvit_jax.interop.mapping import CONV, Entry, Tensors, Transform
from uvit_jax.models.model import Params
from uvit_jax.paths import local_path

NAMINGS = ("wan", "diffusers")
CONFIG_KEY = "uvit_jax.video_autoencoder"
"""In the metadata of our own files: the config as JSON."""

# (out, in, t, h, w) ↔ (t, h, w, in, out), and a 1×1 convolution ↔ a linear layer.
CONV3D = Transform(lambda a: a.transpose(2, 3, 4, 1, 0), lambda a: a.transpose(4, 3, 0, 1, 2))
POINTWISE2D = Transform(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
_GAMMA = {
    axes: Transform(lambda a: a.reshape(-1), lambda a, n=axes: a.reshape(-1, *[1] * n))
    for axes in (2, 3)
}


_KNOWN = {
    "wan": "encoder.downsamples.0.residual.2.weight",
    "diffusers": "encoder.down_blocks.0.conv1.weight",
}
"""A tensor of each naming, which no image autoencoder has."""


def is_video_naming(names: Container[str]) -> bool:
    """Whether the names of a file's tensors are those of a causal video autoencoder."""
    return any(known in names for known in _KNOWN.values())


def naming_of(tensors: Tensors) -> str | None:
    """The one of `NAMINGS` that the tensors have; None if neither."""
    for naming, known in _KNOWN.items():
        if known in tensors and tensors[known].ndim == 5:
            return naming
    return None


def entries(config: VideoAutoencoderConfig, naming: str = "wan") -> Iterator[Entry]:
    """All tensors of a checkpoint of an autoencoder.

    Raises:
      UvitError: if the naming is unknown.
    """
    if naming not in NAMINGS:
        raise UvitError(f"unknown naming {naming!r}{nearest(naming, NAMINGS)}")
    wan = naming == "wan"
    yield from _conv("conv1" if wan else "quant_conv", "encoder/quant_conv")
    yield from _conv("conv2" if wan else "post_quant_conv", "decoder/post_quant_conv")
    for side in ("encoder", "decoder"):
        yield from _conv(f"{side}.{'conv1' if wan else 'conv_in'}", f"{side}/conv_in")
        yield from _mid(config, side, wan)
        yield from (_wan_levels if wan else _diffusers_levels)(config, side)
        yield from _norm(f"{side}.{'head.0' if wan else 'norm_out'}", f"{side}/norm_out")
        yield from _conv(f"{side}.{'head.2' if wan else 'conv_out'}", f"{side}/conv_out")


def _layers(config: VideoAutoencoderConfig, side: str) -> Iterator[list[tuple[str, bool]]]:
    """By level in order of execution: (our path, whether it has a shortcut or a time_conv)."""
    up = side == "decoder"
    widths = config.widths[::-1] if up else config.widths
    temporal = config.temporal[::-1] if up else config.temporal
    for i, width in enumerate(widths):
        inputs = widths[max(i - 1, 0)] // (2 if up and i else 1)
        blocks = config.num_blocks + up
        sizes = itertools.pairwise([inputs, *[width] * blocks])
        level = [(f"{side}/levels/{i}/blocks/{j}", a != b) for j, (a, b) in enumerate(sizes)]
        if i < len(widths) - 1:
            level.append((f"{side}/levels/{i}/resample", temporal[i]))
        yield level


def _wan_levels(config: VideoAutoencoderConfig, side: str) -> Iterator[Entry]:
    name = "upsamples" if side == "decoder" else "downsamples"
    for number, (path, more) in enumerate(itertools.chain(*_layers(config, side))):
        key = f"{side}.{name}.{number}"
        yield from (_resample if path.endswith("resample") else _wan_block)(key, path, more)


def _diffusers_levels(config: VideoAutoencoderConfig, side: str) -> Iterator[Entry]:
    if side == "encoder":
        for number, (path, more) in enumerate(itertools.chain(*_layers(config, side))):
            key = f"{side}.down_blocks.{number}"
            yield from (_resample if path.endswith("resample") else _block)(key, path, more)
        return
    for i, level in enumerate(_layers(config, side)):
        for j, (path, more) in enumerate(level):
            if path.endswith("resample"):
                yield from _resample(f"{side}.up_blocks.{i}.upsamplers.0", path, more)
            else:
                yield from _block(f"{side}.up_blocks.{i}.resnets.{j}", path, more)


def _mid(config: VideoAutoencoderConfig, side: str, wan: bool) -> Iterator[Entry]:
    middle = f"{side}.middle" if wan else f"{side}.mid_block"
    last = 2 if config.mid_attention else 1
    for ours, theirs in (("block1", 0), ("block2", last if wan else 1)):
        path = f"{side}/mid/{ours}"
        if wan:
            yield from _wan_block(f"{middle}.{theirs}", path, False)
        else:
            yield from _block(f"{middle}.resnets.{theirs}", path, False)
    if config.mid_attention:
        key = f"{middle}.1" if wan else f"{middle}.attentions.0"
        path = f"{side}/mid/attention"
        yield from _norm(f"{key}.norm", f"{path}/norm", axes=2)
        yield from _conv(f"{key}.to_qkv", f"{path}/qkv", POINTWISE2D)
        yield from _conv(f"{key}.proj", f"{path}/out", POINTWISE2D)


def _wan_block(key: str, path: str, shortcut: bool) -> Iterator[Entry]:
    for theirs, ours in ((0, "norm1"), (3, "norm2")):
        yield from _norm(f"{key}.residual.{theirs}", f"{path}/{ours}")
    for theirs, ours in ((2, "conv1"), (6, "conv2")):
        yield from _conv(f"{key}.residual.{theirs}", f"{path}/{ours}")
    if shortcut:
        yield from _conv(f"{key}.shortcut", f"{path}/shortcut")


def _block(key: str, path: str, shortcut: bool) -> Iterator[Entry]:
    for i in (1, 2):
        yield from _norm(f"{key}.norm{i}", f"{path}/norm{i}")
        yield from _conv(f"{key}.conv{i}", f"{path}/conv{i}")
    if shortcut:
        yield from _conv(f"{key}.conv_shortcut", f"{path}/shortcut")


def _resample(key: str, path: str, time: bool) -> Iterator[Entry]:
    yield from _conv(f"{key}.resample.1", f"{path}/conv", CONV)
    if time:
        yield from _conv(f"{key}.time_conv", f"{path}/time_conv")


def _conv(key: str, path: str, transform: Transform = CONV3D) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/kernel", transform)
    yield Entry(f"{key}.bias", f"{path}/bias")


def _norm(key: str, path: str, axes: int = 3) -> Iterator[Entry]:
    yield Entry(f"{key}.gamma", f"{path}/scale", _GAMMA[axes])


def describe(tensors: Tensors, where: str) -> VideoAutoencoderConfig:
    """The config of a checkpoint, from the names and shapes of its tensors; with the published
    statistics of the latents if they have Wan's 16 channels.

    Raises:
      UvitError: if they are not those of a causal video autoencoder.
    """
    naming = naming_of(tensors)
    if naming is None:
        some = ", ".join(sorted(tensors)[:4])
        raise UvitError(
            f"{where} has no supported causal video autoencoder; its tensors: {some}, …"
        )
    wan = naming == "wan"
    prefix = "encoder.downsamples" if wan else "encoder.down_blocks"
    conv = "residual.6" if wan else "conv2"
    widths, temporal, blocks = [], [], [0]
    for number in itertools.count():
        block = tensors.get(f"{prefix}.{number}.{conv}.weight")
        if block is not None:
            if not blocks[-1]:
                widths.append(block.shape[0])
            blocks[-1] += 1
        elif f"{prefix}.{number}.resample.1.weight" in tensors:
            temporal.append(f"{prefix}.{number}.time_conv.weight" in tensors)
            blocks.append(0)
        else:
            break
    first = "encoder.conv1" if wan else "encoder.conv_in"
    outer = tensors.get(f"{first}.weight")
    inner = tensors.get("conv2.weight" if wan else "post_quant_conv.weight")
    if outer is None or inner is None or len(set(blocks)) > 1:
        raise UvitError(f"{where} lacks convolutions of a causal video autoencoder")
    patch = max(1, round((outer.shape[1] / 3) ** 0.5))
    published = dict(latent_mean=WAN_MEAN, latent_std=WAN_STD) if inner.shape[0] == 16 else {}
    attention = (
        "encoder.middle.1.norm.gamma" if wan else "encoder.mid_block.attentions.0.norm.gamma"
    )
    config: dict[str, Any] = dict(
        widths=widths,
        temporal=temporal,
        num_blocks=blocks[0],
        latent_channels=inner.shape[0],
        image_channels=outer.shape[1] // patch**2,
        patch_size=patch,
        mid_attention=attention in tensors,
        kernel_frames=outer.shape[2],
        **published,
    )
    return parse(VideoAutoencoderConfig, config, where)


def load_video_autoencoder(
    path: str | os.PathLike, *, dtype: str = "float32"
) -> tuple[VideoAutoencoder, Params]:
    """Loads a causal video autoencoder.

    Args:
      path: a `.safetensors`, `.pth` or `.pt` file with names of either of `NAMINGS`, or a folder as
        diffusers writes it.
      dtype: of the computation, float32 or bfloat16.

    Returns:
      `(autoencoder, params)`, params float32.

    Raises:
      UvitError: if the file is missing, damaged, or not a supported video autoencoder, naming the
        tensors that are missing, unexpected, or of another shape.
    """
    file = local_path(path)
    if file.is_dir():
        file = file / "diffusion_pytorch_model.safetensors"
    tensors = files.read_tensors(file)
    config = _own_config(file) or describe(tensors, str(file))
    autoencoder = build_video_autoencoder(dataclasses.replace(config, dtype=dtype))
    listed = entries(config, naming_of(tensors))
    return autoencoder, mapping.imported(listed, tensors, autoencoder.abstract_params, str(file))


def save_video_autoencoder(
    path: str | os.PathLike,
    autoencoder: VideoAutoencoder,
    params: Params,
    *,
    dtype: str = "float32",
) -> None:
    """Writes a `.safetensors` file with Wan's names and the config, which `load_video_autoencoder`
    reads.

    Args:
      dtype: of the file: float32, or bfloat16 of half the size.
    """
    tensors = export_video_autoencoder(autoencoder, params)
    tensors = {name: array.astype(jnp.dtype(dtype)) for name, array in tensors.items()}
    metadata = {CONFIG_KEY: json.dumps(to_dict(autoencoder.config))}
    files.write_tensors(local_path(path), tensors, metadata)


def _own_config(file: Path) -> VideoAutoencoderConfig | None:
    """The config that `save_video_autoencoder` has written into a file, if it has."""
    if file.suffix != ".safetensors":
        return None
    text = files.read_metadata(file).get(CONFIG_KEY)
    if text is None:
        return None
    try:
        return parse(VideoAutoencoderConfig, json.loads(text), str(file))
    except (ValueError, TypeError) as error:
        raise UvitError(f"{file}: its config cannot be read ({error}); train it again") from None


def export_video_autoencoder(
    autoencoder: VideoAutoencoder, params: Params, *, naming: str = "wan"
) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in one of `NAMINGS`, float32; the inverse of loading."""
    return mapping.exported(entries(autoencoder.config, naming), params)
