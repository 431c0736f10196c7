"""`Source`: what a data source provides. To add one, subclass it in a file of its own here, and
enter the class in `SOURCES` of `registry.py`."""

import abc
from collections.abc import Sequence
from typing import ClassVar

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.tokenizer import Tokenizer


class Source(abc.ABC):
    """Random access to the records of a data set: `len(source)` and `source[i]`.

    `dataset.ImageDataset` turns records into a model's inputs. It decodes, resizes and mirrors
    images, encodes captions and keeps small data sets in memory; a source does none of that. A
    source must be thread-safe and picklable (for `config.workers` and `config.processes`).

    Attributes:
      splits: the values of `config.split`; None if the source checks them itself.
      label_names: the values of `config.labels` besides ""; None if the source checks them itself.
      class_names: the classes in the order of their labels; empty if `config.labels` is.
      captions: all captions that records can have, from which the tokenizer's words are taken and
        whose lengths are checked at once; None if they are too many to list.
      native_shape: (H, W) if all images have the same size; None if `config.image_size` must be
        set.
      shapes: (H, W) of each record's image or video, upright, if `config.sizes` has several sizes;
        None from sources that do not support them.
      dataset_class: a subclass of `dataset.Dataset`, for sources whose records are not encoded
        images; None for `dataset.ImageDataset`.
    """

    splits: ClassVar[tuple[str, ...] | None] = ("train",)
    label_names: ClassVar[tuple[str, ...] | None] = ()
    class_names: tuple[str, ...] = ()
    captions: Sequence[str] | None = None
    native_shape: tuple[int, int] | None = None
    shapes: Sequence[tuple[int, int]] | None = None
    dataset_class: ClassVar[type | None] = None

    @abc.abstractmethod
    def __init__(self, config: DataConfig):
        """Opens the data set.

        Raises:
          UvitError: if it is missing or broken, or lacks the labels or captions of the config.
        """

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of records."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict:
        """The record of this index, the same at every call, with the keys

        image: bytes, a PNG, JPEG or WebP; or an array uint8 (H, W, 3).
        name: what to call it in error messages.
        label: int, an index into `class_names`; if `config.labels` is set.
        captions: tuple of texts, of which training chooses one at random, perhaps empty; if
          `config.text` is set.
        inputs: {segment: array}, inputs of a model's further segments; optional.
        facts: for each subject, in the order of the names `@1`, `@2`, …, a tuple of texts: what the
          caption states of it; for `config.text_pretraining.facts`.

        Further keys may follow.
        """

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the captions, unless `config.vocabulary` names a file."""
        return Tokenizer.from_captions(self.captions or ())
