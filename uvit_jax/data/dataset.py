"""`Dataset`: the records of a data source as inputs of a model, and `ImageDataset`, for images."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from uvit_jax.data import image_decoding
from uvit_jax.data.buckets import nearest_sizes
from uvit_jax.data.data_config import DataConfig, parse_colour
from uvit_jax.data.sources.source import Source
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.vocabulary import TextFeatures
from uvit_jax.errors import UvitError

CACHE_BYTES = 256 * 2**20
"""Data sets whose decoded images take no more than this are decoded once and kept in memory."""


class Dataset:
    """Base class of opened data sets, see `pipeline.dataset`. Thread-safe, and can be pickled.

    Attributes:
      config: the `DataConfig` it was opened with.
      source: random access to its records.
      class_names: the classes in the order of their labels; empty if labels are off.
      tokenizer: of the captions; None if text is off.
      image_shape: (H, W, C) of the input `image`; of several sizes, the first.
      segment_shapes: the shapes of further inputs of images or videos, by name.
      sizes: (H, W) of its images, of which the first is `image_shape`'s.
      buckets: of several sizes, the index in `sizes` of each example's, int64 (N,); None if there
        is one size.
      features: the text encoder's `TextFeatures`; None if captions are not stored as features.
    """

    image_shape: tuple[int, int, int]
    segment_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    buckets: np.ndarray | None = None
    features: TextFeatures | None = None
    _transient: tuple[str, ...] = ("_encode_caption",)  # attributes that are not pickled

    def __init__(self, config: DataConfig, source: Source, tokenizer: Tokenizer | None):
        self.config, self.source, self.tokenizer = config, source, tokenizer
        self.class_names = source.class_names
        self.sizes = config.sizes or (self.image_shape[:2],)
        if len(config.sizes) > 1:
            if source.shapes is None:
                raise UvitError(
                    f"sizes: {config.name!r} does not support several sizes; set one, or image_size"
                )
            self.buckets = nearest_sizes(source.shapes, config.sizes)
        self._start()

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if labels are off."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def size_of(self, index: int) -> tuple[int, int]:
        """(H, W) of an example."""
        return self.sizes[0 if self.buckets is None else self.buckets[index]]

    def one_size(self, size: tuple[int, int]) -> "Dataset":
        """The examples of one of `sizes` as a data set of one size; all examples, cropped to it, if
        none is of this size."""
        if self.buckets is None:
            return self
        rows = np.flatnonzero(self.buckets == self.sizes.index(size))
        source = SourceSubset(self.source, rows if len(rows) else np.arange(len(self)))
        return type(self)(dataclasses.replace(self.config, sizes=(size,)), source, self.tokenizer)

    def by_size(self) -> dict[tuple[int, int], "Dataset"]:
        """The data set of each size that examples have, see `one_size`."""
        used = [0] if self.buckets is None else np.unique(self.buckets).tolist()
        return {self.sizes[i]: self.one_size(self.sizes[i]) for i in used}

    def counts(self) -> dict[tuple[int, int], int]:
        """The number of examples of each size."""
        if self.buckets is None:
            return {self.sizes[0]: len(self)}
        counts = np.bincount(self.buckets, minlength=len(self.sizes)).tolist()
        return dict(zip(self.sizes, counts, strict=True))

    def shapes_at(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """The shapes of the noisy images or videos of examples of a size (H, W), by input."""
        return {"image": (*size, self.config.channels)}

    def with_tokenizer(self, tokenizer: Tokenizer | None) -> "Dataset":
        """The same data with the tokenizer of others, such as those that a model was trained on."""
        return type(self)(self.config, self.source, tokenizer)

    def label(self, record: dict) -> int | None:
        """A record's label; None if labels are off.

        Raises:
          UvitError: if it is not the index of a class, such as the -1 of a split whose labels are
            not published.
        """
        if not self.config.labels:
            return None
        label = record.get("label")
        if not isinstance(label, int | np.integer) or not 0 <= label < self.num_classes:
            raise UvitError(
                f"{record['name']} has label={label}; it must be an index into the "
                f"{self.num_classes} class_names: choose another split, or set "
                "config.data.labels=''"
            )
        return int(label)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """A record as inputs of a model, without augmentation and without a batch dimension."""
        raise NotImplementedError

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The records of these indices as a batch of inputs.

        Args:
          indices: B of them, of one bucket.
          bits: 64 random bits per row, which decide on its augmentation; None for none.
        """
        raise NotImplementedError

    def _start(self) -> None:
        """Sets the attributes that are not pickled."""
        if self.tokenizer is not None:
            encode = functools.partial(
                self.tokenizer.encode, length=self.config.text_length, truncate=True
            )
            self._encode_caption = functools.lru_cache(2**16)(encode)

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k not in self._transient}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()


class ImageDataset(Dataset):
    """A data set whose records are encoded images. Small ones are decoded once and kept in memory.

    Raises:
      UvitError: if the images differ in size and neither `config.image_size` nor `sizes` is set.
    """

    _transient = ("_encode_caption", "_cached_pixels", "_cached_fields")

    def __init__(self, config: DataConfig, source: Source, tokenizer: Tokenizer | None):
        self.image_shape = (*first_size(config, source), config.channels)
        self._background = parse_colour(config.background)
        super().__init__(config, source, tokenizer)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """A record as inputs of a model, without augmentation.

        Returns:
          `image` float32 (H, W, C) in [-1, 1]; `label` int32 () if labels are on; `text` int32
          (text_length,) if text is on, the first caption, truncated; and the record's `inputs`.

        Raises:
          UvitError: if the image is broken, naming it.
        """
        inputs = self._inputs(self._decode_pixels(record), self._fields(record))
        return {**inputs, "image": image_decoding.to_float(inputs["image"])}

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The records of these indices as a batch of inputs, `image` float32 (B, H, W, C).

        Args:
          indices: B of them.
          bits: 64 random bits per row, which decide on mirroring (if `config.flip`) and choose one
            of several captions; None for unmirrored images and first captions.

        Raises:
          UvitError: if an image is broken, naming it.
        """
        rows = []
        bits = [0] * len(indices) if bits is None else bits
        for index, row_bits in zip(indices, bits, strict=True):
            row = self._inputs(*self._load(index), caption=row_bits % 2**32)
            if self.config.flip and row_bits >> 63:
                row["image"] = row["image"][:, ::-1]
            rows.append(row)
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return {**batch, "image": image_decoding.to_float(batch["image"])}

    def _load(self, index: int) -> tuple[np.ndarray, tuple]:
        """A record's pixels, uint8 (H, W, C), and its other fields, see `_fields`."""
        if self._cached_fields is not None and self._cached_fields[index] is not None:
            return self._cached_pixels[index], self._cached_fields[index]
        record = self.source[index]
        pixels, fields = self._decode_pixels(record), self._fields(record)
        if self._cached_fields is not None:
            self._cached_pixels[index] = pixels
            # Written last: it tells other threads that the pixels are there.
            self._cached_fields[index] = fields
        return pixels, fields

    def _decode_pixels(self, record: dict) -> np.ndarray:
        pixels = image_decoding.decode(
            record["image"],
            record["name"],
            sizes=self.config.target_sizes,
            channels=self.config.channels,
            background=self._background,
        )
        # Without a size to crop to, an image may differ from the source's native_shape.
        if not self.config.target_sizes and pixels.shape != self.image_shape:
            raise UvitError(
                f"the image {record['name']} has shape {pixels.shape}, not {self.image_shape}; "
                "set image_size"
            )
        return pixels

    def _inputs(self, pixels: np.ndarray, fields: tuple, caption: int = 0) -> dict[str, np.ndarray]:
        """The inputs of one record, `image` still uint8, with the caption of this number."""
        label, captions, further = fields
        inputs = {**(further or {}), "image": pixels}
        if self.config.labels:
            inputs["label"] = np.int32(label)
        if self.tokenizer is not None:
            text = captions[caption % len(captions)] if captions else ""
            inputs["text"] = self._encode_caption(text)
        return inputs

    def _fields(self, record: dict) -> tuple:
        """A record's label, captions and further inputs, None where it has none."""
        label, captions = self.label(record), record.get("captions")
        if self.tokenizer is not None and (captions is None or isinstance(captions, str)):
            raise UvitError(
                f"{record['name']} has captions={captions!r}; they must be a tuple of texts, or "
                "set config.data.text=False"
            )
        return label, captions, record.get("inputs")

    def _start(self) -> None:
        super()._start()
        count, small = len(self.source), is_small(self, len(self.source))
        self._cached_pixels: np.ndarray | list | None = None
        if small and self.buckets is not None:
            self._cached_pixels = [None] * count
        elif small:  # pages of `empty` take no memory before they are written
            self._cached_pixels = np.empty((count, *self.image_shape), np.uint8)
        self._cached_fields: list | None = [None] * count if small else None


class SourceSubset(Source):
    """The records of some rows of another source."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source, self._rows = source, rows
        self.class_names, self.captions = source.class_names, source.captions

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self._source[int(self._rows[index])]


def first_size(config: DataConfig, source: Source) -> tuple[int, int]:
    """(H, W) of a data set's images; of several sizes, the first.

    Raises:
      UvitError: if the images differ in size and the config sets none.
    """
    size = (*config.target_sizes, source.native_shape)[0]
    if size is None:
        raise UvitError(
            "the images differ in size, or their source has no native_shape; set image_size to a "
            "number of pixels, or sizes to several (height, width)"
        )
    return size


def is_small(data: Dataset, count: int) -> bool:
    """Whether so many decoded images of a data set are kept in memory."""
    sizes = data.config.target_sizes or (data.image_shape[:2],)
    return count * max(map(math.prod, sizes)) * data.image_shape[-1] <= CACHE_BYTES
