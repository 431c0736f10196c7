"""The files of encoded pictures: an index and shards of moments, written once, read at random.

A folder of latents holds `index.json` (a `LatentIndex`) and shards of ArrayRecords. Example i is in
shard i // shard_size; with mirrored copies it is two records there, one after the other. A record
is the means (h, w, C), the log-variances (h, w, C), the label (int32, -1 for none), all
little-endian, and a JSON list of captions.
"""

import dataclasses
import functools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.data import record_files
from uvit_jax.data.record_files import RecordFiles, ShardedIndex
from uvit_jax.errors import UvitError

INDEX = "index.json"  # written when all shards are there
PLAN = "encoding.json"  # the same, while they are being made
DTYPES = ("float16", "float32")
_LABEL = struct.Struct("<i")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentIndex(ShardedIndex):
    """What a folder of latents holds, and what it was made from.

    Attributes:
      shape: (h, w, C) of a latent. count: examples, mirrored copies not counted.
      shard_size: examples a shard. mirrored: whether the mirrored pictures were encoded too.
      dtype: of the stored moments. scale: what samples are to be multiplied by.
      labels, captions: whether the records have them. class_names: in the order of the labels.
      words: those of the tokenizer; None if there are no captions.
      source: the `DataConfig` of the pictures, without what changes nothing in them.
      autoencoder: its file's name and SHA-256, its config.
    """

    prefix = "latents"

    shape: tuple[int, ...]
    count: int
    shard_size: int
    mirrored: bool
    dtype: str
    scale: float
    labels: bool
    captions: bool
    class_names: tuple[str, ...]
    words: tuple[str, ...] | None
    source: Mapping[str, Any]
    autoencoder: Mapping[str, Any]

    def __post_init__(self):
        if len(self.shape) != 3 or min(*self.shape, self.count, self.shard_size) < 1:
            raise UvitError(
                f"shape must be (h, w, C), count and shard_size at least 1; got {self.shape}, "
                f"{self.count}, {self.shard_size}"
            )
        if self.dtype not in DTYPES:
            raise UvitError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def pack(self, moments: np.ndarray, label: int | None, captions: Sequence[str] | None) -> bytes:
        """A record of moments (h, w, 2C)."""
        planes = np.stack(np.split(moments, 2, axis=-1)).astype(self.storage)
        tail = json.dumps(list(captions or ()), ensure_ascii=False).encode()
        return planes.tobytes() + _LABEL.pack(-1 if label is None else label) + tail


def read_index(folder: Path, name: str = INDEX) -> LatentIndex | None:
    """The index of a folder, or None if there is no such file; UvitError if it is damaged."""
    return record_files.read_index(LatentIndex, folder / name)


def missing_shards(folder: Path, index: LatentIndex) -> list[int]:
    """The shards that are not there yet."""
    return record_files.missing_files(index.files(folder))


def command(folder: Path, index: LatentIndex | None = None) -> str:
    """The command that makes the latents in `folder`, for messages."""
    data = {"name": "imagenet2012", "image_size": 256, "labels": "label"}
    autoencoder, mirrored, rest = "FILE", True, {}
    if index is not None:
        data, autoencoder, mirrored = index.source, index.autoencoder["file"], index.mirrored
        rest = {"shard_size": index.shard_size, "dtype": index.dtype, "scale": index.scale}
        rest["precision"] = index.autoencoder["config"]["dtype"]
    flags = {f"data.{key}": value for key, value in data.items()}
    flags |= {"autoencoder": autoencoder, **rest, "out": folder}
    shown = " ".join(f"--{key}={_shell(value)}" for key, value in flags.items())
    return f"python -m experiments.encode_latents {shown}{' --mirror' if mirrored else ''}"


def _shell(value: Any) -> str:
    text = str(value)
    return text if text and all(c.isalnum() or c in "_-./:" for c in text) else f'"{text}"'


class Shards:
    """Random access to the records of a folder: `shards[i]`, or `read(i, mirrored)` undecoded.

    `shards[i]` is a dict: `moments` float32 (h, w, 2C), `mirrored` the same of the mirrored picture
    or None, `label` and `captions` where the folder has them, `name`, and `example`, its number.
    """

    def __init__(self, folder: Path, index: LatentIndex):
        self.folder, self.index = folder, index
        self._copies, self._storage = 1 + index.mirrored, index.storage
        self._files = RecordFiles(
            index.files(folder), self._expected, functools.partial(command, folder, index)
        )

    def __len__(self) -> int:
        return self.index.count

    def read(self, example: int, mirrored: bool = False) -> bytes:
        """One record's bytes; UvitError if its shard is damaged."""
        shard, row = divmod(example, self.index.shard_size)
        return self._files.read(shard, row * self._copies + mirrored)

    def unpack(self, record: bytes, out: np.ndarray) -> tuple[int, memoryview]:
        """Writes the moments into `out` (2, h·w·C); returns the label and the captions' JSON."""
        stored = np.frombuffer(record, self._storage, out.size)
        out[...] = stored.reshape(out.shape)
        label = _LABEL.unpack_from(record, stored.nbytes)[0]
        return label, memoryview(record)[stored.nbytes + _LABEL.size :]

    def captions(self, example: int) -> tuple[str, ...]:
        """An example's captions, its moments unread."""
        begin = 2 * math.prod(self.index.shape) * self._storage.itemsize + _LABEL.size
        return tuple(json.loads(self.read(example)[begin:]))

    def __getitem__(self, example: int) -> dict:
        index, moments = self.index, []
        for mirrored in range(self._copies):
            planes = np.empty((2, *index.shape), np.float32)
            label, captions = self.unpack(self.read(example, bool(mirrored)), planes)
            moments.append(np.concatenate(planes, axis=-1))
        record = {"moments": moments[0], "mirrored": moments[1] if index.mirrored else None}
        record |= {"name": f"{self.folder}, number {example}", "example": example}
        if index.labels:
            record["label"] = label
        if index.captions:
            record["captions"] = tuple(json.loads(bytes(captions)))
        return record

    def _expected(self, shard: int, reader: Any) -> int:
        return len(self.index.examples(shard)) * self._copies
