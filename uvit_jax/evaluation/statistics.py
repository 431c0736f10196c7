"""Means and paired differences over a few seeds, with confidence intervals.

A mean over n runs has Student's t interval: mean ± t(n - 1) · s / √n, exact for normal values and
any n ≥ 2. At 95 %, the factor t is 12.7 for n = 2 and 4.3 for n = 3, against 1.96 for a normal
distribution. Runs of one seed share the order of their data and all noise, so two variants are
compared by the mean of their paired differences, in which shared effects cancel.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from uvit_jax.errors import UvitError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of `count` values with its confidence interval [low, high], NaN for one value."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the interval's length; NaN for one value."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False for one value."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean of independent values with Student's t interval (Student 1908).

    Args:
      values: one per seed; at least one.
      confidence: the coverage, in (0, 1).

    Raises:
      UvitError: without values, if one is not finite, or confidence is not in (0, 1).
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise UvitError(f"an interval needs one or more finite values, got {list(values)}")
    if not 0 < confidence < 1:
        raise UvitError(f"confidence must lie in (0, 1), got {confidence}")
    count, mean = array.size, float(array.mean())
    if count == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, count=1)
    quantile = float(special.stdtrit(count - 1, (1 + confidence) / 2))
    half = quantile * float(array.std(ddof=1)) / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)


def paired_interval(
    values: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 0.95
) -> Interval | None:
    """The mean of `values - baseline`, paired by seed, with the t interval of the differences.

    Args:
      values, baseline: by seed. Seeds of only one of them are ignored.

    Returns:
      The interval, or None if they share no seed.
    """
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    return mean_interval([values[s] - baseline[s] for s in shared], confidence=confidence)
