"""Precision and recall on sets for which one knows them."""

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.precision_recall import precision_recall


def clusters(count, centres, seed):
    rng = np.random.default_rng(seed)
    return np.concatenate([c + rng.normal(size=(count, 16)) for c in centres]).astype(np.float32)


def by_hand(samples, reference, k=3):
    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)

    def share(points, centres):
        radii = np.sort(distances(centres, centres), axis=1)[:, k]  # the 0th is the point itself
        return (distances(points, centres) <= radii).any(axis=1).mean()

    return share(samples, reference), share(reference, samples)


def test_identical_sets_and_disjoint_ones():
    x = clusters(60, (0, 10), 0)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1e3) == (0, 0)


@pytest.mark.parametrize("block", [7, 64, 1024])
def test_in_blocks_of_any_size_it_is_the_definition(block):
    x, y = clusters(50, (0, 4), 1), clusters(45, (1, 4), 2)
    expected = by_hand(x, y)
    assert min(expected) > 0.05 and max(expected) < 0.95
    assert precision_recall(x, y, block=block) == pytest.approx(expected)


def test_dropping_a_mode_costs_recall_only():
    # The samples are half of the reference itself: all of them are among it, half of it is lost.
    reference = clusters(80, (0, 50), 3)
    precision, recall = precision_recall(reference[:80], reference)
    assert precision == 1 and recall == 0.5


def test_a_mode_that_is_not_there_costs_precision_only():
    samples = clusters(80, (0, 50), 4)
    precision, recall = precision_recall(samples, samples[:80])
    assert precision == 0.5 and recall == 1


def test_nothing_changes_far_from_the_origin():
    x, y = clusters(50, (0, 4), 5), clusters(50, (1, 4), 6)
    far = 2.0**10  # sums with it are exact enough, squares are not
    assert precision_recall(x + far, y + far) == pytest.approx(precision_recall(x, y), abs=0.03)


def test_too_few_features_raise():
    x = clusters(3, (0,), 7)
    with pytest.raises(UvitError, match="k=3 need more than 3 samples, got 3"):
        precision_recall(x, clusters(9, (0,), 8))
    with pytest.raises(UvitError, match="more than 3 reference"):
        precision_recall(clusters(9, (0,), 8), x)
