"""Sharded ArrayRecord files: atomic to write, resumable by part, checked when they are opened.

A folder holds numbered shards and an index in JSON (a `ShardIndex`). Until the last shard is
written the index bears the name of a plan, and a shard appears under its name only once it is
complete. Writing therefore resumes with whatever shards are missing, and several hosts can share
the work. `latent_shards.py` and `text_shards.py` define the two kinds of record stored this way.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from array_record.python import array_record_module

from uvit_jax.config import Config, parse, to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import named_errors

logger = logging.getLogger(__name__)

StorageDtype = Literal["float16", "float32"]


class ShardIndex(Config):
    """Base class of indices. Subclasses are frozen dataclasses with at least these fields.

    Attributes:
      count: number of examples.
      shard_size: examples per shard; the last shard may have fewer.
      dtype: of the stored arrays.
      contents: what the shards hold, in words, for error messages.
      prefix: of the shards' file names.
      index_name, plan_name: file names of the index of a complete and of an incomplete folder.
    """

    contents: ClassVar[str]
    prefix: ClassVar[str]
    index_name: ClassVar[str]
    plan_name: ClassVar[str]
    count: int
    shard_size: int
    dtype: StorageDtype

    def __post_init__(self):
        super().__post_init__()
        for key in ("count", "shard_size"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.num_shards > 10**5:  # their names have five digits
            raise UvitError(f"count={self.count} makes {self.num_shards} shards; raise shard_size")

    @classmethod
    def command(cls, folder: Path, index: "ShardIndex | None" = None) -> str:
        """The shell command that writes `folder`, as far as `index` specifies it."""
        raise NotImplementedError

    @property
    def num_shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def storage_dtype(self) -> np.dtype:
        """`dtype`, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def examples(self, shard: int) -> range:
        """The indices of a shard's examples."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def files(self, folder: Path) -> list[Path]:
        """The paths of all shards, whether they exist or not."""
        n = self.num_shards
        return [folder / f"{self.prefix}-{s:05d}-of-{n:05d}.array_record" for s in range(n)]

    def missing(self, folder: Path) -> list[int]:
        """The numbers of the shards that do not exist yet."""
        return [shard for shard, file in enumerate(self.files(folder)) if not file.is_file()]

    def differences(self, other: "ShardIndex") -> list[str]:
        """The keys whose values differ, so that the two cannot share a folder."""
        ours, theirs = to_dict(self), to_dict(other)
        return [key for key in ours if ours[key] != theirs[key]]


Index = TypeVar("Index", bound=ShardIndex)


class ShardReader:
    """Random access to the records of a complete folder. Thread-safe, and can be pickled.

    Subclasses define `num_records` and methods that decode records.

    Raises:
      UvitError: if a shard is missing.
    """

    def __init__(self, folder: Path, index: ShardIndex):
        self.folder, self.index, self._files = folder, index, index.files(folder)
        if missing := index.missing(folder):
            raise UvitError(
                f"{folder} lacks {self._files[missing[0]].name} ({len(missing)} of "
                f"{index.num_shards} shards); write the missing ones with "
                f"`{index.command(folder, index)}`"
            )
        self._start()

    def num_records(self, shard: int, reader: Any) -> int:
        """The number of records that a shard must have; ValueError if it is damaged.

        Args:
          shard: its number. reader: its open `ArrayRecordReader`.
        """
        raise NotImplementedError

    def read_record(self, shard: int, row: int) -> bytes:
        """One record of a shard.

        Raises:
          UvitError: if the shard is damaged.
        """
        try:
            return self.open_shard(shard).read([row])[0]
        except UvitError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(shard, error) from None

    def locate(self, example: int) -> tuple[int, int]:
        """The shard of an example, and its number there.

        Raises:
          UvitError: if there is no such example; negative ones are not counted from the end.
        """
        if not 0 <= example < self.index.count:
            raise UvitError(
                f"there is no example {example} in {self.folder}, which has those from 0 to "
                f"{self.index.count - 1}"
            )
        return divmod(example, self.index.shard_size)

    def open_shard(self, shard: int) -> Any:
        """A shard's `ArrayRecordReader`, opened and checked on first use.

        Raises:
          UvitError: if the shard is damaged.
        """
        if shard in self._readers:
            return self._readers[shard]
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
            try:
                reader = array_record_module.ArrayRecordReader(
                    str(self._files[shard]),
                    options="readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=2**15,
                )
                count, expected = reader.num_records(), self.num_records(shard, reader)
                if count != expected:
                    raise ValueError(f"{count} records, not {expected}")
            except (RuntimeError, ValueError, IndexError) as error:
                raise self._damaged(shard, error) from None
            self._readers[shard] = reader
            return reader

    def check(self) -> None:
        """Opens every shard.

        Raises:
          UvitError: if one is damaged.
        """
        for shard in range(self.index.num_shards):
            self.open_shard(shard)

    def _damaged(self, shard: int, error: Exception) -> UvitError:
        return UvitError(
            f"the shard {self._files[shard]} is damaged ({_first_line(error)}); delete it and "
            f"rerun `{self.index.command(self.folder, self.index)}`"
        )

    def _start(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()


def open_index(kind: type[Index], folder: Path) -> Index:
    """The index of a complete folder.

    Raises:
      UvitError: if the folder has no shards or not all of them, naming the command that writes
        them, or if the index is damaged.
    """
    index = _read_index(kind, folder / kind.index_name)
    if index is not None:
        return index
    plan = _read_index(kind, folder / kind.plan_name)
    if plan is None:
        raise UvitError(
            f"there are no {kind.contents} in {folder}; write them with `{kind.command(folder)}`"
        )
    done = plan.num_shards - len(plan.missing(folder))
    raise UvitError(
        f"the {kind.contents} in {folder} are incomplete, {done} of {plan.num_shards} shards; "
        f"resume with `{kind.command(folder, plan)}`"
    )


def write_missing_shards(
    folder: Path,
    index: ShardIndex,
    records: Callable[[range], Iterable[bytes]],
    *,
    reader: type[ShardReader],
    part: int = 0,
    parts: int = 1,
) -> int:
    """Writes the missing shards of one part, and the index once no shard of any part is missing.

    Shard s belongs to part s % parts.

    Args:
      folder: created if it does not exist.
      index: what the folder is to hold.
      records: examples of a shard → the shard's records.
      reader: opens the complete folder, to check it before the index is written.

    Returns:
      The number of shards written.

    Raises:
      UvitError: if the folder holds something else, another process writes the same shards, or the
        disk is full.
    """
    if not 0 <= part < parts:
        raise UvitError(f"part {part} of {parts} must lie in [0, {parts})")
    with named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index = _settle(folder, index)
    files, missing = index.files(folder), [s for s in index.missing(folder) if s % parts == part]
    start, examples = time.perf_counter(), 0
    for number, shard in enumerate(missing, start=1):
        _write_shard(files[shard], records(index.examples(shard)))
        examples += len(index.examples(shard))
        rate = examples / (time.perf_counter() - start)
        logger.info("%d of %d shards, %.0f examples/s", number, len(missing), rate)
    if not index.missing(folder):
        # Two hosts may get here at the same time; they write the same index.
        reader(folder, index).check()
        _write_index(folder / index.index_name, index)
        (folder / index.plan_name).unlink(missing_ok=True)
    return len(missing)


def _settle(folder: Path, index: ShardIndex) -> ShardIndex:
    """The stored index or plan if it agrees with `index`; otherwise writes `index` as the plan."""
    final, plan = folder / index.index_name, folder / index.plan_name
    stored = _read_index(type(index), final) or _read_index(type(index), plan)
    if stored is None:
        _write_index(plan, index)
        return index
    if changed := stored.differences(index):
        key = changed[0]
        raise UvitError(
            f"{folder} holds another encoding ({', '.join(changed)} differ; {key} was "
            f"{_shorten(to_dict(stored)[key])} and is {_shorten(to_dict(index)[key])}); give "
            f"another folder, or delete {final.name} or {plan.name} and its shards"
        )
    return stored


def _write_shard(final: Path, records: Iterable[bytes]) -> None:
    """Writes a file that appears only when it is complete."""
    for leftover in final.parent.glob(f".{final.name}.*"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    # A network's outputs hardly compress, and uncompressed records are faster to read.
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    try:
        for record in records:
            with _writing(final):
                writer.write(record)
        with _writing(final):
            writer.close()
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(final)
    except BaseException:
        with contextlib.suppress(Exception):  # of a full disk, again
            writer.close()
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _writing(final: Path) -> Iterator[None]:
    """Raises an error of the block that writes a shard as a UvitError with its path."""
    with named_errors(final):
        try:
            yield
        except FileNotFoundError:
            raise UvitError(
                f"another process writes {final} too; give each process its own --part=I/N"
            ) from None
        except RuntimeError as error:  # ArrayRecord's
            raise OSError(_first_line(error)) from error


def _write_index(file: Path, index: ShardIndex) -> None:
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    text = json.dumps(to_dict(index), indent=1, ensure_ascii=False) + "\n"
    with named_errors(file):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _read_index(kind: type[Index], file: Path) -> Index | None:
    """The index in a file, or None if the file does not exist."""
    try:
        return parse(kind, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UvitError:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UvitError(f"cannot read {file}: {error}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
