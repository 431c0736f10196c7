"""The samples of a comparison on disk: one file for each method and setting, and notes in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.io import atomic, to_uint8, write_text


class SampleStore:
    """Samples in `folder`, quantised to uint8, so that they score the same whenever read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, method: str, setting: str) -> bool:
        """Whether a method has samples of a setting."""
        return self._path(method, setting).exists()

    def write(self, method: str, setting: str, images: np.ndarray) -> None:
        """Writes images (Q, samples, H, W, C) in [-1, 1], atomically."""
        path = self._path(method, setting)
        with atomic(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, answers=to_uint8(images))

    def read(self, method: str, setting: str) -> np.ndarray:
        """Reads images, float32 in [-1, 1]; UvitError if the file is damaged."""
        path = self._path(method, setting)
        try:
            with np.load(path, allow_pickle=False) as found:
                return found["answers"].astype(np.float32) / 127.5 - 1
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise UvitError(
                f"{path} is damaged ({error}); remove it and rerun to regenerate it"
            ) from None

    def note(self, name: str, value: Any) -> None:
        """Writes plain JSON under a name."""
        path = self.folder / f"{name}.json"
        write_text(path, json.dumps(value, indent=1) + "\n")

    def noted(self, name: str) -> Mapping[str, Any] | None:
        """Reads what `note` wrote, None if nothing; UvitError if it is damaged."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UvitError(
                f"{path} is damaged ({error}); remove it and rerun to regenerate it"
            ) from None

    def _path(self, method: str, setting: str) -> Path:
        return self.folder / method / f"{setting}.npz"
