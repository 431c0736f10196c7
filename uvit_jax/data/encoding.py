"""Pictures to shards of moments: on any number of hosts, stopped and gone on with at any time.

What bears a shard's name is finished; a folder with an index is complete (see `record_files.py`).
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from uvit_jax.config import to_dict
from uvit_jax.data.latent_shards import INDEX, PLAN, LatentIndex, Shards, missing_shards
from uvit_jax.data.pipeline import Dataset
from uvit_jax.data.record_files import settle, write_index, write_records
from uvit_jax.errors import UvitError

logger = logging.getLogger(__name__)

Encode = Callable[[np.ndarray], np.ndarray]


def encode_dataset(
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
    """Writes this part's shards that are not there yet, and the index if none is missing then.

    Shard i is of part i % parts. Every shard is encoded in batches of its own, so its bytes do not
    depend on the parts or on interruptions.

    Args:
      folder: new, or one that the same index has begun.
      index: what is to be made. data: the pictures, unmirrored.
      encode: pictures float32 (batch_size, H, W, C) → moments (batch_size, h, w, 2C).
      workers: threads that read and decode pictures.

    Returns:
      The number of shards written.

    Raises:
      UvitError: if the folder holds another encoding, a picture is broken, moments do not fit
        the index, or a second process writes the same shards.
    """
    if not 0 <= part < parts:
        raise UvitError(f"part {part} of {parts}: the first is 0, the last {parts - 1}")
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    folder.mkdir(parents=True, exist_ok=True)
    settle(index, folder / INDEX, folder / PLAN)
    todo = [shard for shard in missing_shards(folder, index) if shard % parts == part]
    began, done = time.perf_counter(), 0
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for written, shard in enumerate(todo, start=1):
            batches = _batches(index, shard, data, pool, batch_size)
            records = _records(index, batches, encode, batch_size)
            write_records(index.files(folder)[shard], records)
            done += len(index.examples(shard))
            rate = done / (time.perf_counter() - began)
            logger.info("%d of %d shards, %.0f examples/s", written, len(todo), rate)
    if not missing_shards(folder, index):
        _finish(folder, index)
    return len(todo)


def _finish(folder: Path, index: LatentIndex) -> None:
    # Two hosts may come here at once: both write the same.
    shards = Shards(folder, index)
    for shard in range(index.num_shards):
        shards.read(index.examples(shard)[0])  # opens it and counts its records
    write_index(folder / INDEX, index)
    (folder / PLAN).unlink(missing_ok=True)


def _batches(
    index: LatentIndex, shard: int, data: Dataset, pool: ThreadPoolExecutor, batch_size: int
) -> Iterator[list[tuple[np.ndarray, dict]]]:
    """The decoded pictures of a shard and their records, one batch ahead of what is asked for."""

    def load(example: int) -> tuple[np.ndarray, dict]:
        record = data.source[example]
        return data.decode(record)["image"], record

    examples = index.examples(shard)
    waiting: list = []
    for start in range(0, len(examples), batch_size):
        waiting.append([pool.submit(load, e) for e in examples[start : start + batch_size]])
        if len(waiting) == 2:
            yield [future.result() for future in waiting.pop(0)]
    for batch in waiting:
        yield [future.result() for future in batch]


def _records(
    index: LatentIndex,
    batches: Iterable[Sequence[tuple[np.ndarray, dict]]],
    encode: Encode,
    batch_size: int,
) -> Iterator[bytes]:
    """The records of a shard, in order."""
    for batch in batches:
        images = np.stack([image for image, _ in batch])
        # The last batch is filled up, so that there is one shape to compile for.
        images = images[np.arange(batch_size) % len(batch)]
        copies = [encode(images)] + ([encode(images[:, :, ::-1])] if index.mirrored else [])
        for row, (_, record) in enumerate(batch):
            for moments in copies:
                yield _packed(index, np.asarray(moments[row]), record)


def _packed(index: LatentIndex, moments: np.ndarray, record: dict) -> bytes:
    h, w, C = index.shape
    if moments.shape != (h, w, 2 * C):
        raise UvitError(f"the moments are {moments.shape}, not {(h, w, 2 * C)}")
    limit = float(np.finfo(index.dtype).max)
    if not np.abs(moments).max() <= limit:  # NaN is not, either
        what = f"exceed {limit:g}, the most that {index.dtype} holds"
        what = what if np.isfinite(moments).all() else "are not finite"
        raise UvitError(
            f"the moments of {record['name']} {what}; compute and store in float32, and check "
            "that the file is the autoencoder's"
        )
    label = record.get("label") if index.labels else None
    captions = record.get("captions") if index.captions else None
    return index.pack(moments, label, captions)


def source_config(data: Dataset) -> dict:
    """What of the pictures' config an index keeps: the keys that are not at their defaults, without
    those that change no picture."""
    defaults = to_dict(type(data.config)())
    given = to_dict(data.config)
    free = ("data_dir", "workers", "processes")
    return {k: v for k, v in given.items() if k == "name" or (v != defaults[k] and k not in free)}
