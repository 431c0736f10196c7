"""Reads encoders' weights from PyTorch, safetensors or npz files with PyTorch's names."""

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop.files import read_tensors
from uvit_jax.interop.mapping import Entry, imported
from uvit_jax.models.model import Params


def read(path: Path, entries: Iterable[Entry], abstract: Params) -> Params:
    """An encoder's parameters, float32 numpy arrays.

    Args:
      path: `.pth` or `.pt` (read with `weights_only`, needs PyTorch), `.safetensors` or `.npz`.
      entries: the mapping of names. abstract: the shapes.

    Raises:
      UvitError: if the file is missing or damaged, or keys are missing, unexpected or of another
        shape; it names them.
    """
    tensors = read_npz(path) if path.suffix == ".npz" else read_tensors(path)
    # A counter of PyTorch's batch normalisation.
    tensors = {k: v for k, v in tensors.items() if not k.endswith(".num_batches_tracked")}
    return imported(entries, tensors, abstract, str(path))


def read_npz(path: Path, names: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz, or those of `names` that it has. Pickled objects are an error.

    Raises:
      UvitError: if the file is missing, damaged, or one of the arrays is pickled.
    """
    with _npz(path) as file:
        wanted = [k for k in file.files if not names or k in names]
        for name in wanted:
            _check_size(file.zip, name, path.stat().st_size)
        return {k: file[k] for k in wanted}


def npz_names(path: Path) -> set[str]:
    """The names in an npz; UvitError if it is not one."""
    with _npz(path) as file:
        return set(file.files)


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UvitError(f"{path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except Exception as error:  # numpy and zipfile raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UvitError(f"{path} is damaged or not an npz of plain arrays: {reason}") from None


def _check_size(archive: zipfile.ZipFile, name: str, size: int) -> None:
    """Raises ValueError if an array of an npz claims more than a file of `size` bytes can hold."""
    info = archive.NameToInfo.get(f"{name}.npy") or archive.getinfo(name)
    if info.file_size > 1100 * min(info.compress_size, size) + 1100:  # deflate's limit is 1032
        raise ValueError(f"{name} claims {info.file_size} bytes")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        read_header = read.get(version, np.lib.format.read_array_header_2_0)
        shape, _, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{name} claims the shape {shape}, more than the file holds")


def sha256(path: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
