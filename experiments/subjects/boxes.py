"""Several subjects in one picture: where they are, which is which, and what got mixed up.

    boxes = detect(image, background)                   # or the boxes that a scene is known to have
    features = embed(crops([image], [boxes], size))
    pairs = assign(similarity_KS)                       # boxes to subjects

A box is (top, left, bottom, right) in pixels, the last two exclusive.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage, optimize

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.consistency import cosine
from uvit_jax.io import to_uint8


def estimate_background(image_HWC: np.ndarray, *, border: float = 0.08) -> np.ndarray:
    """A smooth background: the quadratic in place that fits the picture's rim, (H, W, C).

    It is fitted twice, the second time without the quarter of the rim that fits worst, where a
    subject may reach it. For backgrounds that are a colour or a gradient; give `detect` the true
    one where it has a pattern.
    """
    H, W, C = image_HWC.shape
    y, x = np.meshgrid(np.linspace(-1, 1, H), np.linspace(-1, 1, W), indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
    rim = np.zeros((H, W), bool)
    depth = max(1, round(border * min(H, W)))
    rim[:depth] = rim[-depth:] = rim[:, :depth] = rim[:, -depth:] = True
    inputs, wanted = basis[rim], np.asarray(image_HWC, np.float64)[rim]
    weights = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    misfit = np.abs(inputs @ weights - wanted).max(axis=-1)
    good = misfit <= np.quantile(misfit, 0.75)
    weights = np.linalg.lstsq(inputs[good], wanted[good], rcond=None)[0]
    return (basis.reshape(-1, 6) @ weights).reshape(H, W, C).astype(np.float32)


def detect(
    image_HWC: np.ndarray,
    background_HWC: np.ndarray | None = None,
    *,
    threshold: float = 0.25,
    least_area: float = 0.01,
    smooth: float = 0.5,
) -> np.ndarray:
    """Boxes of what differs from the background: int64 (K, 4), from left to right.

    Made for the procedural worlds, where subjects stand apart on a plain or known background; it is
    no detector of things in photographs. Subjects that touch come out as one box.

    Args:
      image_HWC: floats in [-1, 1]. background_HWC: the same without subjects; None estimates it.
      threshold: the difference, in the channel where it is greatest, from which on a pixel is
        foreground; of a range of 2. smooth: sigma of the blur before that, in pixels.
      least_area: of a subject, as a share of the picture.
    """
    image = np.asarray(image_HWC, np.float32)
    if image.ndim != 3:
        raise UvitError(f"detection is of one picture (H, W, C), got {image.shape}")
    if background_HWC is None:
        background_HWC = estimate_background(image)
    if np.shape(background_HWC) != image.shape:
        raise UvitError(f"the background {np.shape(background_HWC)} is not of {image.shape}")
    difference = ndimage.gaussian_filter(image - background_HWC, (smooth, smooth, 0))
    mask = ndimage.binary_fill_holes(np.abs(difference).max(axis=-1) > threshold)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
    found = [
        (rows.start, columns.start, rows.stop, columns.stop)
        for (rows, columns), area in zip(ndimage.find_objects(labels), areas, strict=True)
        if area >= least_area * mask.size
    ]
    return np.array(sorted(found, key=lambda box: box[1] + box[3]), np.int64).reshape(-1, 4)


def crops(images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The insides of boxes as squares for an encoder, float32 (sum of K, size, size, C).

    A box is widened to a square about its centre; what lies outside of the picture repeats its
    edge. Resizing is bicubic, antialiased.

    Args:
      images: each (H, W, C) in [-1, 1]. boxes: of each picture (K, 4).
    """
    found = []
    for image, of_image in zip(images, boxes, strict=True):
        for top, left, bottom, right in np.asarray(of_image):
            side = int(max(bottom - top, right - left))
            if side < 1:
                raise UvitError(f"the box {(top, left, bottom, right)} is empty")
            rows = np.arange(side) + (top + bottom - side) // 2
            columns = np.arange(side) + (left + right - side) // 2
            square = image[
                np.clip(rows, 0, image.shape[0] - 1)[:, None],
                np.clip(columns, 0, image.shape[1] - 1),
            ]
            found.append(_resized(square, size))
    return np.stack(found) if found else np.zeros((0, size, size, 3), np.float32)


def iou(a_K4: np.ndarray, b_S4: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, (K, S)."""
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a_K4, b_S4))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def assign(similarity_KS: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (box, subject) with the greatest total similarity, min(K, S) of them, by box
    (Kuhn 1955)."""
    similarity = np.asarray(similarity_KS, np.float64)
    if similarity.ndim != 2 or not np.isfinite(similarity).all():
        raise UvitError(f"an assignment is of finite similarities (K, S), got {similarity.shape}")
    rows, columns = optimize.linear_sum_assignment(similarity, maximize=True)
    return [(int(k), int(s)) for k, s in zip(rows, columns, strict=True)]


def set_similarity(
    boxes_KD: np.ndarray, references: Sequence[np.ndarray], *, scale: float = 1.0
) -> np.ndarray:
    """Each box's mean cosine to each subject's set of references, (K, S).

    Args:
      boxes_KD: features of the boxes' insides. references: of each subject features (R, D).
    """
    if not len(boxes_KD):
        return np.zeros((0, len(references)))
    return scale * np.stack([cosine(boxes_KD, r).mean(axis=1) for r in references], axis=1)


def identities(similarity_KS: np.ndarray, place_K: Sequence[int]) -> dict[str, float]:
    """What became of each subject, for boxes whose subject is known by place: rates in [0, 1].

    Args:
      similarity_KS: of K boxes to S subjects, as `set_similarity`.
      place_K: the subject that was asked for in each box, each at most once.

    Returns:
      `right`: the share of the S subjects whose box is assigned to them. `swapped`: of those whose
      box is assigned to another subject that was asked for. `missing`: of those without a box. They
      sum to 1. `duplicated`: the share of boxes whose nearest subject is nearest to another box,
      too, and nearer there.
    """
    similarity = np.asarray(similarity_KS, np.float64)
    K, S = similarity.shape
    place = np.asarray(place_K, int)
    if place.shape != (K,) or len(set(place.tolist())) < K or not set(place) <= set(range(S)):
        raise UvitError(f"{K} boxes have {S} subjects, each in at most one place; got {place_K}")
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
    """How often a box shows another subject's factor in place of its own.

    Args:
      predicted: by factor, of each box (K,). labels: by factor, of each subject (S,).
      subject_K: each box's subject, by place or by `assign`.

    Returns:
      Of all (box, factor) where another subject of the picture differs from the box's own, the
      share in which the prediction is such another's value; NaN if there are none.
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
    boxes_KD: np.ndarray, references: Sequence[np.ndarray], places: Sequence[int] | None = None
) -> float:
    """MuDI's score of a picture with several subjects: 1 - ‖S - S_ref‖ (Jang et al. 2024).

    S are the similarities of the boxes to the sets of references, S_ref those of the sets among
    each other, where a picture is not compared with itself. The norm is Frobenius'. **A wrong
    number of boxes scores 0**, and so does what falls below.

    Args:
      boxes_KD: features of the detected boxes. references: of each of S subjects features (R, D).
      places: the subject asked for in each box; None takes the assignment that fits best.
    """
    S = len(references)
    if len(boxes_KD) != S:
        return 0.0
    found = set_similarity(boxes_KD, references)
    order = dict(assign(found)) if places is None else dict(enumerate(places))
    expected = np.stack([_between(a, references) for a in references])
    rows = np.array([order[k] for k in range(S)])
    return max(0.0, 1 - float(np.linalg.norm(found - expected[rows])))


def _between(own: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Mean cosines of one set to each, without those of a picture to itself."""
    means = []
    for other in references:
        cosines = cosine(own, other)
        if other is own and len(own) > 1:
            cosines = cosines[~np.eye(len(own), dtype=bool)]
        means.append(cosines.mean())
    return np.array(means)


def _resized(square: np.ndarray, size: int) -> np.ndarray:
    picture = to_uint8(square)
    picture = Image.fromarray(picture.repeat(3, axis=-1) if picture.shape[-1] == 1 else picture)
    resized = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32) / 127.5 - 1
