"""Latents of images or clips as sharded records: their format, reader and writer.

A folder of latents holds `index.json` (a `LatentIndex`) and shards. Example i is in shard
i // shard_size; with mirrored copies it is two records there, one after the other. A record is the
means (h, w, C), or of a clip (t, h, w, C), as many log-variances and the label (int32, -1 for
none), all little-endian, and a JSON list of captions.
"""

import dataclasses
import json
import math
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.config import brief
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.shards import (
    Index,
    ShardIndex,
    ShardReader,
    StorageDtype,
    open_index,
    write_missing_shards,
)
from uvit_jax.errors import UvitError

Encode = Callable[[np.ndarray], np.ndarray]
"""Images float32 (B, H, W, C) → moments (B, h, w, 2C), or clips with a frame axis after B."""

_LABEL = struct.Struct("<i")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentIndex(ShardIndex):
    """What a folder of latents holds, and what it was encoded from.

    Attributes:
      shape: (h, w, C) of a latent, or (t, h, w, C) of a clip's.
      count: examples, mirrored copies not counted.
      shard_size: examples per shard.
      mirrored: whether the mirrored images were encoded too.
      dtype: of the stored moments.
      scale: the factor by which samples are multiplied.
      labels, captions: whether records have them.
      class_names: in the order of the labels.
      words: the tokenizer's; None without captions.
      source: the keys of the images' `DataConfig` that are not at their defaults.
      autoencoder: its file's name and SHA-256, its config.
    """

    contents = "latents"
    prefix = "latents"
    index_name = "index.json"
    plan_name = "encoding.json"

    shape: tuple[int, ...]
    count: int
    shard_size: int
    mirrored: bool
    dtype: StorageDtype
    scale: float
    labels: bool
    captions: bool
    class_names: tuple[str, ...]
    words: tuple[str, ...] | None
    source: Mapping[str, Any]
    autoencoder: Mapping[str, Any]

    def __post_init__(self):
        super().__post_init__()
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise UvitError(f"shape must be (h, w, C) or (t, h, w, C), got {self.shape}")
        if not 0 < self.scale < math.inf:
            raise UvitError(f"scale must be positive and finite, got {self.scale}")
        config = self.autoencoder.get("config")
        if "file" not in self.autoencoder or not isinstance(config, Mapping):
            raise UvitError("autoencoder must have the keys file and config")
        for key in ("latent_mean", "latent_std"):
            values = config.get(key, ())
            real = isinstance(values, list | tuple) and all(
                type(v) in (int, float) and abs(v) < 2.0**128 for v in values
            )
            if not real or len(values) not in (0, self.shape[-1]):
                raise UvitError(
                    f"autoencoder.config.{key}={brief(values)} must be {self.shape[-1]} numbers, "
                    "one of each channel"
                )

    @classmethod
    def command(cls, folder: Path, index: "LatentIndex | None" = None) -> str:
        if index is None:
            flags = {"data.name": "imagenet2012", "data.image_size": 256, "data.labels": "label"}
            flags |= {"autoencoder": "FILE", "out": folder}
        else:
            flags = {f"data.{key}": value for key, value in index.source.items()}
            flags |= {"autoencoder": index.autoencoder["file"], "shard_size": index.shard_size}
            flags |= {"dtype": index.dtype, "scale": index.scale}
            several = len(index.source.get("sizes", ())) > 1  # each size has a sub-folder
            flags |= {
                "precision": index.autoencoder["config"].get("dtype", "float32"),
                "out": folder.parent if several else folder,
            }
        words = [f"--{key}={_flag_value(value)}" for key, value in flags.items()]
        if index is None or index.mirrored:
            words.append("--mirror")
        return shlex.join(["python", "-m", "experiments.encode_latents", *words])

    def pack(self, moments: np.ndarray, label: int | None, captions: Sequence[str] | None) -> bytes:
        """The record of moments (h, w, 2C), or (t, h, w, 2C)."""
        planes = np.stack(np.split(moments, 2, axis=-1)).astype(self.storage_dtype)
        tail = json.dumps(list(captions or ()), ensure_ascii=False).encode()
        return planes.tobytes() + _LABEL.pack(-1 if label is None else label) + tail


def _flag_value(value: Any) -> str:
    # JSON lists are Python literals in double quotes, which need no escapes within a shell's.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple) else str(value)


class LatentReader(ShardReader):
    """Random access to the latents of a folder: `reader[i]`, or `read` and `unpack` for speed."""

    index: LatentIndex

    def __len__(self) -> int:
        return self.index.count

    def num_records(self, shard: int, reader: Any) -> int:
        return len(self.index.examples(shard)) * (1 + self.index.mirrored)

    def read(self, example: int, mirrored: bool = False) -> bytes:
        """The record of an example, or of its mirrored copy.

        Raises:
          UvitError: if its shard is damaged.
        """
        shard, row = self.locate(example)
        record = self.read_record(shard, row * (1 + self.index.mirrored) + mirrored)
        if len(record) < self._moments_size + _LABEL.size:
            raise self._damaged(shard, ValueError(f"the record of example {example} is too short"))
        return record

    def parse_captions(self, text: bytes | memoryview, example: int) -> tuple[str, ...]:
        """The captions in the last part of an example's record, see `unpack`.

        Raises:
          UvitError: if its shard is damaged.
        """
        try:
            captions = json.loads(bytes(text))
            if not (isinstance(captions, list) and all(isinstance(c, str) for c in captions)):
                raise ValueError("no list of texts")
        except (ValueError, RecursionError) as error:
            error = ValueError(f"the captions of example {example}: {error}")
            raise self._damaged(example // self.index.shard_size, error) from None
        return tuple(captions)

    @property
    def _moments_size(self) -> int:
        """The bytes of a record's moments."""
        return 2 * math.prod(self.index.shape) * self.index.storage_dtype.itemsize

    def unpack(self, record: bytes, out: np.ndarray) -> tuple[int, memoryview]:
        """Writes a record's moments into `out`; returns the label and the captions' JSON.

        Args:
          out: (2, h·w·C) or (2, *shape), overwritten by the means and the log-variances.
        """
        stored = np.frombuffer(record, self.index.storage_dtype, out.size)
        out[...] = stored.reshape(out.shape)
        label = _LABEL.unpack_from(record, stored.nbytes)[0]
        return label, memoryview(record)[stored.nbytes + _LABEL.size :]

    def captions_of(self, example: int) -> tuple[str, ...]:
        """The captions of an example, without decoding its moments."""
        return self.parse_captions(self.read(example)[self._moments_size + _LABEL.size :], example)

    def __getitem__(self, example: int) -> dict:
        """A dict with `moments` float32 (h, w, 2C), `mirrored` (those of the mirrored image, or
        None), `label` and `captions` if the folder has them, `name`, and `example`, the index."""
        index, moments = self.index, []
        for mirrored in range(1 + index.mirrored):
            planes = np.empty((2, *index.shape), np.float32)
            label, captions = self.unpack(self.read(example, bool(mirrored)), planes)
            moments.append(np.concatenate(planes, axis=-1))
        record = {"moments": moments[0], "mirrored": moments[1] if index.mirrored else None}
        record |= {"name": f"{self.folder}, number {example}", "example": example}
        if index.labels:
            record["label"] = label
        if index.captions:
            record["captions"] = self.parse_captions(captions, example)
        return record


def encode_images(
    folder: Path,
    index: LatentIndex,
    data: Dataset,
    encode: Encode,
    *,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
    workers: int = 2,
) -> int:
    """Encodes the images of the missing shards of one part, see `write_missing_shards`.

    No batch crosses the end of a shard, so the bytes of a shard depend neither on the parts nor on
    interruptions.

    Args:
      data: the images, read without augmentation.
      encode: called with `batch_size` images, always.
      workers: threads that read and decode images.

    Returns:
      The number of shards written.

    Raises:
      UvitError: if the folder holds another encoding, an image is broken, moments cannot be stored,
        or another process writes the same shards.
    """
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    with ThreadPoolExecutor(max(workers, 1)) as pool:

        def records(examples: range) -> Iterator[bytes]:
            batches = load_batches(data, examples, pool, batch_size)
            return _encode_batches(index, batches, encode, batch_size)

        return write_missing_shards(
            folder, index, records, reader=LatentReader, part=part, parts=parts
        )


def load_batches(
    data: Dataset, examples: range, pool: ThreadPoolExecutor, batch_size: int
) -> Iterator[list[tuple[np.ndarray, dict]]]:
    """Batches of (image or clip, record), loaded one batch ahead."""

    def load(example: int) -> tuple[np.ndarray, dict]:
        record = data.source[example]
        row = data.decode(record)
        return row["image"] if "image" in row else row["video"], record

    waiting: list = []
    for start in range(0, len(examples), batch_size):
        waiting.append([pool.submit(load, e) for e in examples[start : start + batch_size]])
        if len(waiting) == 2:
            yield [future.result() for future in waiting.pop(0)]
    for batch in waiting:
        yield [future.result() for future in batch]


def _encode_batches(
    index: LatentIndex,
    batches: Iterable[Sequence[tuple[np.ndarray, dict]]],
    encode: Encode,
    batch_size: int,
) -> Iterator[bytes]:
    """The records of a shard, in order."""
    for batch in batches:
        images = np.stack([image for image, _ in batch])
        # Padding the last batch keeps one shape to compile for.
        images = images[np.arange(batch_size) % len(batch)]
        copies = [encode(images)] + ([encode(images[..., ::-1, :])] if index.mirrored else [])
        for row, (_, record) in enumerate(batch):
            label = record.get("label") if index.labels else None
            captions = record.get("captions") if index.captions else None
            for copy in copies:
                moments = np.asarray(copy[row])
                _check_moments(index, moments, record["name"])
                yield index.pack(moments, label, captions)


def _check_moments(index: LatentIndex, moments: np.ndarray, name: str) -> None:
    expected = (*index.shape[:-1], 2 * index.shape[-1])
    if moments.shape != expected:
        raise UvitError(f"the moments have shape {moments.shape}, not {expected}")
    limit = float(np.finfo(index.dtype).max)
    if not np.abs(moments).max() <= limit:  # true of NaN as well
        problem = f"exceed {limit:g}, the largest {index.dtype}"
        problem = problem if np.isfinite(moments).all() else "are not finite"
        raise UvitError(
            f"the moments of {name} {problem}; set --precision and --dtype to float32, and check "
            "that --autoencoder is the right file"
        )


def open_beside(
    kind: type[Index], folder: Path, latents: LatentIndex, keys: Sequence[str]
) -> Index:
    """The index of what is stored beside latents, and has a `source`.

    Args:
      keys: fields that must be equal to those of the latents, as the source must be.

    Raises:
      UvitError: as `open_index`, or if it belongs to other latents.
    """
    index = open_index(kind, folder)
    same = all(getattr(index, key) == getattr(latents, key) for key in keys)
    if not same or json.dumps(dict(index.source)) != json.dumps(dict(latents.source)):
        raise UvitError(
            f"the {index.contents} in {folder} belong to other latents; delete {index.index_name} "
            f"and the {index.prefix}-* shards, and rerun `{index.command(folder)}`"
        )
    return index
