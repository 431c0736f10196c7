"""Global batches of numpy arrays, the same on any number of hosts and after any interruption.

Row r of the global batch k is a pure function of (seed, k * batch_size + r): which record it is,
and the random bits of its augmentation. Hosts only divide the rows among themselves. The position
of an iterator is therefore one number, which is valid on another number of hosts too.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from uvit_jax import interrupts
from uvit_jax.data.buckets import BucketOrder
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError

# grain takes a second to import, so functions import it.


def batches(
    data: DataConfig | Dataset,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    train: bool = True,
    start: int = 0,
) -> "BatchIterator":
    """The global batches, or this host's rows of them.

    Args:
      data: a config, or what `dataset` opened (once, with one cache).
      batch_size: B, rows of the global batch, over all hosts.
      seed: of the order and the augmentation; not negative.
      rows: the numbers, in [0, B), of the rows of every global batch that this host loads, in this
        order; None for all of them.
      train: True for an endless sequence with augmentation, in a new order every epoch; batches run
        across the ends of epochs, and each is of one size (see `BucketOrder`). False for one pass
        in the source's order without augmentation; the last batch is filled up with the first
        records, whose `index` is -1.
      start: the number of the first batch: the `position` of the iterator to resume.

    Returns:
      An iterator over dicts of numpy arrays with b rows: `image` float32 (b, H, W, C), in [-1, 1]
      unless they are latents; `index` int64 (b,), the record's index in `source`; `label` int32
      (b,) if labels are on; `text` int32 (b, text_length) if text is on, float32 (b, N, F) with
      features. Totems and emoji scenes have references too, see
      `uvit_jax.data.sources.worlds.scene_source`.

    Raises:
      UvitError: if an argument is out of range, or one pass is asked of data of several sizes; from
        `next`, if an image is broken.
    """
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    rows = range(batch_size) if rows is None else rows
    if not rows or not 0 <= min(rows) <= max(rows) < batch_size:
        raise UvitError(f"rows of a batch of {batch_size} must lie in [0, {batch_size}): {rows}")
    if seed < 0:
        raise UvitError(f"the data seed must not be negative, got {seed}")
    if isinstance(data, DataConfig):
        data = dataset(data)
    loader = BatchLoader(data, batch_size=batch_size, seed=seed, rows=rows, train=train)
    if not 0 <= start <= len(loader):
        raise UvitError(f"start={start} must lie in [0, {len(loader)}], the number of batches")
    return BatchIterator(loader, start=start)


class BatchIterator:
    """Iterates over the batches of a loader, which worker threads or processes prepare ahead.

    Attributes:
      position: the number of the next batch: how many global batches have been taken, those before
        `start` included, whatever rows this host loads.
    """

    def __init__(self, loader: "BatchLoader", *, start: int = 0):
        self.position = start
        self._workers = _prefetch(loader, start)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch = next(self._workers)
        except StopIteration:
            raise
        except Exception as error:
            cause = _user_error(error)
            if cause is error or cause is None:
                raise
            raise cause from None
        self.position += 1
        return batch

    def close(self) -> None:
        """Stops the workers. The iterator cannot be used afterwards."""
        self._workers.close()


class BatchLoader:
    """Number of a batch → this host's rows of it. Can be pickled, for worker processes."""

    def __init__(
        self, data: Dataset, *, batch_size: int, seed: int, rows: Sequence[int], train: bool
    ):
        import grain

        self.data, self.batch_size, self.rows, self.train = data, batch_size, rows, train
        # Two independent streams from one seed; grain adds the epoch's number to the one it gets.
        order_seed, self.key = map(int, np.random.SeedSequence(seed).generate_state(2, np.uint64))
        records = grain.MapDataset.range(len(data))
        self.order = records.shuffle(seed=order_seed % 2**32).repeat() if train else records
        self.buckets = None
        if data.buckets is not None and not train:
            raise UvitError("one pass over data of several sizes: take each of `Dataset.by_size`")
        if data.buckets is not None:
            self.buckets = BucketOrder(data.buckets, batch_size=batch_size, seed=order_seed)

    def __len__(self) -> int:
        # In training the number of batches has no limit; this many outlast any run.
        return 2**32 if self.train else math.ceil(len(self.data) / self.batch_size)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        first = int(number) * self.batch_size
        positions = [first + row for row in self.rows]
        if self.train:
            if self.buckets is None:
                indices = [int(self.order[p]) for p in positions]
            else:
                indices, positions = (
                    array[list(self.rows)].tolist() for array in self.buckets[int(number)]
                )
            batch = self.data.batch(indices, [random_bits(self.key, p) for p in positions])
        else:
            count = len(self.data)
            batch = self.data.batch([p % count for p in positions])
            indices = [p if p < count else -1 for p in positions]
        return {**batch, "index": np.array(indices, np.int64)}


def random_bits(key: int, position: int) -> int:
    """64 random bits for a position: splitmix64 (Steele et al. 2014), a generator with an index."""
    mask = 2**64 - 1
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def _prefetch(loader: BatchLoader, start: int) -> Iterator[Any]:
    import grain

    config = loader.data.config
    # Sliced rather than positioned: a position within grain's iterators depends on the number of
    # workers, and ours must not.
    numbers = grain.MapDataset.range(len(loader))[start:]
    options = grain.ReadOptions(num_threads=config.workers, prefetch_buffer_size=2 * config.workers)
    steps = numbers.map(loader).to_iter_dataset(options)
    if config.processes:
        from absl import flags

        # Grain's processes read absl flags, which only absl's own `app.run` parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        steps = steps.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.processes),
            worker_init_fn=interrupts.leave_to_parent,
        )
    return iter(steps)


def _user_error(error: BaseException) -> UvitError | None:
    """The UvitError that caused what grain raised from a worker, or None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UvitError):
        cause = cause.__cause__ or cause.__context__
    return cause
