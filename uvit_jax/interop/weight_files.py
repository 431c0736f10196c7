"""Where weights lie: a file, a folder of diffusers', or a training folder of U-ViT's."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.interop import files
from uvit_jax.interop.dit import DIFFUSERS
from uvit_jax.interop.mapping import Tensors

WEIGHTS = "diffusion_pytorch_model"  # diffusers' name of them


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What was found at a path.

    Attributes:
      where: the file that was read. tensors: in it.
      hints: what a config.json beside them tells and shapes do not: num_heads, num_classes and
        image_size.
      metadata: of a safetensors file.
    """

    where: str
    tensors: Tensors
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def holds_foreign_weights(folder: Path) -> bool:
    """Whether a folder is one of diffusers', or of U-ViT's training, and so no workdir."""
    return _diffusers(folder) is not None or bool(_networks(folder) or _steps(folder))


def open_weights(
    path: str | os.PathLike, *, step: int | None = None, raw: bool = False
) -> WeightFile:
    """Reads what is at `path`.

    Args:
      path: a `.safetensors`, `.pth` or `.pt` file; a folder of diffusers' (`config.json` and
        weights; or a pipeline's, with `transformer`); a `{step}.ckpt` folder of U-ViT's training
        code, or the folder of several.
      step: of several, which; None is the newest.
      raw: of a training's folder or file, the network itself and not its average.

    Raises:
      UvitError: if there is nothing of that kind, or it is damaged or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if step is not None:
            raise UvitError(f"{path} holds no steps to choose from; leave step={step} out")
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
        found = ", ".join(sorted(networks)) or "no network"
        raise UvitError(
            f"the folder {path} has no {wanted} (it has {found}) and is none of diffusers'; give a "
            "file, a folder of diffusers', or a training folder of U-ViT's"
        )
    return WeightFile(str(path / wanted), files.read_tensors(path / wanted))


def _steps(folder: Path) -> dict[int, Path]:
    return {int(p.stem): p for p in folder.glob("*.ckpt") if p.is_dir() and p.stem.isdigit()}


def _networks(folder: Path) -> set[str]:
    return {name for name in ("nnet.pth", "nnet_ema.pth") if (folder / name).is_file()}


def _diffusers(folder: Path) -> Path | None:
    """The folder itself, or that of a pipeline's transformer, if it is one of diffusers'."""
    for candidate in (folder, folder / "transformer"):
        if any((candidate / f"{WEIGHTS}.{kind}").is_file() for kind in ("safetensors", "bin")):
            return candidate
    return None


def _open_diffusers(folder: Path) -> WeightFile:
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind = settings["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UvitError(
            f"cannot read {file}, which diffusers writes beside the weights: {error!r}"
        ) from None
    if kind != "DiTTransformer2DModel":
        raise UvitError(f"{folder} holds diffusers' {kind}; only DiTTransformer2DModel is handled")
    for key, value in DIFFUSERS.items():
        if settings.get(key, value) != value:
            raise UvitError(f"{file}: {key} is {settings[key]!r}; in a DiT it is {value!r}")
    names = dict(
        num_heads="num_attention_heads", num_classes="num_embeds_ada_norm", image_size="sample_size"
    )
    hints = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
    if wrong := [names[k] for k, v in hints.items() if type(v) is not int or v < 1]:
        raise UvitError(f"{file}: {wrong[0]} must be a positive whole number")
    weights = folder / f"{WEIGHTS}.safetensors"
    if weights.is_file():
        return WeightFile(str(weights), files.read_tensors(weights), hints)
    weights = weights.with_suffix(".bin")
    return WeightFile(str(weights), files.read_torch(weights), hints)
