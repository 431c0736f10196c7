"""What a comparison keeps: a file of pictures and their times for every method and setting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.io import to_uint8, write_text


class Store:
    """Pictures in `folder`, as the 256 levels that files have: judged the same now and later."""

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, method: str, setting: str) -> bool:
        """Whether there are answers of a method in a setting."""
        return self._path(method, setting).exists()

    def write(self, method: str, setting: str, answers: np.ndarray) -> None:
        """Keeps answers (Q, samples, H, W, C) in [-1, 1]; the file appears whole or not at all."""
        path = self._path(method, setting)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, answers=to_uint8(answers))
        partial.rename(path)

    def read(self, method: str, setting: str) -> np.ndarray:
        """Answers, float32 in [-1, 1]; UvitError if the file is damaged."""
        path = self._path(method, setting)
        try:
            with np.load(path, allow_pickle=False) as found:
                return found["answers"].astype(np.float32) / 127.5 - 1
        except Exception as error:  # of a zip that is none, numpy and zipfile raise many things
            raise UvitError(
                f"{path} is damaged ({error}); remove it, and it is made again"
            ) from None

    def note(self, name: str, value: Any) -> None:
        """Keeps plain JSON under a name."""
        path = self.folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(value, indent=1) + "\n")

    def noted(self, name: str) -> Mapping[str, Any] | None:
        """What `note` kept, None if nothing; UvitError if it is damaged."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UvitError(
                f"{path} is damaged ({error}); remove it, and it is made again"
            ) from None

    def _path(self, method: str, setting: str) -> Path:
        return self.folder / method / f"{setting}.npz"
