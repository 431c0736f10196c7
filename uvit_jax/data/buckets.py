"""Buckets: images of a few sizes, in batches of one size each.

nearest_sizes([(480, 640)], [(32, 32), (24, 32)])     # [1]: the size that an image is cropped to
order = BucketOrder(buckets_N, batch_size=64, seed=0)
indices, positions = order[10]                        # the records of batch 10
"""

import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SAME_RATIO = 0.02
"""Sizes whose aspect ratios differ by less than this share have one ratio and several
resolutions."""


def nearest_sizes(shapes: Any, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The size that each image is resized and cropped to: that of the nearest aspect ratio. Of
    several with one ratio, it is the largest that does not enlarge the image, or the smallest.

    Args:
      shapes: (H, W) of N images. sizes: (H, W) to choose from, at least one.

    Returns:
      Indices of `sizes`, int64 (N,).
    """
    shapes_N2 = np.asarray(shapes, np.float64).reshape(-1, 2)
    sizes_K2 = np.asarray(sizes, np.float64)
    ratio_N, ratio_K = (np.log(s[:, 0] / s[:, 1]) for s in (shapes_N2, sizes_K2))
    distance_NK = np.abs(ratio_N[:, None] - ratio_K)
    near_NK = distance_NK <= distance_NK.min(axis=1, keepdims=True) + SAME_RATIO
    area_K = sizes_K2.prod(axis=1)
    fits_NK = (sizes_K2 <= shapes_N2[:, None]).all(axis=2)
    # Among the nearest: those that fit, by descending area, before the others, by ascending area.
    order_NK = np.where(fits_NK, -area_K, area_K)
    return np.where(near_NK, order_NK, np.inf).argmin(axis=1)


class _Epoch(NamedTuple):
    """The order of one epoch.

    Attributes:
      records_N: a permutation of all records. positions: by bucket, where its records stand in it.
      complete: (bucket, number) of the batches whose last record is in it, in order.
    """

    records_N: np.ndarray
    positions: list[np.ndarray]
    complete: list[tuple[int, int]]


class BucketOrder:
    """The order of training examples of several sizes, in batches of one size each.

    Every epoch is a new permutation of all records. Records queue by size in that order, and as
    soon as B of a size have queued, they are the next batch. So every record is used once an epoch;
    those that have not filled a batch by the end of an epoch wait for the first of their size in
    the next one. The order is a function of the seed and the batch's number alone.

    Args:
      buckets_N: the bucket of each record, from 0.
    """

    def __init__(self, buckets_N: np.ndarray, *, batch_size: int, seed: int):
        self._buckets_N, self._batch_size, self._seed = buckets_N, batch_size, seed
        self._counts = np.bincount(buckets_N).tolist()
        self._start()

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a batch, the indices of its records and their positions in the sequence of all epochs,
        int64 (B,) each. All are of one bucket."""
        N, B = len(self._buckets_N), self._batch_size
        epoch = number * B // N  # at the earliest: some records wait
        while self.batches_before(epoch + 1) <= number:
            epoch += 1
        bucket, own = self._epoch(epoch).complete[number - self.batches_before(epoch)]
        indices, positions = np.empty(B, np.int64), np.empty(B, np.int64)
        row = 0
        while row < B:  # a bucket of fewer than B records needs several epochs
            e, rank = divmod(own * B + row, self._counts[bucket])
            order = self._epoch(e)
            places = order.positions[bucket][rank : rank + B - row]
            indices[row : row + len(places)] = order.records_N[places]
            positions[row : row + len(places)] = e * N + places
            row += len(places)
        return indices, positions

    def batches_before(self, epoch: int) -> int:
        """How many batches are complete when an epoch, counted from 0, begins."""
        return sum(epoch * count // self._batch_size for count in self._counts)

    def _order_epoch(self, epoch: int) -> _Epoch:
        B = self._batch_size
        records_N = np.random.default_rng([self._seed, epoch]).permutation(len(self._buckets_N))
        buckets_N = self._buckets_N[records_N]
        positions = [np.flatnonzero(buckets_N == b) for b in range(len(self._counts))]
        complete = []
        for bucket, count in enumerate(self._counts):
            for batch in range(epoch * count // B, (epoch + 1) * count // B):
                last = (batch + 1) * B - 1 - epoch * count
                complete.append((positions[bucket][last], bucket, batch))
        return _Epoch(records_N, positions, [(b, n) for _, b, n in sorted(complete)])

    def _start(self) -> None:
        lock, cached = threading.Lock(), functools.lru_cache(4)(self._order_epoch)

        def epoch(number: int) -> _Epoch:
            with lock:  # the threads of a run need the same epoch at the same time
                return cached(number)

        self._epoch = epoch

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "_epoch"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()
