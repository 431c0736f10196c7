"""Reads and writes tensor files: safetensors, and PyTorch's with `weights_only`."""

import argparse
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import atomic
from uvit_jax.models.model import Model, Params
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.parallel.sharding import path_string

# In the metadata of our own files: the configs of model and run, and the vocabulary, as JSON.
CONFIG_KEY, RUN_KEY, VOCABULARY_KEY = "uvit_jax.model", "uvit_jax.run", "uvit_jax.vocabulary"


def read_tensors(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file by name; PyTorch's as float32.

    Args:
      raw: of a DiT training file, which holds both, the raw parameters instead of their EMA.

    Raises:
      UvitError: if the file is missing, damaged, of another kind, or holds anything but tensors.
    """
    if not path.is_file():
        raise UvitError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        try:
            # bfloat16 is a numpy type by ml_dtypes, a dependency of JAX.
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise UvitError(f"{path} is not a complete safetensors file: {error}") from None
    if path.suffix in (".pth", ".pt"):
        return read_torch(path, raw=raw)
    raise UvitError(f"{path}: expected a .safetensors, .pth or .pt file, or a workdir")


def read_torch(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file with any suffix; see `read_tensors`.

    No code in it is executed: it is read with `weights_only`, and the only class allowed besides
    tensors is `argparse.Namespace`, in which DiT's training files store their flags.
    """
    try:
        import torch
    except ImportError:
        raise UvitError(f"reading {path} needs PyTorch: pip install 'uvit-jax[interop]'") from None
    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be memory-mapped.
        mapped = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many types for damaged files
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
        reason = "it is truncated" if archive and not mapped else _reason(error)
        raise UvitError(f"{path} cannot be read as weights only: {reason}") from None
    if isinstance(stored, Mapping) and {"model", "ema"} & set(stored):
        name = "model" if raw else "ema"
        if name not in stored:
            raise UvitError(f"{path} is a training file without {name!r}; it has {[*stored]}")
        stored = stored[name]
    if not isinstance(stored, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in stored.values()
    ):
        raise UvitError(f"{path} is not a flat dict of tensors; give the file of the (EMA) network")
    return {key: tensor.float().numpy() for key, tensor in stored.items()}


def _reason(error: Exception) -> str:
    """The reason for torch's error in one clause, without torch's advice to trust the file."""
    if match := re.search(r"\bGLOBAL\s+([\w.]+)", str(error)):
        return f"it holds {match[1]}, which is not a tensor"
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    # The advice precedes the reason.
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    text = text.removeprefix("Weights only load failed.").strip()
    if match := re.match(r"Unsupported operand (\d+)", text):
        return f"it is not a PyTorch file of tensors (unknown operation {match[1]})"
    return re.split(r"[.:]?\s*\n|\.\s|\.$", text)[0] or type(error).__name__


def save_safetensors(
    path: str | os.PathLike,
    model: Model,
    params: Params,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `params` with the model's config in the metadata; `uvit_jax.load` reads it back.

    The write is atomic. Names are our own paths, `a/b/c`; values are stored bit for bit.
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    tensors = {path_string(p): np.asarray(a) for p, a in flat}
    config = {CONFIG_KEY: json.dumps(to_dict(model.config))}
    write_tensors(Path(path), tensors, {**(metadata or {}), **config})


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors`, `.pth` or `.pt` file atomically.

    Raises:
      UvitError: if the suffix is another, or PyTorch is needed and not installed.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UvitError(f"{path} must end in .safetensors, .pth or .pt")
    # Both formats store the memory of a transposed view as if it were contiguous.
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    if path.suffix != ".safetensors":
        try:
            import torch
        except ImportError:
            raise UvitError(
                f"writing {path} needs PyTorch: pip install 'uvit-jax[interop]'; or use the "
                "suffix .safetensors"
            ) from None
    with atomic(path) as partial:
        try:
            if path.suffix == ".safetensors":
                safetensors.numpy.save_file(tensors, partial, dict(metadata or {}) or None)
            else:
                torch.save({key: torch.tensor(a) for key, a in tensors.items()}, partial)
        except (safetensors.SafetensorError, RuntimeError) as error:  # of a full disk
            raise OSError(str(error).splitlines()[0]) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a complete safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def own_config(metadata: Mapping[str, str], where: str) -> ModelConfig | None:
    """The model config in the metadata of our own file, or None for other files."""
    text = metadata.get(CONFIG_KEY)
    if text is None:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UvitError(
            f"{where}: the model's config in the metadata is damaged: {error}"
        ) from None
    return parse_model(config, where=f"{where}: model")
