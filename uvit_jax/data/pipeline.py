"""From a `DataConfig` to batches of numpy arrays, the same global batches on any number of hosts.

    data = dataset(config)                               # random access, classes, tokenizer
    for batch in batches(data, batch_size=64, seed=0):   # {"image", "index", ["label", "text"]}

Row r of the global batch k is a pure function of (seed, k * batch_size + r): which record it is,
and whether it is mirrored. Hosts only divide the rows among themselves. The state of the iterator
is therefore one number, the batches taken so far, and it can be restored on another host count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import WORLDS, DataConfig, colour
from uvit_jax.data.sources.folder import FolderSource
from uvit_jax.data.sources.tfds import EmojiSource, TfdsSource
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError

if TYPE_CHECKING:
    from uvit_jax.data.batches import Batches
    from uvit_jax.data.sources.latents import LatentData
    from uvit_jax.data.sources.worlds.world_source import SubjectData

SOURCES = {"emoji": EmojiSource, "folder": FolderSource}
"""Random access to records, by `DataConfig.name`; every other name is a TFDS data set's."""
CACHE_BYTES = 256 * 2**20
"""Data sets whose decoded pictures are smaller than this are decoded once and kept in memory."""


_NOTES = ("label", "captions", "inputs")  # what is kept of a record, besides its picture


class Dataset:
    """A data set, opened. Made by `dataset`; safe to share between threads.

    Attributes:
      config: what it was made from.
      source: random access to records, with `len`. A record is a dict: `image` (encoded bytes),
        `name`, and where they apply `label` (int), `captions` (texts), `inputs` (arrays of further
        segments by name, as the model takes them), and the source's own.
      class_names: the classes in the order of their labels; empty if labels are off.
      tokenizer: a `Tokenizer`, or None if text is off.
      image_shape: (H, W, C) of what `decode` makes.
      features: None; only latents bring a text encoder's features.
    """

    features = None

    def __init__(self, config: DataConfig, source, tokenizer: Tokenizer | None):
        self.config, self.source, self.tokenizer = config, source, tokenizer
        self.class_names: tuple[str, ...] = source.class_names
        shape = (config.image_size,) * 2 if config.image_size else source.native_shape
        if shape is None:
            raise UvitError("the pictures differ in size: set image_size to a number of pixels")
        self.image_shape = (*shape, config.channels)
        self._background = colour(config.background)
        self._start_cache()

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 if labels are off."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """What the network sees of a record, without augmentation.

        Returns:
          `image` float32 (H, W, C) in [-1, 1]; `label` int32 () if labels are on; `text` int32
          (text_length,) if text is on: the first caption, cut where it is too long; and what the
          record has in `inputs`.

        Raises:
          UvitError: if the picture is broken, naming it.
        """
        row = self._row(self._pixels(record), *map(record.get, _NOTES))
        return {**row, "image": image_decoding.to_float(row["image"])}

    def row(self, index: int, number: int = 0) -> dict[str, np.ndarray]:
        """Record `index` as `decode` would give it, but with `image` still uint8.

        Of several captions, it is the one of this number (modulo their count).
        """
        if self._kept is not None and self._notes[index] is not None:
            pixels, notes = self._kept[index], self._notes[index]
        else:
            record = self.source[index]
            pixels, notes = self._pixels(record), tuple(map(record.get, _NOTES))
            if self._kept is not None:
                self._kept[index] = pixels
                # Written last: it tells other threads that the pixels are there.
                self._notes[index] = notes
        return self._row(pixels, *notes, number)

    def batch(
        self, indices: Sequence[int], chances: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The records `indices` as a batch, `image` float32 (B, H, W, C) in [-1, 1].

        Args:
          indices: B of them. chances: 64 random bits a row, which decide on mirroring and on one of
            several captions; None for no augmentation.
        """
        if chances is None:
            rows = [self.row(index) for index in indices]
        else:
            rows = [self.row(i, number=c % 2**32) for i, c in zip(indices, chances, strict=True)]
            for row, chance in zip(rows, chances, strict=True):
                if self.config.flip and chance >> 63:
                    row["image"] = row["image"][:, ::-1]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return {**batch, "image": image_decoding.to_float(batch["image"])}

    def _pixels(self, record: dict) -> np.ndarray:
        pixels = image_decoding.decode(
            record["image"],
            record["name"],
            size=self.config.image_size,
            channels=self.config.channels,
            background=self._background,
        )
        if pixels.shape != self.image_shape:  # the size in a folder or in TFDS was a promise
            raise UvitError(
                f"the picture {record['name']} is {pixels.shape}, not {self.image_shape}; "
                f"set image_size"
            )
        return pixels

    def _row(self, pixels, label, captions, inputs, number: int = 0) -> dict[str, np.ndarray]:
        row = {**(inputs or {}), "image": pixels}
        if self.config.labels:
            row["label"] = np.int32(label)
        if self.tokenizer is not None:
            row["text"] = self._encode(captions[number % len(captions)] if captions else "")
        return row

    def _start_cache(self) -> None:
        count, size = len(self.source), math.prod(self.image_shape)
        small = count * size <= CACHE_BYTES
        # Pages of `empty` cost nothing before they are written.
        self._kept = np.empty((count, *self.image_shape), np.uint8) if small else None
        self._notes = [None] * count if small else None
        if self.tokenizer is not None:
            encode = functools.partial(
                self.tokenizer.encode, length=self.config.text_length, truncate=True
            )
            self._encode = functools.lru_cache(2**16)(encode)

    def __getstate__(self) -> dict:
        # For grain's worker processes, each of which starts with an empty cache.
        return {k: v for k, v in vars(self).items() if k not in ("_kept", "_notes", "_encode")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start_cache()


def dataset(config: DataConfig) -> Dataset | LatentData | SubjectData:
    """Opens a data set. The embedded emoji are prepared on first use; nothing is ever downloaded.

    Raises:
      UvitError: if the data set is unknown, not prepared, empty or broken, or lacks what the config
        asks for.
    """
    if config.name == "latents":
        from uvit_jax.data.sources.latents import LatentData

        return LatentData(config, _vocabulary(config.vocabulary))
    if config.name in WORLDS:
        from uvit_jax.data.sources.worlds.world_source import SubjectData

        return SubjectData(config, _vocabulary(config.vocabulary))
    source = SOURCES.get(config.name, TfdsSource)(config)
    tokenizer = None
    if config.text:
        tokenizer = _vocabulary(config.vocabulary) or Tokenizer.from_captions(source.captions or ())
        # Known captions are checked here; those of a large TFDS set are cut where too long.
        for caption in source.captions or ():
            try:
                tokenizer.encode(caption, config.text_length)
            except UvitError as error:
                raise UvitError(f"text_length {config.text_length} is too small: {error}") from None
    return Dataset(config, source, tokenizer)


def batches(
    data: DataConfig | Dataset | LatentData | SubjectData,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    train: bool = True,
    start: int = 0,
) -> Batches:
    """The global batches, or this host's rows of them.

    Args:
      data: a config, or what `dataset` made of it (which opens and caches only once).
      batch_size: B, rows of the global batch, over all hosts.
      seed: decides order and augmentation; not negative.
      rows: the numbers, in [0, B), of the rows of every global batch that this host yields, in this
        order; None for all of them.
      train: True for endless batches, a new order every epoch, across whose ends batches run, with
        augmentation. False for one pass in the source's order without augmentation; the last batch
        is filled up with the first records, whose `index` is -1.
      start: the first batch to yield: the training step, when one batch is taken a step.

    Returns:
      An iterator with `get_state()`, `set_state(state)` and `close()`. The state is
      `{"next_index": k}`, with k the batches taken so far, whatever the rows. An item is
      a dict of numpy arrays, b rows: `image` float32 (b, H, W, C), in [-1, 1] unless they are
      latents; `index` int64 (b,), the record's index in `source`; `label` int32 (b,) if labels are
      on; `text` int32 (b, text_length) if text is on, float32 (b, N, F) with features. Totems and
      emoji scenes have references as well, see `uvit_jax.data.sources.worlds.world_source`.

    Raises:
      UvitError: if an argument is impossible; from `next`, if a picture is broken.
    """
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    rows = range(batch_size) if rows is None else rows
    if not rows or not 0 <= min(rows) <= max(rows) < batch_size:
        raise UvitError(f"rows of a batch of {batch_size} must lie in [0, {batch_size}): {rows}")
    if seed < 0:
        raise UvitError(f"the data seed must not be negative, got {seed}")
    from uvit_jax.data.batches import Batches, Rows  # grain takes a second to import

    if isinstance(data, DataConfig):
        data = dataset(data)
    steps = Rows(data, batch_size=batch_size, seed=seed, rows=rows, train=train)
    return Batches(steps, start=start)


def _vocabulary(path: str) -> Tokenizer | None:
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return Tokenizer.from_json(file.read())
    except OSError as error:
        raise UvitError(f"cannot read the vocabulary {path}: {error.strerror}") from None
