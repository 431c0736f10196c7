"""Latents of images of several sizes: a folder of latents for each size, as one data set.

`experiments.encode_latents` writes `OUT/256x256`, `OUT/192x320`, …; `config.data.path` is OUT.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.latent_shards import LatentIndex
from uvit_jax.data.shards import open_index
from uvit_jax.data.sources.latents import LatentDataset, LatentSource
from uvit_jax.data.sources.source import Source
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path


class SizedLatentDataset(Dataset):
    """Folders of latents of different sizes as one data set, whose buckets they are.

    Attributes:
      parts: a `LatentDataset` for each of `sizes`.
      index: of the first one.
    """

    def __init__(
        self, config: DataConfig, source: "SizedLatentSource", tokenizer: Tokenizer | None
    ):
        self.parts = [
            LatentDataset(dataclasses.replace(config, path=str(part.folder)), part, tokenizer)
            for part in source.parts
        ]
        first = self.parts[0]
        self.index, self.features, self.image_shape = first.index, first.features, first.image_shape
        super().__init__(config, source, tokenizer)
        self.sizes = tuple(part.image_shape[:2] for part in self.parts)
        self.buckets = np.repeat(np.arange(len(self.parts)), [len(p) for p in self.parts])

    def one_size(self, size: tuple[int, int]) -> LatentDataset:
        return self.parts[self.sizes.index(size)]

    def shapes_at(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        return {"image": self.one_size(size).image_shape}

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        return self.parts[record["part"]].decode(record)

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        located = [self.source.locate(index) for index in indices]
        return self.parts[located[0][0]].batch([row for _, row in located], bits)


class SizedLatentSource(Source):
    """The records of several folders of latents, one after another, with the number of their folder
    as `part`.

    Raises:
      UvitError: as `LatentSource`, or if the folders differ in more than their size.
    """

    label_names = LatentSource.label_names
    dataset_class = SizedLatentDataset

    def __init__(self, config: DataConfig):
        folders = latent_folders(local_path(config.path))
        self.parts = [LatentSource(dataclasses.replace(config, path=str(f))) for f in folders]
        first = self.parts[0].index
        for part in self.parts[1:]:
            equal = ("scale", "autoencoder", "class_names", "words", "labels", "captions")
            if changed := [k for k in equal if getattr(part.index, k) != getattr(first, k)]:
                raise UvitError(
                    f"{part.folder} and {self.parts[0].folder} differ in {', '.join(changed)}; "
                    "encode both with one command"
                )
        shapes = [part.index.shape for part in self.parts]
        if len(set(shapes)) < len(shapes):
            raise UvitError(f"{config.path} has two folders of latents of one size; remove one")
        self.class_names = self.parts[0].class_names
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """The number of a record's folder, and the record's index in it."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, int(index - (self._ends[part - 1] if part else 0))

    def __getitem__(self, index: int) -> dict:
        part, row = self.locate(index)
        return {**self.parts[part][row], "part": part}

    def tokenizer(self) -> Tokenizer:
        return self.parts[0].tokenizer()


def latent_folders(root: Path) -> list[Path]:
    """The folders of latents at a path: it itself, or its sub-folders of several sizes, in the
    order of `sizes`."""
    names = (LatentIndex.index_name, LatentIndex.plan_name)

    def has_latents(folder: Path) -> bool:
        return any((folder / name).is_file() for name in names)

    if not root.is_dir() or has_latents(root):
        return [root]
    folders = sorted(f for f in root.iterdir() if has_latents(f))
    if not folders:
        return [root]
    sizes = open_index(LatentIndex, folders[0]).source.get("sizes", [])
    order = {size_folder(root, size): i for i, size in enumerate(sizes)}
    return sorted(folders, key=lambda folder: order.get(folder, len(order)))


def size_folder(root: Path, size: Sequence[int]) -> Path:
    """The folder of the latents of one of several sizes (H, W) of images."""
    return root / f"{size[0]}x{size[1]}"


def check_one_size(root: Path) -> None:
    """Raises UvitError if a path holds folders of latents of several sizes, naming them."""
    folders = latent_folders(root)
    if len(folders) > 1:
        listed = ", ".join(map(str, folders))
        raise UvitError(f"{root} has latents of several sizes; run the command for each: {listed}")


def images_of(folder: Path, data: Dataset) -> Dataset:
    """The images that a folder of latents was encoded from, of all images of its source."""
    sizes = {size_folder(folder.parent, size): size for size in data.sizes}
    return data if data.buckets is None else data.one_size(sizes[folder])
