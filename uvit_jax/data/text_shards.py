"""Text features of captions as sharded records: their format, reader and writer.

They are stored beside the latents of the captions' images, as `text.json` (a `TextIndex`) and
shards. Shard s holds the captions of the examples [s · shard_size, (s + 1) · shard_size), one
record per caption, (N, F) little-endian. Its last record holds the offsets of each example's first
caption, uint32 (examples + 1,).
"""

import base64
import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.data.latent_shards import LatentIndex, LatentReader, open_beside
from uvit_jax.data.shards import (
    ShardIndex,
    ShardReader,
    StorageDtype,
    write_missing_shards,
)
from uvit_jax.data.vocabulary import TextFeatures
from uvit_jax.errors import UvitError

Encode = Callable[[Sequence[str]], np.ndarray]
"""B texts → features (B, N, F)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextIndex(ShardIndex):
    """What the text features of a folder of latents are.

    Attributes:
      shape: (N, F) of a caption's features.
      dtype: of the stored features.
      count: examples.
      shard_size: examples per shard.
      null: the features of the empty text, base64.
      source: `LatentIndex.source` of the latents with these captions.
      encoder: its file's name and SHA-256, its config.
    """

    contents = "text features"
    prefix = "text"
    index_name = "text.json"
    plan_name = "text_encoding.json"

    shape: tuple[int, ...]
    dtype: StorageDtype
    count: int
    shard_size: int
    null: str
    source: Mapping[str, Any]
    encoder: Mapping[str, Any]

    def __post_init__(self):
        super().__post_init__()
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise UvitError(f"shape must be (N, F), got {self.shape}")
        if len(base64.b64decode(self.null)) != np.prod(self.shape) * self.storage_dtype.itemsize:
            raise UvitError(f"null must hold {self.shape} values of {self.dtype}")

    @classmethod
    def command(cls, folder: Path, index: "TextIndex | None" = None) -> str:
        words = ["python", "-m", "experiments.encode_text", f"--latents={folder}"]
        return shlex.join([*words, "--encoder=FOLDER"])

    def differences(self, other: "TextIndex") -> list[str]:
        keys = super().differences(other)
        if "null" in keys and self.shape == other.shape:
            # Other hosts and batch sizes round differently; another encoder differs by more.
            ours, theirs = self.null_features(), other.null_features()
            if np.abs(ours - theirs).max() <= 1e-2 * np.abs(ours).max():
                keys.remove("null")
        return keys

    def null_features(self) -> np.ndarray:
        """The features of the empty text, float32 (N, F)."""
        return self.unpack(base64.b64decode(self.null))

    def unpack(self, record: bytes) -> np.ndarray:
        """The features in a record, float32 (N, F)."""
        return np.frombuffer(record, self.storage_dtype).reshape(self.shape).astype(np.float32)

    def pack(self, features: np.ndarray, text: str) -> bytes:
        """The record of features (N, F).

        Raises:
          UvitError: if they have another shape or cannot be stored in `dtype`.
        """
        limit = float(np.finfo(self.dtype).max)
        if features.shape != tuple(self.shape) or not np.abs(features).max() <= limit:
            raise UvitError(
                f"the features of {text[:60]!r} have shape {features.shape} and must have shape "
                f"{tuple(self.shape)} and be finite in {self.dtype}; set --dtype=float32, and "
                "check that --encoder is the right folder"
            )
        return features.astype(self.storage_dtype).tobytes()


class TextReader(ShardReader):
    """Random access to text features: `features(example, number)`.

    Attributes:
      null: `TextFeatures`, those of the empty text.
    """

    index: TextIndex

    def __init__(self, folder: Path, index: TextIndex):
        self._offsets: dict[int, np.ndarray] = {}
        self.null = TextFeatures(index.null_features(), index.encoder.get("sha256", ""))
        super().__init__(folder, index)

    def num_records(self, shard: int, reader: Any) -> int:
        if not reader.num_records():
            raise ValueError("it has no records")
        last = reader.read([reader.num_records() - 1])[0]
        offsets = np.frombuffer(last, "<u4").astype(np.int64)
        if len(offsets) != len(self.index.examples(shard)) + 1:
            raise ValueError("its last record does not hold the captions' offsets")
        self._offsets[shard] = offsets
        return int(offsets[-1]) + 1

    def features(self, example: int, number: int = 0) -> np.ndarray:
        """The features of one of an example's captions, float32 (N, F).

        Args:
          number: of the caption, modulo their count; the empty text's features if there are none.
        """
        shard, row = self.locate(example)
        self.open_shard(shard)
        first, end = self._offsets[shard][row : row + 2].tolist()
        if first == end:
            return self.null.null
        return self.index.unpack(self.read_record(shard, first + number % (end - first)))


def make_index(
    latents: LatentIndex,
    encode: Encode,
    *,
    shape: tuple[int, ...],
    dtype: StorageDtype,
    shard_size: int,
    encoder: Mapping[str, Any],
) -> TextIndex:
    """The index of the text features of a folder of latents; encodes the empty text."""
    index = TextIndex(
        shape=shape,
        dtype=dtype,
        count=latents.count,
        shard_size=shard_size,
        null=base64.b64encode(bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)).decode(),
        source=latents.source,
        encoder=encoder,
    )
    null = base64.b64encode(index.pack(encode([""])[0], "")).decode()
    return dataclasses.replace(index, null=null)


def encode_captions(
    folder: Path,
    index: TextIndex,
    latents: LatentReader,
    encode: Encode,
    *,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Encodes the captions of the missing shards of one part, see `write_missing_shards`.

    Args:
      folder: where the latents are; the text features are stored beside them.
      latents: their records, with captions.

    Returns:
      The number of shards written.

    Raises:
      UvitError: if the folder holds another encoding of its captions, or features are not finite.
    """
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")

    def records(examples: range) -> Iterator[bytes]:
        texts = [latents.captions_of(example) for example in examples]
        captions = itertools.chain(*texts)
        while batch := tuple(itertools.islice(captions, batch_size)):
            for text, features in zip(batch, encode(batch), strict=True):
                yield index.pack(features, text)
        yield np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()

    return write_missing_shards(folder, index, records, reader=TextReader, part=part, parts=parts)


def open_text(folder: Path, latents: LatentIndex) -> TextReader:
    """The text features of a folder of latents.

    Raises:
      UvitError: if they are missing or incomplete, or belong to other latents.
    """
    return TextReader(folder, open_beside(TextIndex, folder, latents, ("count",)))
