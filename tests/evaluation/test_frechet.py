"""Streaming moments and the Fréchet distance, against closed forms and scipy."""

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.frechet import (
    Moments,
    Statistics,
    frechet_distance,
    read_statistics,
    write_statistics,
)

D = 24


def features(count, seed=0, rank=D):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, D)) * np.geomspace(1, 1e-2, D)
    return 5 + rng.normal(size=(count, rank)) @ mixing


def statistics(x):
    return Moments.of(x).statistics()


def equal(a, b):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-13)
    np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-13 * np.abs(b.covariance).max())


def test_streamed_in_any_parts_and_order_is_all_at_once():
    x = features(200) + 1e4  # far from the origin, where sums of squares would cancel
    whole = statistics(x)
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-12)
    parts = [Moments.of(part) for part in np.split(x, [1, 2, 50, 51, 130])]
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = left.merge(part)
    for part in parts[-2::-1]:
        right = right.merge(part)
    tree = (parts[3].merge(parts[0])).merge(parts[5].merge(parts[1])).merge(parts[4])
    for merged in (left, right, tree.merge(parts[2])):
        equal(merged.statistics(), whole)


@pytest.mark.parametrize("count", [200, 7])  # 7: a singular covariance
def test_a_set_is_at_no_distance_from_itself(count):
    x = statistics(features(count))
    scale = np.trace(x.covariance)
    assert frechet_distance(x, x) < 1e-12 * scale


def test_symmetric_and_only_the_mean_moves_with_a_shift():
    a, b = statistics(features(200, 1)), statistics(features(150, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    shift = np.linspace(-1, 2, D)
    far = Statistics(b.mean + shift, b.covariance)
    difference = frechet_distance(a, far) - frechet_distance(a, b)
    gap = a.mean - b.mean
    assert difference == pytest.approx((gap - shift) @ (gap - shift) - gap @ gap, rel=1e-9)


def test_two_gaussians_whose_covariances_commute():
    # Then it is |Δμ|² + Σ (√λa - √λb)²; a variance may be zero.
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    values = rng.uniform(0, 4, size=(2, D))
    values[0, :5] = 0
    values[1, 3:9] = 0
    means = rng.normal(size=(2, D))
    a, b = (Statistics(m, (basis * v) @ basis.T) for m, v in zip(means, values, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + (
        (values[0] ** 0.5 - values[1] ** 0.5) ** 2
    ).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    one = [Statistics(np.array([m]), np.array([[v]])) for m, v in ((1.0, 4.0), (3.0, 9.0))]
    assert frechet_distance(*one) == pytest.approx(4 + 1)


def test_the_trace_is_that_of_scipys_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = statistics(features(300, 4)), statistics(features(300, 5))
    gap = a.mean - b.mean
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = gap @ gap + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_singular_covariances_are_as_good_as_their_subspace():
    # Features that fill 6 dimensions of 24: the same distance, computed in those 6.
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(D, 6)))[0]
    x, y = rng.normal(size=(100, 6)), 2 * rng.normal(size=(100, 6)) + 1
    small = frechet_distance(statistics(x), statistics(y))
    large = frechet_distance(statistics(x @ basis.T), statistics(y @ basis.T))
    assert large == pytest.approx(small, rel=1e-10)


def test_files_round_trip_bit_for_bit_and_official_ones_are_read(tmp_path):
    x = Moments.of(features(50)).statistics("pixels-1")
    write_statistics(tmp_path / "own.npz", x)
    y = read_statistics(tmp_path / "own.npz")
    assert np.array_equal(x.mean, y.mean) and np.array_equal(x.covariance, y.covariance)
    assert (y.count, y.encoder) == (50, "pixels-1")
    np.savez(tmp_path / "official.npz", mu=x.mean.astype(np.float32), sigma=x.covariance)
    official = read_statistics(tmp_path / "official.npz")
    assert official.mean.dtype == np.float64 and official.count is None and not official.encoder


def test_bad_statistics_raise(tmp_path):
    path = tmp_path / "bad.npz"
    x = statistics(features(50))
    for arrays, message in (
        (dict(mu=x.mean), "mu or sigma is missing"),
        (dict(mu=x.mean, sigma=x.covariance[1:]), r"should be \(D,\) and \(D, D\)"),
        (dict(mu=x.mean, sigma=x.covariance * np.nan), "not finite"),
        (dict(mu=np.array([None]), sigma=x.covariance), "not an npz of plain arrays"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UvitError, match=message):
            read_statistics(path)
    with pytest.raises(UvitError, match="at least 2 images"):
        statistics(features(1))
    with pytest.raises(UvitError, match="not finite"):
        Moments.of(np.array([[1.0, np.inf]]))
    with pytest.raises(UvitError, match="cannot be compared"):
        frechet_distance(x, Statistics(x.mean[1:], x.covariance[1:, 1:]))
    with pytest.raises(UvitError, match="the encoders a and b cannot"):
        frechet_distance(*(Moments.of(features(5)).statistics(name) for name in "ab"))
