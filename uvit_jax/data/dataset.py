"""`Dataset`: the records of a data source as inputs of a model, and `ImageDataset`, for images."""

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from uvit_jax.data import image_decoding
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
      image_shape: (H, W, C) of the input `image`.
      segment_shapes: the shapes of further inputs of images or videos, by name.
      features: the text encoder's `TextFeatures`; None if captions are not stored as features.
    """

    image_shape: tuple[int, int, int]
    segment_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    features: TextFeatures | None = None
    _transient: tuple[str, ...] = ("_encode_caption",)  # attributes that are not pickled

    def __init__(self, config: DataConfig, source: Source, tokenizer: Tokenizer | None):
        self.config, self.source, self.tokenizer = config, source, tokenizer
        self.class_names = source.class_names
        self._start()

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if labels are off."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

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
          indices: B of them.
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
      UvitError: if the images differ in size and `config.image_size` is 0.
    """

    _transient = ("_encode_caption", "_cached_pixels", "_cached_fields")

    def __init__(self, config: DataConfig, source: Source, tokenizer: Tokenizer | None):
        shape = (config.image_size,) * 2 if config.image_size else source.native_shape
        if shape is None:
            raise UvitError(
                "the images differ in size, or their source has no native_shape; set image_size to "
                "a number of pixels"
            )
        self.image_shape = (*shape, config.channels)
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
            size=self.config.image_size,
            channels=self.config.channels,
            background=self._background,
        )
        if pixels.shape != self.image_shape:  # an image may differ from the source's native_shape
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
        count, size = len(self.source), math.prod(self.image_shape)
        small = count * size <= CACHE_BYTES
        # Pages of `empty` take no memory before they are written.
        self._cached_pixels = np.empty((count, *self.image_shape), np.uint8) if small else None
        self._cached_fields: list | None = [None] * count if small else None
