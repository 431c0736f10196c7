"""The trained networks of the package, by name.

Each is one safetensors file of our own form, in bfloat16, with the configs of model and run and the
vocabulary; `manifest.json` has its recipe and metrics. `tools/pack_network.py` adds one.
"""

import os
from pathlib import Path
from typing import Any

from uvit_jax.errors import UvitError, nearest
from uvit_jax.io import read_json

FOLDER = Path(__file__).parent
SCHEME = "shipped:"
LIMIT = 20_000_000
"""Bytes of all files together."""


def manifest(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The networks by name: `about`, `command`, `step`, `parameters`, `bytes`, `sha256`,
    `metrics`."""
    file = folder / "manifest.json"
    return read_json(file) if file.exists() else {}


def shipped_name(path: str | os.PathLike) -> str | None:
    """The name in `shipped:NAME`, or None for other paths.

    Raises:
      UvitError: if there is no such network.
    """
    text = os.fspath(path)
    if not text.startswith(SCHEME):
        return None
    name = text.removeprefix(SCHEME)
    if name not in (known := manifest()):
        raise UvitError(f"{text}: the package has no such network{nearest(name, known)}")
    return name


def file_of(name: str) -> Path:
    """The file of a network of the manifest."""
    return FOLDER / f"{name}.safetensors"
