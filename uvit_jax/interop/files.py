"""Reading and writing files of tensors: safetensors, and PyTorch's with `weights_only`."""

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
from uvit_jax.models.model import Model, Params
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.parallel.sharding import path_string

# In the metadata of our own files: the configs of model and run, and the vocabulary, as JSON.
CONFIG_KEY, RUN_KEY, VOCABULARY_KEY = "uvit_jax.model", "uvit_jax.run", "uvit_jax.vocabulary"


def read_tensors(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file by name; PyTorch's as float32.

    Args:
      raw: of a DiT's training file, which holds both, the network itself and not its average.

    Raises:
      UvitError: if the file is missing, damaged, of another kind, or holds anything but tensors.
    """
    if not path.is_file():
        raise UvitError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        try:
            # PyTorch's bfloat16 is no numpy type of its own; ml_dtypes, below JAX, makes it one.
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise UvitError(f"{path} is no whole safetensors file: {error}") from None
    if path.suffix in (".pth", ".pt"):
        return read_torch(path, raw=raw)
    raise UvitError(f"{path}: expected a .safetensors, .pth or .pt file, or a workdir")


def read_torch(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file, whatever its name ends in; see `read_tensors`.

    No code in it is run: it is read with `weights_only`, to which `argparse.Namespace`, a bare
    record in which DiT's training files keep their flags, is the only class added.
    """
    try:
        import torch
    except ImportError:
        raise UvitError(f"reading {path} needs PyTorch: pip install 'uvit-jax[interop]'") from None
    try:
        # Files of before PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises whatever the damage provokes
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
        reason = "it is cut short" if archive and not mapped else _reason(error)
        raise UvitError(f"{path} cannot be read as weights only: {reason}") from None
    if isinstance(stored, Mapping) and {"model", "ema"} & set(stored):
        name = "model" if raw else "ema"
        if name not in stored:
            raise UvitError(f"{path} is a training file without {name!r}; it holds {[*stored]}")
        stored = stored[name]
    if not isinstance(stored, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in stored.values()
    ):
        raise UvitError(f"{path} is no flat dict of tensors; give the file of the (EMA) network")
    return {key: tensor.float().numpy() for key, tensor in stored.items()}


def _reason(error: Exception) -> str:
    """Why torch refused a file, in one clause: what the file holds, and not torch's advice, which
    is to trust it."""
    if found := re.search(r"\bGLOBAL\s+([\w.]+)", str(error)):
        return f"it holds {found[1]}, which is no tensor"
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    # The advice stands in front of what is the matter.
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    text = text.removeprefix("Weights only load failed.").strip()
    if found := re.match(r"Unsupported operand (\d+)", text):
        return f"it is no file of PyTorch's tensors (byte {found[1]} is none of its operations)"
    return re.split(r"[.:]?\s*\n|\.\s|\.$", text)[0] or type(error).__name__


def save_safetensors(
    path: str | os.PathLike,
    model: Model,
    params: Params,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `params` with the model's config in the metadata; `uvit_jax.load` reads it back.

    The file appears whole or not at all. Names are our own paths, `a/b/c`; values bit for bit.
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    tensors = {path_string(p): np.asarray(a) for p, a in flat}
    config = {CONFIG_KEY: json.dumps(to_dict(model.config))}
    write_tensors(Path(path), tensors, {**(metadata or {}), **config})


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors`, `.pth` or `.pt` file that appears whole or not at all.

    Raises:
      UvitError: if the name ends otherwise, or PyTorch is needed and not installed.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UvitError(f"{path} must end in .safetensors, .pth or .pt")
    partial = path.with_name(path.name + ".partial")
    # Both formats write a transposed view's memory, not its values.
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    try:
        if path.suffix == ".safetensors":
            safetensors.numpy.save_file(tensors, partial, dict(metadata or {}) or None)
        else:
            try:
                import torch
            except ImportError:
                raise UvitError(
                    f"writing {path} needs PyTorch: pip install 'uvit-jax[interop]'; or give a "
                    "name that ends in .safetensors"
                ) from None
            torch.save({key: torch.tensor(a) for key, a in tensors.items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, str]:
    """What stands beside the tensors of a whole safetensors file; of another file, nothing."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def own_config(metadata: Mapping[str, str], where: str) -> ModelConfig | None:
    """The model config in the metadata of a file of ours, or None if it is another's file."""
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
