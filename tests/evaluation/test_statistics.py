"""Intervals hold the truth as often as they say, and pairing removes what two variants share."""

import math

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.statistics import mean_interval, paired_interval


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_cover_the_mean_at_their_confidence(count, confidence):
    rng = np.random.default_rng(count)
    draws = rng.normal(3.0, 0.7, size=(4000, count))
    found = [mean_interval(values, confidence=confidence) for values in draws]
    held = np.mean([i.low <= 3.0 <= i.high for i in found])
    assert held == pytest.approx(
        confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / 4000)
    )
    # A normal law's factor would be too sure of itself by far.
    normal = draws.std(axis=1, ddof=1) / math.sqrt(count) * 1.96
    if confidence == 0.95:
        assert np.mean(np.abs(draws.mean(axis=1) - 3.0) <= normal) < 0.9


def test_known_values_of_student():
    # t(0.975) of 2 degrees of freedom is 4.30265; the standard deviation of 1, 2, 3 is 1.
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert not found.excludes_zero
    assert mean_interval([5.0, 5.1, 5.2]).excludes_zero
    alone = mean_interval([1.5])
    assert alone.mean == 1.5 and math.isnan(alone.low) and not alone.excludes_zero


def test_pairing_removes_what_a_seed_does_to_both():
    rng = np.random.default_rng(0)
    seeds = range(4)
    shared = rng.normal(0, 10, size=4)
    a = {s: shared[s] + 1 + 0.01 * rng.normal() for s in seeds}
    b = {s: shared[s] + 0.01 * rng.normal() for s in seeds}
    found = paired_interval(a, b)
    assert found.low < 1 < found.high and found.half_width < 0.1
    assert mean_interval(list(a.values())).half_width > 1
    # Only seeds that both have count, whatever the order in which they came.
    del a[3]
    assert paired_interval(dict(reversed(a.items())), b) == paired_interval(a, b)
    assert paired_interval(a, b).count == 3
    assert paired_interval(a, {9: 1.0}) is None


def test_invalid_samples_raise():
    with pytest.raises(UvitError, match="one or more finite values"):
        mean_interval([])
    with pytest.raises(UvitError, match="finite"):
        mean_interval([1.0, math.nan])
    with pytest.raises(UvitError, match="confidence"):
        mean_interval([1.0], confidence=95)
