"""Scores with known answers: pairs, galleries, thresholds, factors, copies, frames."""

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.evaluation import consistency as c


def features(count, size=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size))


def test_pairings_of_identity():
    real, generated = features(3), features(3, seed=1)
    table = [
        [float(g @ r / np.linalg.norm(g) / np.linalg.norm(r)) for r in real] for g in generated
    ]
    assert np.allclose(c.identity_scores(real, generated), np.mean(table, axis=1))
    assert np.allclose(c.identity_scores(real, generated, pairing="max"), np.max(table, axis=1))
    one = c.identity_scores(real, generated, pairing="one_to_one")
    assert np.allclose(one, np.diag(table))
    # A feature's length says nothing.
    assert np.allclose(c.identity_scores(3 * real, 0.1 * generated), np.mean(table, axis=1))
    assert np.allclose(c.prior_scores(real, generated), np.mean(table, axis=1))
    with pytest.raises(UvitError, match="as many real as generated"):
        c.identity_scores(real[:2], generated, pairing="one_to_one")
    with pytest.raises(UvitError, match="pairing is one of"):
        c.identity_scores(real, generated, pairing="some")
    with pytest.raises(UvitError, match="picture 1 are zero or not finite"):
        c.identity_scores(real, generated * np.array([[1], [0], [1]]))


def test_text_scores():
    images, texts = np.eye(3), np.array([[1.0, 0, 0], [0, -2, 0], [0, 1, 1]])
    assert np.allclose(c.text_scores(images, texts), [1, -1, 0.5**0.5])
    assert np.allclose(c.text_scores(images, texts, clip_score=True), [2.5, 0, 2.5 * 0.5**0.5])


def test_a_gallery_tells_identities_apart_as_well_as_noise_allows():
    centres = features(20, 32)
    identity = np.repeat(np.arange(20), 3) + 100
    gallery = np.repeat(centres, 3, axis=0) + 0.1 * features(60, 32, seed=1)
    own = np.arange(20) + 100
    rates, areas, errors = [], [], []
    for noise in (0.1, 3.0, 1e4):
        generated = centres + noise * features(20, 32, seed=2)
        rates.append(c.top1(generated, own, gallery, identity).mean())
        found = c.verification(generated, own, gallery, identity)
        assert found.genuine.shape == (20,) and found.impostor.shape == (380,)
        areas.append(found.auc)
        errors.append(found.eer)
    assert rates[0] == 1 and areas[0] == 1 and errors[0] == 0
    assert rates[0] > rates[1] > rates[2] and areas[0] > areas[1] > areas[2]
    assert areas[2] == pytest.approx(0.5, abs=0.15) and errors[2] == pytest.approx(0.5, abs=0.15)
    with pytest.raises(UvitError, match="identity 7 is not in the gallery"):
        c.top1(centres[:1], np.array([7]), gallery, identity)


def test_auc_and_error_rate_by_hand():
    assert c.auc([1, 2], [0, 1]) == (4 - 0.5) / 4
    assert c.equal_error_rate([2, 3], [0, 1]) == 0
    assert c.equal_error_rate([0, 1], [2, 3]) == 1
    rng = np.random.default_rng(0)
    # Two normals a distance d apart have AUC Φ(d/√2) and EER Φ(-d/2).
    genuine, impostor = rng.normal(2, 1, 40_000), rng.normal(0, 1, 40_000)
    assert c.auc(genuine, impostor) == pytest.approx(0.9214, abs=0.005)
    assert c.equal_error_rate(genuine, impostor) == pytest.approx(0.1587, abs=0.005)


def test_only_visible_factors_count():
    labels = {"hue": np.array([1, 2, 3]), "back": np.array([5, 5, 5])}
    predicted = {"hue": np.array([1, 0, 3]), "back": np.array([5, 5, 0]), "more": np.zeros(3)}
    hits = c.factor_hits(predicted, labels, {"back": np.array([True, False, True])})
    assert hits["hue"].tolist() == [1, 0, 1]
    assert np.isnan(hits["back"][1]) and hits["back"][[0, 2]].tolist() == [1, 0]
    assert hits["visible_factors"].tolist() == [1, 0, 0.5]
    with pytest.raises(UvitError, match="predicts no back"):
        c.factor_hits({"hue": predicted["hue"]}, labels, {})


def test_diversity():
    distances = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]])
    assert c.diversity(distances) == 2
    with pytest.raises(UvitError, match="two or more"):
        c.diversity(np.zeros((1, 1)))


def test_copies_are_found_and_oracles_are_not():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=32)
    views = lambda n: centre + 0.5 * rng.normal(size=(n, 32))  # noqa: E731
    references, oracle = views(3), views(400)
    threshold = c.copy_threshold(c.identity_scores(references, oracle, pairing="max"), 0.95)
    assert c.copies(references, oracle, threshold).mean() == pytest.approx(0.05, abs=0.01)
    assert c.copies(references, references + 0.01, threshold).all()
    pictures = rng.uniform(-1, 1, (3, 8, 8, 3))
    made = np.stack([pictures[1] + 0.05, rng.uniform(-1, 1, (8, 8, 3)), pictures[2, ::-1]])
    assert c.pixel_copies(pictures, made).tolist() == [True, False, False]


def test_frames():
    still = np.repeat(features(1), 5, axis=0)
    assert c.frame_consistency(still) == pytest.approx(1)
    a, b = np.eye(2)
    # cos to the frame before, and to the first: (0, 0), (1, 0), then (0, 1).
    assert c.frame_consistency(np.stack([a, b, b, a])) == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert c.frame_consistency(np.stack([a, -a])) == 0
