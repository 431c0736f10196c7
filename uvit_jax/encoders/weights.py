"""Reads encoders' weights from PyTorch, safetensors or npz files with PyTorch's names."""

import contextlib
import hashlib
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
        return {k: file[k] for k in file.files if not names or k in names}


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
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UvitError(f"{path} is damaged or not an npz of plain arrays: {error}") from None


def sha256(path: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
