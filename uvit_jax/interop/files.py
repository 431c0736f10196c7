"""Reading and writing files of tensors: safetensors, and PyTorch's with `weights_only`."""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.interop import mapping
from uvit_jax.models.config import parse_model
from uvit_jax.models.model import Model, Params, build
from uvit_jax.parallel.sharding import path_string

CONFIG_KEY = "uvit_jax.model"  # in the safetensors' metadata: the model config as JSON


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file, float32, by name.

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
        return _read_torch(path)
    raise UvitError(f"{path}: expected a .safetensors, .pth or .pt file, or a workdir")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UvitError(f"reading {path} needs PyTorch: pip install 'uvit-jax[interop]'") from None
    try:
        # Files of before PyTorch 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises whatever the damage provokes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UvitError(f"{path} cannot be read as weights only: {reason}") from None
    if not isinstance(tensors, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in tensors.values()
    ):
        raise UvitError(f"{path} is no flat dict of tensors; give the file of the (EMA) network")
    return {key: tensor.float().numpy() for key, tensor in tensors.items()}


def save_safetensors(path: str | os.PathLike, model: Model, params: Params) -> None:
    """Writes `params` with the model's config in the metadata; `uvit_jax.load` reads it back.

    The file appears whole or not at all. Names are our own paths, `a/b/c`; values bit for bit.
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    # safetensors writes a transposed view's memory, not its values.
    tensors = {path_string(p): np.ascontiguousarray(a) for p, a in flat}
    metadata = {CONFIG_KEY: json.dumps(to_dict(model.config))}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    safetensors.numpy.save_file(tensors, partial, metadata)
    partial.replace(path)


def load_own(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[Model, Params] | None:
    """The model of a file that `save_safetensors` wrote, or None if it is another's file."""
    if path.suffix != ".safetensors":
        return None
    with safetensors.safe_open(path, framework="numpy") as file:
        config = (file.metadata() or {}).get(CONFIG_KEY)
    if config is None:
        return None
    try:
        config = json.loads(config)
    except json.JSONDecodeError as error:
        raise UvitError(f"{path}: the model's config in the metadata is damaged: {error}") from None
    model = build(parse_model(config, where=f"{path}: model"))
    paths = [path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(model.abstract_params)]
    entries = [mapping.Entry(p, p) for p in paths]
    return model, mapping.imported(entries, tensors, model.abstract_params, str(path))
