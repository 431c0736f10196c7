"""Boxes are where subjects are, and mix-ups between subjects are told apart."""

from itertools import permutations

import numpy as np
import pytest

from experiments.subjects import boxes as b
from uvit_jax.errors import UvitError

TRUE = np.array([[6, 4, 26, 18], [10, 30, 30, 42], [30, 46, 58, 60]])
HUES = np.array([[1.0, -1, -1], [-1, 1, -1], [-0.2, -0.4, 1]])


def scene(kind="gradient", noise=0.02):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    background = np.zeros((64, 64, 3))
    if kind == "gradient":
        background += 0.3 * y[..., None] - 0.2 * x[..., None] * x[..., None]
    elif kind == "checks":
        background += 0.4 * ((x * 4 // 1 + y * 4 // 1) % 2)[..., None]
    image = background.copy()
    for (top, left, bottom, right), hue in zip(TRUE, HUES, strict=True):
        image[top:bottom, left:right] = hue
    return image + noise * rng.normal(size=image.shape), background


@pytest.mark.parametrize("kind", ["plain", "gradient", "checks"])
def test_subjects_are_found_where_they_are(kind):
    image, background = scene(kind)
    found = b.detect(image, background)
    assert b.iou(found, TRUE).argmax(axis=1).tolist() == [0, 1, 2]  # from left to right
    assert np.diag(b.iou(found, TRUE)).min() > 0.7
    if kind != "checks":  # a pattern has to be known
        assert np.diag(b.iou(b.detect(image), TRUE)).min() > 0.7
    assert b.detect(background, background).shape == (0, 4)
    with pytest.raises(UvitError, match="background"):
        b.detect(image, background[:5])


def test_crops_show_the_insides():
    image, _ = scene(noise=0)
    inside = b.crops([image], [TRUE], 8)
    assert inside.shape == (3, 8, 8, 3)
    assert np.abs(inside[:, 3:5, 3:5].mean(axis=(1, 2)) - HUES).max() < 0.02
    assert b.crops([image], [np.zeros((0, 4))], 8).shape == (0, 8, 8, 3)
    edge = b.crops([image], [np.array([[0, 0, 4, 64]])], 8)  # wider than what is around it
    assert np.isfinite(edge).all()


def test_intersection_over_union_by_hand():
    a, other = [[0, 0, 2, 2]], [[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]]
    assert np.allclose(b.iou(a, other), [[1, 1 / 7, 0]])


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
    # Without places, boxes are taken for whom they fit best.
    assert b.detect_and_compare(centres[[1, 0, 2]], known) == pytest.approx(right)
    # A wrong number of boxes scores nothing.
    assert b.detect_and_compare(centres[:2], known) == 0
    assert b.detect_and_compare(np.concatenate([centres, centres[:1]]), known) == 0
