"""Shards of ArrayRecords that appear whole or not at all, and random access to their records.

A folder's plan is written first and its index last: what has an index is complete.
"""

import json
import os
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from array_record.python import array_record_module

from uvit_jax.config import parse, to_dict
from uvit_jax.errors import UvitError

T = TypeVar("T")


class ShardedIndex:
    """What the indices of folders share: `count` examples in files of `shard_size`, each named
    after `prefix`, of numbers of `dtype`."""

    prefix: ClassVar[str]
    count: int
    shard_size: int
    dtype: str

    @property
    def num_shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def storage(self) -> np.dtype:
        """`dtype`, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def examples(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def files(self, folder: Path) -> list[Path]:
        """All shards in a folder, whether they are there or not."""
        n = self.num_shards
        return [folder / f"{self.prefix}-{s:05d}-of-{n:05d}.array_record" for s in range(n)]


class RecordFiles:
    """The records of some files: `read(file's number, row)`. Threads may share it, and it pickles.

    Args:
      files: all of them have to be there.
      count: from a file's number and its open reader to how many records it must have.
      command: what makes the files again, for messages.

    Raises:
      UvitError: if a file is missing.
    """

    def __init__(
        self, files: Sequence[Path], count: Callable[[int, Any], int], command: Callable[[], str]
    ):
        self.files, self._count, self._command = tuple(files), count, command
        missing = missing_files(self.files)
        if missing:
            file = self.files[missing[0]]
            raise UvitError(
                f"{file.parent} lacks {file.name} ({len(missing)} of {len(self.files)} shards); "
                f"make what is missing with `{command()}`"
            )
        self._start()

    def read(self, number: int, row: int) -> bytes:
        """One record's bytes; UvitError if its file is damaged."""
        try:
            return (self._readers.get(number) or self._open(number)).read([row])[0]
        except UvitError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise self.damaged(number, reason) from None

    def open(self, number: int) -> Any:
        """The reader of a file, checked; UvitError if the file is damaged."""
        return self._readers.get(number) or self._open(number)

    def damaged(self, number: int, reason: str) -> UvitError:
        """The error to raise for a file that is."""
        return UvitError(
            f"the shard {self.files[number]} is damaged ({reason}); delete it and make it again "
            f"with `{self._command()}`"
        )

    def _open(self, number: int) -> Any:
        with self._lock:
            if number in self._readers:
                return self._readers[number]
            try:
                reader = array_record_module.ArrayRecordReader(
                    str(self.files[number]),
                    options="readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=2**15,
                )
                found, expected = reader.num_records(), self._count(number, reader)
            except (RuntimeError, ValueError, IndexError) as error:
                raise self.damaged(number, (str(error).splitlines() or ["empty"])[0]) from None
            if found != expected:
                raise self.damaged(number, f"{found} records, not {expected}")
            self._readers[number] = reader
            return reader

    def _start(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()


def missing_files(files: Iterable[Path]) -> list[int]:
    """The numbers of the files that are not there."""
    return [number for number, file in enumerate(files) if not file.is_file()]


def write_records(final: Path, records: Iterable[bytes]) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
      UvitError: if another process writes it, too.
    """
    for leftover in final.parent.glob(f".{final.name}.*"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    # What comes out of a network hardly compresses, and reading plain bytes is faster.
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    try:
        for record in records:
            writer.write(record)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    try:
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(final)
    except FileNotFoundError:
        raise UvitError(
            f"another process is writing {final} as well; give each a --part of its own"
        ) from None


def write_index(file: Path, index: Any) -> None:
    """Writes a dataclass as JSON; the file appears whole or not at all."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    text = json.dumps(to_dict(index), indent=1, ensure_ascii=False) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def read_index(kind: type[T], file: Path) -> T | None:
    """What `write_index` wrote, or None if there is no such file; UvitError if it is damaged."""
    try:
        return parse(kind, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UvitError(f"cannot read {file}: {error}") from None


def settle(index: T, final: Path, plan: Path, *, about: Collection[str] = ()) -> T:
    """Writes the plan of what is to be made, or checks that the one there is the same.

    Args:
      about: keys in which the two may differ, because they are computed and come out a little
        different on other machines; whoever asks for it has compared them.

    Returns:
      The index that holds: the stored one if there is one.

    Raises:
      UvitError: if the folder holds something else, naming what differs.
    """
    stored = read_index(type(index), final) or read_index(type(index), plan)
    if stored is None:
        write_index(plan, index)
        return index
    old, new = (to_dict(i) for i in (stored, index))
    changed = [key for key in new if key not in about and old[key] != new[key]]
    if changed:
        key = changed[0]
        raise UvitError(
            f"{final.parent} holds another encoding ({', '.join(changed)} differ; {key} was "
            f"{_shorten(old[key])} and is {_shorten(new[key])}); give another folder, or "
            f"remove {final.name} or {plan.name} and the files that belong to it"
        )
    return stored


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
