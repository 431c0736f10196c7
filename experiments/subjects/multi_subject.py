"""Metrics of images with several subjects: swapped and missing identities, leaked factors.

They take features of K boxes, one around each subject that was detected or is known from the scene,
and features of the references of S subjects.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize

from uvit_jax.errors import UvitError


def cosine(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """Cosine similarities of features (N, D) and (M, D): float64 (N, M)."""
    a, b = (np.asarray(x, np.float64) for x in (a_ND, b_MD))
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return (a / norms[0]) @ (b / norms[1]).T


def assign(similarity_KS: np.ndarray) -> list[tuple[int, int]]:
    """The min(K, S) pairs (box, subject) of the greatest total similarity (Kuhn 1955)."""
    similarity = np.asarray(similarity_KS, np.float64)
    if similarity.ndim != 2 or not np.isfinite(similarity).all():
        raise UvitError(f"an assignment needs finite similarities (K, S), got {similarity.shape}")
    rows, columns = optimize.linear_sum_assignment(similarity, maximize=True)
    return [(int(k), int(s)) for k, s in zip(rows, columns, strict=True)]


def set_similarity(
    boxes_KD: np.ndarray, references: Sequence[np.ndarray], *, scale: float = 1.0
) -> np.ndarray:
    """The mean cosine of each box to the references of each subject, (K, S).

    Args:
      boxes_KD: features of the boxes. references: features (R, D) of each subject's references.
    """
    if not len(boxes_KD):
        return np.zeros((0, len(references)))
    return scale * np.stack([cosine(boxes_KD, r).mean(axis=1) for r in references], axis=1)


def identities(similarity_KS: np.ndarray, place_K: Sequence[int]) -> dict[str, float]:
    """Rates in [0, 1] of correct, swapped, missing and duplicated identities.

    Args:
      similarity_KS: of K boxes to S subjects, as `set_similarity` returns it.
      place_K: the subject that the prompt puts in each box, each at most once.

    Returns:
      `right`: the share of the S subjects whose box is assigned to them; `swapped`: whose box is
      assigned to another subject of the prompt; `missing`: without a box. These sum to 1.
      `duplicated`: the share of boxes whose most similar subject matches another box better.

    Raises:
      UvitError: if a subject has two boxes, or is not among the S.
    """
    similarity = np.asarray(similarity_KS, np.float64)
    K, S = similarity.shape
    place = np.asarray(place_K, int)
    if place.shape != (K,) or len(set(place.tolist())) < K or not set(place) <= set(range(S)):
        raise UvitError(
            f"each of {S} subjects has at most one place among {K} boxes, got {place_K}"
        )
    if not K:
        return {"right": 0.0, "swapped": 0.0, "missing": 1.0, "duplicated": 0.0}
    pairs = dict(assign(similarity))
    right = sum(pairs[k] == place[k] for k in range(K))
    nearest, best = similarity.argmax(axis=1), similarity.max(axis=1)
    duplicated = sum(
        any(nearest[j] == nearest[k] and best[j] > best[k] for j in range(K)) for k in range(K)
    )
    return {
        "right": right / S,
        "swapped": (K - right) / S,
        "missing": (S - K) / S,
        "duplicated": duplicated / K,
    }


def leak_rate(
    predicted: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    subject_K: Sequence[int],
) -> float:
    """How often a box shows another subject's factor value instead of its own.

    Args:
      predicted: by factor, values (K,) of the boxes. labels: by factor, values (S,).
      subject_K: the subject of each box, by place or by `assign`.

    Returns:
      Over all pairs (box, factor) in which another subject's value differs from the own one: the
      share in which the prediction is another subject's value. NaN if there is no such pair.
    """
    leaked = counted = 0
    for name, values in labels.items():
        for value, subject in zip(np.asarray(predicted[name]), subject_K, strict=True):
            own = values[subject]
            others = {v for v in np.asarray(values).tolist() if v != own}
            counted += bool(others)
            leaked += int(value) in others
    return leaked / counted if counted else float("nan")


def detect_and_compare(
    boxes_KD: np.ndarray, references: Sequence[np.ndarray], places: Sequence[int]
) -> float:
    """MuDI's detect-and-compare score, max(0, 1 - ‖S - S_ref‖) (Jang et al. 2024).

    S are the similarities of the boxes to the sets of references, S_ref those among the sets, where
    no image is compared with itself; the norm is Frobenius'. A wrong number of boxes scores 0.

    Args:
      boxes_KD: features of the boxes. references: features (R, D) of each subject's references.
      places: the subject that the prompt puts in each box.
    """
    S = len(references)
    if len(boxes_KD) != S:
        return 0.0
    found = set_similarity(boxes_KD, references)
    expected = np.stack([_between(a, references) for a in references])
    return max(0.0, 1 - float(np.linalg.norm(found - expected[np.asarray(places)])))


def _between(own: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Mean cosines of one set to each, without those of an image to itself."""
    means = []
    for other in references:
        cosines = cosine(own, other)
        if other is own and len(own) > 1:
            cosines = cosines[~np.eye(len(own), dtype=bool)]
        means.append(cosines.mean())
    return np.array(means)
