"""The files of encoded captions, beside the latents of their pictures, and how they are made.

`text.json` (a `TextIndex`) and shards of ArrayRecords. Shard s holds the captions of the examples
[s · shard_size, (s + 1) · shard_size), one record a caption, (N, F) little-endian. Its last record
says where each example's captions begin: uint32 (examples + 1,).
"""

import base64
import dataclasses
import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.data import record_files
from uvit_jax.data.latent_shards import DTYPES, LatentIndex, Shards
from uvit_jax.data.record_files import RecordFiles, ShardedIndex
from uvit_jax.data.vocabulary import TextFeatures
from uvit_jax.errors import UvitError

logger = logging.getLogger(__name__)

INDEX = "text.json"  # written when all shards are there
PLAN = "text_encoding.json"  # the same, while they are being made

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts to features (B, N, F)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextIndex(ShardedIndex):
    """What the encoded captions of a folder of latents are.

    Attributes:
      shape: (N, F) of a caption's features. dtype: of what is stored.
      count: examples. shard_size: examples a shard.
      null: the features of the empty text, base64.
      source: of the latents, whose captions these are.
      encoder: its file's name and SHA-256, its config.
    """

    prefix = "text"

    shape: tuple[int, ...]
    dtype: str
    count: int
    shard_size: int
    null: str
    source: Mapping[str, Any]
    encoder: Mapping[str, Any]

    def __post_init__(self):
        if len(self.shape) != 2 or min(*self.shape, self.count, self.shard_size) < 1:
            raise UvitError(
                f"shape must be (N, F), count and shard_size at least 1; got {self.shape}, "
                f"{self.count}, {self.shard_size}"
            )
        if self.dtype not in DTYPES:
            raise UvitError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if len(base64.b64decode(self.null)) != np.prod(self.shape) * self.storage.itemsize:
            raise UvitError(f"null is not of {self.shape} numbers")

    def unpack(self, record: bytes) -> np.ndarray:
        """A record's features, float32 (N, F)."""
        return np.frombuffer(record, self.storage).reshape(self.shape).astype(np.float32)

    def pack(self, features: np.ndarray, text: str) -> bytes:
        """Features (N, F) as they are stored; UvitError if they cannot be."""
        limit = float(np.finfo(self.dtype).max)
        if features.shape != tuple(self.shape) or not np.abs(features).max() <= limit:
            raise UvitError(
                f"the features of {text[:60]!r} are {features.shape}, and have to be "
                f"{tuple(self.shape)} and finite in {self.dtype}; store them in float32, and check "
                "the encoder's file"
            )
        return features.astype(self.storage).tobytes()


def make_index(
    latents: LatentIndex,
    encode: Encode,
    *,
    shape: tuple[int, ...],
    dtype: str,
    shard_size: int,
    encoder: Mapping[str, Any],
) -> TextIndex:
    """The index of a folder's captions, with the encoding of the empty text."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    index = TextIndex(
        shape=shape,
        dtype=dtype,
        count=latents.count,
        shard_size=shard_size,
        null=base64.b64encode(bytes(size)).decode(),
        source=latents.source,
        encoder=encoder,
    )
    null = base64.b64encode(index.pack(encode([""])[0], "")).decode()
    return dataclasses.replace(index, null=null)


def encode_captions(
    folder: Path,
    index: TextIndex,
    latents: Shards,
    encode: Encode,
    *,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Writes this part's shards that are not there yet, and the index if none is missing then.

    Shard s is of part s % parts.

    Args:
      folder: of the latents, where these shards are put. latents: their records, with captions.

    Returns:
      The number of shards written.

    Raises:
      UvitError: if the folder holds another encoding of its captions, or features are not finite.
    """
    if not 0 <= part < parts:
        raise UvitError(f"part {part} of {parts}: the first is 0, the last {parts - 1}")
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    final, plan = folder / INDEX, folder / PLAN
    stored = record_files.read_index(TextIndex, final)
    stored = stored or record_files.read_index(TextIndex, plan)
    # Another host or batch size rounds otherwise; another encoder says something else.
    alike = stored is not None and stored.shape == index.shape and _alike(stored, index)
    index = record_files.settle(index, final, plan, about=("null",) if alike else ())
    files = index.files(folder)
    todo = [s for s in record_files.missing_files(files) if s % parts == part]
    began, done = time.perf_counter(), 0
    for written, shard in enumerate(todo, start=1):
        texts = [latents.captions(example) for example in index.examples(shard)]
        record_files.write_records(files[shard], _records(index, texts, encode, batch_size))
        done += sum(map(len, texts))
        rate = done / (time.perf_counter() - began)
        logger.info("%d of %d shards, %.0f captions/s", written, len(todo), rate)
    if not record_files.missing_files(files):
        shards = TextShards(folder, index)
        for shard in range(index.num_shards):
            shards.check(shard)
        record_files.write_index(folder / INDEX, index)
        (folder / PLAN).unlink(missing_ok=True)
    return len(todo)


def _records(
    index: TextIndex, texts: Sequence[Sequence[str]], encode: Encode, batch_size: int
) -> Iterator[bytes]:
    captions = itertools.chain(*texts)
    while batch := tuple(itertools.islice(captions, batch_size)):
        for text, features in zip(batch, encode(batch), strict=True):
            yield index.pack(features, text)
    offsets = np.cumsum([0, *map(len, texts)])
    yield offsets.astype("<u4").tobytes()


def _alike(one: TextIndex, other: TextIndex) -> bool:
    """Whether two encodings of the empty text differ by rounding only."""
    a, b = (index.unpack(base64.b64decode(index.null)) for index in (one, other))
    return bool(np.abs(a - b).max() <= 1e-2 * np.abs(a).max())


class TextShards:
    """Random access to encoded captions: `features(example, number)`.

    Attributes:
      index: the folder's `TextIndex`. null: `TextFeatures`, the encoding of the empty text.
    """

    def __init__(self, folder: Path, index: TextIndex):
        self.index = index
        null = index.unpack(base64.b64decode(index.null))
        self.null = TextFeatures(null, index.encoder.get("sha256", ""))
        self._offsets: dict[int, np.ndarray] = {}
        self._files = RecordFiles(
            index.files(folder), self._expected, functools.partial(command, folder)
        )

    def features(self, example: int, number: int = 0) -> np.ndarray:
        """float32 (N, F) of an example's caption of this number, modulo their count; the null if
        it has none."""
        shard, row = divmod(example, self.index.shard_size)
        self._files.open(shard)
        first, end = self._offsets[shard][row : row + 2].tolist()
        if first == end:
            return self.null.null
        return self.index.unpack(self._files.read(shard, first + number % (end - first)))

    def check(self, shard: int) -> None:
        """Raises UvitError if a shard is damaged."""
        self._files.open(shard)

    def _expected(self, shard: int, reader: Any) -> int:
        """How many records a shard must have, by its last one."""
        if not reader.num_records():
            raise ValueError("it is empty or cut")
        last = reader.read([reader.num_records() - 1])[0]
        offsets = np.frombuffer(last, "<u4").astype(np.int64)
        if len(offsets) != len(self.index.examples(shard)) + 1:
            raise ValueError("its last record does not tell where captions begin")
        self._offsets[shard] = offsets
        return int(offsets[-1]) + 1


def command(folder: Path) -> str:
    """The command that encodes a folder's captions, for messages."""
    return f"python -m experiments.encode_text --latents={folder} --encoder=FOLDER"


def open_text(folder: Path, latents: LatentIndex) -> TextShards:
    """The encoded captions of a folder of latents.

    Raises:
      UvitError: if there are none, or not all, or they belong to other latents.
    """
    index = record_files.read_index(TextIndex, folder / INDEX)
    if index is None:
        plan = record_files.read_index(TextIndex, folder / PLAN)
        there = f"there are no encoded captions in {folder}; make them"
        if plan is not None:
            done = plan.num_shards - len(record_files.missing_files(plan.files(folder)))
            there = f"the encoded captions in {folder} are unfinished, {done} of {plan.num_shards} "
            there += "shards; go on"
        raise UvitError(f"{there} with `{command(folder)}`")
    same = json.dumps(dict(index.source)) == json.dumps(dict(latents.source))
    if index.count != latents.count or not same:
        raise UvitError(
            f"the encoded captions in {folder} are of other pictures than the latents; delete "
            f"{INDEX} and the text-* shards, and make them again with `{command(folder)}`"
        )
    return TextShards(folder, index)
