"""Intervals over subjects hold the truth as often as they say; ratios, fronts and corrections."""

import math

import numpy as np
import pytest

from experiments.subjects.clusters import (
    break_even,
    cluster_means,
    clustered_interval,
    crossed,
    holm,
    pareto_front,
    ratio_interval,
    worst,
)
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.statistics import mean_interval


def simulated(rng, subjects, images, between, within, truth=0.4):
    offsets = between * rng.normal(size=(subjects, 1))
    return (truth + offsets + within * rng.normal(size=(subjects, images))).ravel()


def coverage(trials, subjects, images, between, within, *, resamples=800):
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(subjects), images).tolist()
    held = 0
    for trial in range(trials):
        values = simulated(rng, subjects, images, between, within)
        found = clustered_interval(values, clusters, resamples=resamples, seed=trial)
        held += found.low <= 0.4 <= found.high
    return held / trials


@pytest.mark.parametrize("subjects,between,within", [(8, 0.1, 0.1), (20, 0.1, 0.02), (20, 0, 0.1)])
def test_intervals_cover_the_mean_at_their_confidence(subjects, between, within):
    assert 0.92 <= coverage(800, subjects, 4, between, within) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("subjects", [6, 10, 30])
@pytest.mark.parametrize("images", [1, 8])
@pytest.mark.parametrize("between,within", [(0.1, 0.0), (0.1, 0.1), (0.0, 0.1)])
def test_coverage_of_many_designs(subjects, images, between, within):
    assert 0.92 <= coverage(2000, subjects, images, between, within, resamples=2000) <= 0.97


def test_images_taken_as_independent_would_be_too_sure():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        found = mean_interval(simulated(rng, 10, 20, 0.1, 0.05))
        held += found.low <= 0.4 <= found.high
    assert held / 300 < 0.6


def test_resampling_the_images_as_well_would_be_too_wide():
    """Why each subject keeps its images: their noise would count twice."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        values = simulated(rng, 20, 4, 0, 0.1).reshape(20, 4)
        rows = rng.integers(0, 20, (400, 20))
        images = rng.integers(0, 4, (400, 20, 4))
        means = values[rows[..., None], images].mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        held += low <= 0.4 <= high
    assert held / 300 > 0.97


def test_every_subject_weighs_the_same():
    means, names = cluster_means([1, 1, 1, 5], ["a", "a", "a", "b"])
    assert names == ["a", "b"] and means.tolist() == [1, 5]
    found = clustered_interval([1, 1, 1, 5], ["a", "a", "a", "b"])
    assert found.mean == 3 and found.count == 2
    alone = clustered_interval([1, 2], ["a", "a"])
    assert alone.mean == 1.5 and math.isnan(alone.low)
    assert clustered_interval([1, 2, 4], [0, 1, 2]) == clustered_interval([1, 2, 4], [0, 1, 2])


def cells(rng, networks, subjects, *, between, of_networks, within=0.02, truth=0.4):
    """Values with their subjects and networks, one image a cell."""
    values = truth + of_networks * rng.normal(size=(networks, 1))
    values = values + between * rng.normal(size=subjects)
    values = values + within * rng.normal(size=(networks, subjects))
    rows, columns = np.indices(values.shape)
    return values.ravel(), columns.ravel().tolist(), rows.ravel().tolist()


@pytest.mark.parametrize("between,of_networks", [(0.1, 0.0), (0.1, 0.03), (0.02, 0.05)])
def test_intervals_cover_the_mean_over_networks_and_subjects(between, of_networks):
    rng, held, rejected = np.random.default_rng(0), 0, 0
    for trial in range(400):
        values = cells(rng, 3, 24, between=between, of_networks=of_networks)
        found = crossed(*values, resamples=600, seed=trial)
        held += found.interval.low <= 0.4 <= found.interval.high
        rejected += found.p(0.4) < 0.05
    assert 0.91 <= held / 400 <= 0.99 and 0.01 <= rejected / 400 <= 0.09


def test_one_network_is_the_interval_over_subjects():
    values, subjects = [1.0, 2.0, 4.0, 4.0], ["a", "b", "c", "c"]
    found = crossed(values, subjects, [0, 0, 0, 0])
    assert found.interval == clustered_interval(values, subjects) and found.df == 2
    assert math.isnan(crossed([1.0], ["a"], [0]).p(0.0))


def test_p_values_of_one_and_of_two_sides():
    rng = np.random.default_rng(0)
    values, subjects, networks = cells(rng, 3, 24, between=0.05, of_networks=0.01)
    found = crossed(values, subjects, networks)
    assert found.p(0.0) < 0.01 and found.p(0.0, 1) < 0.01 and found.p(0.0, -1) > 0.99
    assert found.p(found.mean) == pytest.approx(1) and found.p(0.9, -1) < 0.01
    assert found.p(0.4) == pytest.approx(2 * min(found.p(0.4, 1), found.p(0.4, -1)))


def test_only_subjects_of_every_network_count():
    found = crossed([1.0, 2.0, 9.0, 3.0, 4.0], list("abcab"), [0, 0, 0, 1, 1])
    assert found.mean == 2.5 and found.interval.count == 2
    with pytest.raises(UvitError, match="no subject has values of every network"):
        crossed([1.0, 2.0], ["a", "b"], [0, 1])


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_worst_and_pareto():
    assert worst([3, 1, 2, 2], ["x", "y", "z", "z"], 2) == [("y", 1.0), ("z", 2.0)]
    points = np.array([[1, 5], [2, 4], [1, 4], [3, 1], [2, 4], [0, 0]])
    assert pareto_front(points).tolist() == [True, True, False, True, True, False]
    with pytest.raises(UvitError, match="finite points"):
        pareto_front(np.array([[1, np.nan]]))


def test_a_ratios_interval_holds_it():
    rng, held = np.random.default_rng(0), 0
    for _ in range(600):
        a, b = rng.normal(60, 6, 6), rng.normal(2, 0.3, 6)
        parts = [(float(x.mean()), float(x.var(ddof=1) / 6), 5) for x in (a, b)]
        found = ratio_interval(*parts)
        held += found.low <= 30 <= found.high
    assert 0.93 <= held / 600 <= 0.98
    exact = ratio_interval((6.0, 0.0, 9), (2.0, 0.0, 9))
    assert exact.low == exact.high == exact.mean == 3


def test_break_even():
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        times = rng.normal(60, 3, 5), rng.normal(1, 0.05, 5), rng.normal(0.4, 0.02, 5)
        found = break_even(*times)
        held += found.low <= 100 <= found.high
    assert 0.93 <= held / 400 <= 0.995  # the least degrees of freedom are used
    assert break_even([60], [1.0], [0.4]).mean == pytest.approx(100)
    never = break_even([60, 61, 59], [0.4, 0.41, 0.4], [0.6, 0.61, 0.6])
    assert never.mean == never.high == math.inf and math.isinf(never.low)
    unsure = break_even([60, 61, 59], [0.5, 0.4, 0.6], [0.4, 0.5, 0.45])
    assert unsure.mean == pytest.approx(60 / 0.05) and unsure.high == math.inf
    assert 0 < unsure.low < unsure.mean
    with pytest.raises(UvitError, match="positive times, got lora"):
        break_even([1], [1], [])


def test_invalid_samples_raise():
    with pytest.raises(UvitError, match="finite"):
        clustered_interval([1, math.nan], [0, 1])
    with pytest.raises(UvitError, match="2 values have 1 clusters"):
        clustered_interval([1, 2], [0])
    with pytest.raises(UvitError, match="confidence"):
        clustered_interval([1, 2], [0, 1], confidence=1.0)
