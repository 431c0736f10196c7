"""Reads and writes tensor files: safetensors, and PyTorch's with `weights_only`."""

import argparse
import collections
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import atomic
from uvit_jax.models.model import Model, Params
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.parallel.sharding import path_string
from uvit_jax.paths import local_path

# In the metadata of our own files: the configs of model and run, and the vocabulary, as JSON.
CONFIG_KEY, RUN_KEY, VOCABULARY_KEY = "uvit_jax.model", "uvit_jax.run", "uvit_jax.vocabulary"


_DTYPES = {  # of safetensors; bfloat16 and float8 are numpy types by ml_dtypes, a dependency of JAX
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BOOL": np.bool_},
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
}
# What compiling, sharding and checkpointing put into names, anywhere.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_STATE_DICTS = ("state_dict", "model_state_dict", "module", "params_ema", "params")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def read_tensors(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file by name; PyTorch's floats as float32.

    Names lose what wraps them: `module.` before all of them, `_orig_mod.` anywhere. Of a file that
    is one of several shards (`x-00001-of-00002.safetensors`), all are read.

    Args:
      raw: of a DiT training file, which holds both, the raw parameters instead of their EMA.

    Raises:
      UvitError: if the file or a shard is missing, damaged, of another kind, or holds anything but
        tensors.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in _shards(path):
        if not file.is_file():
            of = f", a shard of the weights in {path.parent}" if file != path else ""
            raise UvitError(f"{file}{of} does not exist")
        if file.suffix == ".safetensors":
            part = _read_safetensors(file)
        elif file.suffix in (".pth", ".pt"):
            part = _read_torch(file, raw=raw)
        else:
            raise UvitError(f"{file}: expected a .safetensors, .pth or .pt file, or a workdir")
        if twice := sorted(tensors.keys() & part):
            raise UvitError(f"{file} has the tensor {twice[0]!r}, as another shard does")
        tensors |= part
    return _unwrapped(tensors, path)


def _shards(path: Path) -> list[Path]:
    """The files of which `path` is one."""
    match = _SHARD.fullmatch(path.stem)
    if not match or not path.is_file():
        return [path]
    name, _, count = match.groups()
    if not 1 <= int(count) <= 9999:
        return [path]
    return [
        path.with_name(f"{name}-{i:05d}-of-{count}{path.suffix}") for i in range(1, int(count) + 1)
    ]


def _unwrapped(tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Tensors by their names in the network itself."""
    # A counter of PyTorch's AveragedModel, beside the network `module`.
    names = {key: _WRAPPERS.sub("", key) for key in tensors if key != "n_averaged"}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    if len(set(names.values())) < len(names):
        twice = collections.Counter(names.values()).most_common(1)[0][0]
        raise UvitError(f"{path} has the tensor {twice!r} twice, once within a wrapper")
    return {name: tensors[key] for key, name in names.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    try:
        # Compares the sizes in the header with the file's before anything is allocated.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            start = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                if entry["dtype"] not in _DTYPES:
                    raise UvitError(
                        f"{path}: {name} is of dtype {entry['dtype']}, which is not supported; "
                        "convert it to F32, F16 or BF16"
                    )
                first, last = entry["data_offsets"]
                file.seek(8 + start + first)
                data = bytearray(file.read(last - first))
                array = np.frombuffer(data, np.dtype(_DTYPES[entry["dtype"]]))
                tensors[name] = array.reshape(entry["shape"])
    except UvitError:
        raise
    except Exception as error:  # of safetensors, JSON or numpy, for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UvitError(f"{path} is not a complete safetensors file: {reason}") from None
    return tensors


def read_torch(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file with any suffix; see `read_tensors`.

    No code in it is executed: it is read with `weights_only`, and the only class allowed besides
    tensors is `argparse.Namespace`, in which DiT's training files store their flags.
    """
    return _unwrapped(_read_torch(path, raw=raw), path)


def _read_torch(path: Path, *, raw: bool = False) -> dict[str, np.ndarray]:
    """The same by the names in the file."""
    try:
        import torch
    except ImportError:
        raise UvitError(f"reading {path} needs PyTorch: pip install 'uvit-jax[interop]'") from None
    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be memory-mapped.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive_file:
                if sum(i.file_size for i in archive_file.infolist()) > path.stat().st_size:
                    raise ValueError("it is compressed, or claims more than it holds")
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
    while isinstance(stored, Mapping) and not _flat(stored, torch):
        inner = next((k for k in _STATE_DICTS if isinstance(stored.get(k), Mapping)), None)
        if inner is None:
            break
        stored = stored[inner]
    if not isinstance(stored, Mapping) or not _flat(stored, torch):
        raise UvitError(f"{path} is not a flat dict of tensors; give the file of the (EMA) network")
    return {key: _array(path, key, tensor) for key, tensor in stored.items()}


def _flat(stored: Mapping, torch: Any) -> bool:
    return all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in stored.items())


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A PyTorch tensor as numpy array, floats as float32, others in their own type."""
    try:
        tensor = tensor.detach()
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("its shape claims more values than the file holds")
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # sparse, quantised and meta tensors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UvitError(
            f"{path}: {name} is not a plain tensor ({reason}); save it dense and unquantised"
        ) from None


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
    write_tensors(local_path(path), tensors, {**(metadata or {}), **config})


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
