"""Opens weights of other programs: a file, a diffusers folder, or a U-ViT training folder."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.interop import dit_weights, files, unidiffuser_weights
from uvit_jax.interop.mapping import Tensors
from uvit_jax.remote import fetched

WEIGHTS = "diffusion_pytorch_model"  # diffusers' file name
# By diffusers' class, the settings that must have one value, and those that shapes do not imply.
_CLASSES = {
    "DiTTransformer2DModel": (
        dit_weights.DIFFUSERS,
        dict(
            num_heads="num_attention_heads",
            num_classes="num_embeds_ada_norm",
            image_size="sample_size",
        ),
    ),
    "UniDiffuserModel": (
        unidiffuser_weights.DIFFUSERS,
        dict(
            num_heads="num_attention_heads",
            image_size="sample_size",
            text_tokens="num_text_tokens",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The contents of a weight file.

    Attributes:
      path: of the file. tensors: by their names in the file.
      hints: num_heads, num_classes, image_size and text_tokens from a config.json beside the file,
        if any.
      metadata: of a safetensors file.
    """

    path: str
    tensors: Tensors
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def holds_foreign_weights(folder: Path) -> bool:
    """Whether a folder is diffusers' or of U-ViT's training code, and not a workdir."""
    return _diffusers(folder) is not None or bool(_networks(folder) or _steps(folder))


def open_weights(
    path: str | os.PathLike, *, step: int | None = None, raw: bool = False
) -> WeightFile:
    """Reads the weights at `path`.

    Args:
      path: a `.safetensors`, `.pth` or `.pt` file; a diffusers folder (`config.json` and weights,
        or a pipeline with `transformer` or `unet`); a `{step}.ckpt` folder of U-ViT's training
        code, or a folder of several.
      step: of several checkpoints; None is the newest.
      raw: of a training folder or file, the raw parameters instead of their EMA.

    Raises:
      UvitError: if there are no such weights, or the file is damaged or holds more than tensors.
    """
    path = fetched(path)
    if not path.is_dir():
        if step is not None:
            raise UvitError(f"{path} has no steps to choose from; drop step={step}")
        tensors = files.read_tensors(path, raw=raw)
        return WeightFile(str(path), tensors, metadata=files.read_metadata(path))
    if (folder := _diffusers(path)) is not None:
        return _open_diffusers(folder)
    if steps := _steps(path):
        if step is not None and step not in steps:
            raise UvitError(f"{path} has no checkpoint {step}; it has {sorted(steps)}")
        path = steps[max(steps) if step is None else step]
    networks, wanted = _networks(path), "nnet.pth" if raw else "nnet_ema.pth"
    if wanted not in networks:
        existing = ", ".join(sorted(networks)) or "no network"
        raise UvitError(
            f"the folder {path} has no {wanted} (it has {existing}) and is not a diffusers folder; "
            "give a file, a diffusers folder, or a U-ViT training folder"
        )
    return WeightFile(str(path / wanted), files.read_tensors(path / wanted))


def _steps(folder: Path) -> dict[int, Path]:
    return {int(p.stem): p for p in folder.glob("*.ckpt") if p.is_dir() and p.stem.isdigit()}


def _networks(folder: Path) -> set[str]:
    return {name for name in ("nnet.pth", "nnet_ema.pth") if (folder / name).is_file()}


def _diffusers(folder: Path) -> Path | None:
    """The diffusers folder: `folder` itself, or the network's of a pipeline, else None."""
    inside = (folder / "transformer", folder / "unet")
    return next((f for f in (folder, *inside) if _diffusers_file(f)), None)


def _diffusers_file(folder: Path) -> Path | None:
    """The weights of a diffusers folder, in full precision if it has them, or their first shard."""
    for variant in ("", ".fp16", ".bf16"):
        if (file := folder / f"{WEIGHTS}{variant}.safetensors").is_file():
            return file
        if shards := sorted(folder.glob(f"{WEIGHTS}{variant}-?????-of-?????.safetensors")):
            return shards[0]
        if (file := folder / f"{WEIGHTS}{variant}.bin").is_file():
            return file
    return None


def _open_diffusers(folder: Path) -> WeightFile:
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind = settings["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UvitError(f"cannot read {file}, which a diffusers folder needs: {error!r}") from None
    if kind not in _CLASSES:
        raise UvitError(
            f"{folder} is diffusers' {kind}; only {' and '.join(_CLASSES)} is supported"
        )
    fixed, names = _CLASSES[kind]
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise UvitError(f"{file}: {key} is {settings[key]!r}; only {value!r} is supported")
    hints = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
    if wrong := [names[k] for k, v in hints.items() if type(v) is not int or v < 1]:
        raise UvitError(f"{file}: {wrong[0]} must be a positive integer")
    weights = _diffusers_file(folder)
    read = files.read_torch if weights.suffix == ".bin" else files.read_tensors
    return WeightFile(str(weights), read(weights), hints)
