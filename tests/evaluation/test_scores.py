"""Inception Score and KID on inputs with known answers."""

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.scores import inception_score, kernel_distance


def test_a_sure_and_balanced_classifier_scores_its_classes():
    logits = 1e3 * np.eye(8, dtype=np.float32)[np.arange(800) % 8]
    assert inception_score(logits) == pytest.approx((8, 0), abs=1e-9)
    # Classes that never come do not count; one class alone scores 1, and so do constant logits.
    assert inception_score(logits[np.arange(800) % 8 < 4])[0] == pytest.approx(4)
    assert inception_score(logits[::8])[0] == pytest.approx(1)
    assert inception_score(np.ones((40, 8)) * 3)[0] == pytest.approx(1)


def test_splits_are_consecutive():
    # Each split sees one class only, all together see ten.
    logits = 1e3 * np.eye(10)[np.repeat(np.arange(10), 5)]
    assert inception_score(logits, splits=10)[0] == pytest.approx(1)
    assert inception_score(logits, splits=1)[0] == pytest.approx(10)
    with pytest.raises(UvitError, match="51 splits"):
        inception_score(logits, splits=51)


def test_kid_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)

    def draw(shift):
        return rng.normal(size=(64, 16)) + shift

    same = [kernel_distance(draw(0), draw(0), subsets=1)[0] for _ in range(200)]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 4 * error and min(same) < 0
    mean, std = kernel_distance(draw(0), draw(0.5), size=32)
    assert mean > 10 * error and std > 0


def test_kid_of_two_points_each_by_hand():
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    # k(0, 1) = 1 and k(2, 3) = 343 within; 1, 1, 27 and 64 apart.
    assert kernel_distance(x, y, subsets=3)[0] == pytest.approx(1 + 343 - 2 * 93 / 4)
    with pytest.raises(UvitError, match="at least 2"):
        kernel_distance(x[:1], y)
