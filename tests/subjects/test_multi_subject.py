"""Swapped, missing, duplicated and leaking subjects are distinguished."""

from itertools import permutations

import numpy as np
import pytest

from experiments.subjects import multi_subject as b
from uvit_jax.errors import UvitError


def test_assignment_is_the_best_of_all():
    similarity = np.random.default_rng(0).normal(size=(4, 3))

    best = max(
        permutations(range(4), 3), key=lambda p: sum(similarity[k, s] for s, k in enumerate(p))
    )
    assert sorted(b.assign(similarity)) == sorted((k, s) for s, k in enumerate(best))


def references(subjects=3, views=4, noise=0.2, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:subjects]
    return centres, [c + noise * rng.normal(size=(views, 16)) / 4 for c in centres]


def test_swaps_misses_and_doubles():
    centres, known = references()
    rate = lambda rows, place: b.identities(  # noqa: E731
        b.set_similarity(centres[list(rows)], known), place
    )
    assert rate((0, 1, 2), [0, 1, 2]) == dict(right=1, swapped=0, missing=0, duplicated=0)
    swapped = rate((1, 0, 2), [0, 1, 2])
    assert swapped["swapped"] == pytest.approx(2 / 3) and swapped["right"] == pytest.approx(1 / 3)
    assert rate((0, 1), [0, 1])["missing"] == pytest.approx(1 / 3)
    doubled = b.identities(np.array([[0.9, 0.1], [0.8, 0.2]]), [0, 1])
    assert doubled["duplicated"] == 0.5 and doubled["right"] == 1
    assert b.identities(b.set_similarity(np.zeros((0, 16)), known), [])["missing"] == 1
    with pytest.raises(UvitError, match="at most one place"):
        rate((0, 1), [0, 0])


def test_a_leak_is_anothers_factor_and_no_mere_error():
    labels = {"hue": np.array([1, 2]), "top": np.array([3, 3])}  # the tops are alike: no leak
    found = lambda hue: b.leak_rate({"hue": np.array(hue), "top": np.array([0, 0])}, labels, [0, 1])  # noqa: E731
    assert found([1, 2]) == 0 and found([2, 2]) == 0.5 and found([2, 1]) == 1 and found([7, 7]) == 0
    assert np.isnan(b.leak_rate({"top": np.zeros(2)}, {"top": labels["top"]}, [0, 1]))


def test_detect_and_compare_falls_with_every_fault():
    centres, known = references()
    right = b.detect_and_compare(centres, known, [0, 1, 2])
    mixed = centres.copy()
    mixed[0] = centres[0] + centres[1]
    swapped = b.detect_and_compare(centres[[1, 0, 2]], known, [0, 1, 2])
    assert right > 0.9 > b.detect_and_compare(mixed, known, [0, 1, 2]) > swapped == 0
    # A wrong number of boxes scores nothing.
    assert b.detect_and_compare(centres[:2], known, [0, 1]) == 0
    assert b.detect_and_compare(np.concatenate([centres, centres[:1]]), known, [0, 1, 2, 0]) == 0
