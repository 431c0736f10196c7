"""The iterator behind `pipeline.batches`: Grain's workers, our row order, one number of state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grain
import numpy as np

from uvit_jax.errors import UvitError

if TYPE_CHECKING:
    from uvit_jax.data.pipeline import Dataset


class Batches(grain.DatasetIterator):
    """The iterator of `batches`. Its state is `{"next_index": batches taken so far}`."""

    def __init__(self, rows: Rows, *, start: int = 0):
        super().__init__()
        data = rows.data
        # 2**32 steps are as good as endless.
        count = 2**32 if rows.train else math.ceil(len(data) / rows.batch_size)
        self._steps = grain.MapDataset.range(count).map(rows)
        self._config, self._iterator = data.config, None
        self.set_state({"next_index": start})

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        if self._iterator is None:
            self._iterator = self._iterate()
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise
        except Exception as error:
            ours = _ours(error)
            if ours is error or ours is None:
                raise
            raise ours from None
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues with batch number `state["next_index"]`.

        Raises:
          UvitError: if the state is not of this form.
        """
        try:
            step = int(state["next_index"])
        except (TypeError, KeyError, ValueError):
            raise UvitError(f"the state of a data iterator is no {state!r}") from None
        if not 0 <= step <= len(self._steps):
            raise UvitError(f"there is no batch number {step}; there are {len(self._steps)}")
        self._stop()
        self._next = step

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _iterate(self) -> grain.DatasetIterator:
        # Sliced rather than positioned: the position within grain's iterators depends on how many
        # workers there are, and ours must not.
        threads = self._config.workers
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        steps = self._steps[self._next :].to_iter_dataset(options)
        if self._config.processes:
            from absl import flags

            # Grain's processes read absl flags, which only absl's own `app.run` parses.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            steps = steps.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._config.processes)
            )
        return iter(steps)


class Rows:
    """Number of a batch -> this host's rows of it, as a picklable function."""

    def __init__(
        self,
        data: Dataset,
        *,
        batch_size: int,
        seed: int,
        rows: Sequence[int],
        train: bool,
    ):
        self.data, self.batch_size, self.rows, self.train = data, batch_size, rows, train
        # Two unrelated streams from one seed; grain adds the epoch's number to the one it gets.
        order_seed, self.key = map(int, np.random.SeedSequence(seed).generate_state(2, np.uint64))
        records = grain.MapDataset.range(len(data))
        self.order = records.shuffle(seed=order_seed % 2**32).repeat() if train else records

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        first = int(number) * self.batch_size
        positions = [first + row for row in self.rows]
        if self.train:
            indices = [int(self.order[p]) for p in positions]
            batch = self.data.batch(indices, [_mix(self.key, p) for p in positions])
        else:
            count = len(self.data)
            batch = self.data.batch([p % count for p in positions])
            indices = [p if p < count else -1 for p in positions]
        return {**batch, "index": np.array(indices, np.int64)}


def _mix(key: int, position: int) -> int:
    """64 random bits for a position: splitmix64 (Steele et al. 2014), a generator with an index."""
    mask = 2**64 - 1
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def _ours(error: BaseException) -> UvitError | None:
    """The UvitError behind what grain raised from a worker, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UvitError):
        cause = cause.__cause__ or cause.__context__
    return cause
