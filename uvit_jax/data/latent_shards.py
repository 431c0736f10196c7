"""The files of encoded pictures: an index and shards of moments, written once, read at random.

A folder of latents holds `index.json` (a `LatentIndex`) and shards of ArrayRecords. Example i is in
shard i // shard_size; with mirrored copies it is two records there, one after the other. A record
is the means (h, w, C), the log-variances (h, w, C), the label (int32, -1 for none), all
little-endian, and a JSON list of captions.
"""

import dataclasses
import json
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from uvit_jax.config import parse, to_dict
from uvit_jax.errors import UvitError

INDEX = "index.json"  # written when all shards are there
PLAN = "encoding.json"  # the same, while they are being made
DTYPES = ("float16", "float32")
_LABEL = struct.Struct("<i")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentIndex:
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

    @property
    def num_shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def storage(self) -> np.dtype:
        """`dtype`, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def shard_name(self, shard: int) -> str:
        return f"latents-{shard:05d}-of-{self.num_shards:05d}.array_record"

    def examples(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def pack(self, moments: np.ndarray, label: int | None, captions: Sequence[str] | None) -> bytes:
        """A record of moments (h, w, 2C)."""
        planes = np.stack(np.split(moments, 2, axis=-1)).astype(self.storage)
        tail = json.dumps(list(captions or ()), ensure_ascii=False).encode()
        return planes.tobytes() + _LABEL.pack(-1 if label is None else label) + tail

    def to_json(self) -> str:
        return json.dumps(to_dict(self), indent=1, ensure_ascii=False) + "\n"


def read_index(folder: Path, name: str = INDEX) -> LatentIndex | None:
    """The index of a folder, or None if there is no such file; UvitError if it is damaged."""
    file = folder / name
    try:
        return parse(LatentIndex, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UvitError(f"cannot read {file}: {error}") from None


def missing_shards(folder: Path, index: LatentIndex) -> list[int]:
    """The shards that are not there yet."""
    names = map(index.shard_name, range(index.num_shards))
    return [shard for shard, name in enumerate(names) if not (folder / name).is_file()]


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
    or None, `label` and `captions` where the folder has them, `name`.
    """

    def __init__(self, folder: Path, index: LatentIndex):
        self.folder, self.index = folder, index
        missing = missing_shards(folder, index)
        if missing:
            raise UvitError(
                f"{folder} lacks {index.shard_name(missing[0])} ({len(missing)} of "
                f"{index.num_shards} shards); make what is missing with `{command(folder, index)}`"
            )
        self._start()

    def __len__(self) -> int:
        return self.index.count

    def read(self, example: int, mirrored: bool = False) -> bytes:
        """One record's bytes; UvitError if its shard is damaged."""
        shard, row = divmod(example, self.index.shard_size)
        try:
            reader = self._readers.get(shard) or self._open(shard)
            return reader.read([row * (1 + self.index.mirrored) + mirrored])[0]
        except UvitError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(shard, str(error).splitlines()[0]) from None

    def unpack(self, record: bytes, out: np.ndarray) -> tuple[int, memoryview]:
        """Writes the moments into `out` (2, h·w·C); returns the label and the captions' JSON."""
        stored = np.frombuffer(record, self._dtype, out.size)
        out[...] = stored.reshape(out.shape)
        label = _LABEL.unpack_from(record, stored.nbytes)[0]
        return label, memoryview(record)[stored.nbytes + _LABEL.size :]

    def __getitem__(self, example: int) -> dict:
        index, moments = self.index, []
        for mirrored in range(1 + index.mirrored):
            planes = np.empty((2, *index.shape), np.float32)
            label, captions = self.unpack(self.read(example, bool(mirrored)), planes)
            moments.append(np.concatenate(planes, axis=-1))
        record = {"moments": moments[0], "mirrored": moments[1] if index.mirrored else None}
        record["name"] = f"{self.folder}, number {example}"
        if index.labels:
            record["label"] = label
        if index.captions:
            record["captions"] = tuple(json.loads(bytes(captions)))
        return record

    def _open(self, shard: int):
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
            file = self.folder / self.index.shard_name(shard)
            reader = array_record_module.ArrayRecordReader(
                str(file),
                options="readahead_buffer_size:0,max_parallelism:0",
                file_reader_buffer_size=2**15,
            )
            expected = len(self.index.examples(shard)) * (1 + self.index.mirrored)
            if reader.num_records() != expected:
                raise self._damaged(shard, f"{reader.num_records()} records, not {expected}")
            self._readers[shard] = reader
            return reader

    def _damaged(self, shard: int, reason: str) -> UvitError:
        file = self.folder / self.index.shard_name(shard)
        return UvitError(
            f"the shard {file} is damaged ({reason}); delete it and make it again with "
            f"`{command(self.folder, self.index)}`"
        )

    def _start(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._dtype = self.index.storage

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "index": self.index}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()
