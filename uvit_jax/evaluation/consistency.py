"""Does a picture show its subject? Scores from features, one a generated picture.

Everything is a function of arrays: features from any encoder (see `encoders`), predictions of any
judge. Scores come picture by picture, so that `clusters` can average them by subject. A figure is
named by its encoder, preparation and pairing (`preparation.Convention.metric`): "DINO" alone names
three different numbers.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from uvit_jax.errors import UvitError

PAIRINGS = ("all", "one_to_one", "max")


def cosine(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """Cosines of features (N, D) and (M, D): (N, M), float64.

    Raises:
      UvitError: if shapes do not fit, or a feature is zero or not finite.
    """
    return _unit(a_ND) @ _unit(b_MD).T


def identity_scores(
    real_RD: np.ndarray, generated_GD: np.ndarray, *, pairing: str = "all"
) -> np.ndarray:
    """How alike each generated picture is to one subject's real ones, float64 (G,).

    Args:
      real_RD, generated_GD: features of one subject's pictures.
      pairing: "all": the mean cosine to all real ones, whose mean over pictures is that over all
        pairs (DreamBench, Ruiz et al. 2022). "one_to_one": to the real one of the same row
        (DreamBench++). "max": to the nearest real one.

    Raises:
      UvitError: of another pairing, or one_to_one of unequal numbers.
    """
    if pairing not in PAIRINGS:
        raise UvitError(f"pairing is one of {', '.join(PAIRINGS)}, got {pairing!r}")
    if pairing == "one_to_one":
        real, generated = _unit(real_RD), _unit(generated_GD)
        if real.shape != generated.shape:
            raise UvitError(
                f"one_to_one pairs need as many real as generated pictures, got {len(real)} and "
                f"{len(generated)}"
            )
        return (real * generated).sum(axis=1)
    cosines_GR = cosine(generated_GD, real_RD)
    return cosines_GR.mean(axis=1) if pairing == "all" else cosines_GR.max(axis=1)


def text_scores(
    images_GE: np.ndarray, texts_GE: np.ndarray, *, clip_score: bool = False
) -> np.ndarray:
    """How well each picture fits its text: the cosine of CLIP's two embeddings, float64 (G,).

    Args:
      clip_score: 2.5 · max(cosine, 0) instead (Hessel et al. 2021), as CustomConcept101 has it.
    """
    cosines = identity_scores(texts_GE, images_GE, pairing="one_to_one")
    return 2.5 * np.maximum(cosines, 0) if clip_score else cosines


def top1(
    generated_GD: np.ndarray, own_G: np.ndarray, gallery_MD: np.ndarray, identity_M: np.ndarray
) -> np.ndarray:
    """Whether, of all identities of a gallery, a picture is nearest to its own: bool (G,).

    An identity's similarity is the mean cosine to its pictures.

    Args:
      own_G: each picture's identity, among those in identity_M. identity_M: of the gallery.

    Raises:
      UvitError: if an identity is not in the gallery.
    """
    similarity_GI, identities = gallery_similarity(generated_GD, gallery_MD, identity_M)
    return identities[similarity_GI.argmax(axis=1)] == _known(own_G, identities)


def gallery_similarity(
    generated_GD: np.ndarray, gallery_MD: np.ndarray, identity_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosines to each identity's pictures (G, I), and the identities (I,), sorted."""
    identities, column_M = np.unique(np.asarray(identity_M), return_inverse=True)
    member_MI = np.eye(len(identities))[column_M]
    return cosine(generated_GD, gallery_MD) @ (member_MI / member_MI.sum(axis=0)), identities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """auc: how often a genuine pair is more alike than an impostor's. eer: the error rate at the
    threshold where as many genuine pairs are refused as impostors are let in. genuine, impostor:
    the scores."""

    auc: float
    eer: float
    genuine: np.ndarray
    impostor: np.ndarray


def verification(
    generated_GD: np.ndarray, own_G: np.ndarray, gallery_MD: np.ndarray, identity_M: np.ndarray
) -> Verification:
    """Can a threshold on similarity tell a picture's own identity from impostors?

    Args: as `top1`. Each picture makes one genuine pair, and one with every other identity.
    """
    similarity_GI, identities = gallery_similarity(generated_GD, gallery_MD, identity_M)
    own = identities[None] == _known(own_G, identities)[:, None]
    genuine, impostor = similarity_GI[own], similarity_GI[~own]
    return Verification(
        auc=auc(genuine, impostor),
        eer=equal_error_rate(genuine, impostor),
        genuine=genuine,
        impostor=impostor,
    )


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The probability that a positive score exceeds a negative one; ties count half."""
    positive, negative = _scores(positive), _scores(negative)
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(ordered)))


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Where false refusals and false acceptances cross, interpolated between thresholds."""
    genuine, impostor = np.sort(_scores(genuine)), np.sort(_scores(impostor))
    thresholds = np.unique(np.concatenate([genuine, impostor, [np.inf]]))
    refused = np.searchsorted(genuine, thresholds, "left") / len(genuine)
    accepted = 1 - np.searchsorted(impostor, thresholds, "left") / len(impostor)
    after = int(np.argmax(refused >= accepted))
    if after == 0:
        return float(accepted[0])
    gaps = (accepted - refused)[after - 1 : after + 1]
    share = gaps[0] / (gaps[0] - gaps[1])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


def factor_hits(
    predicted: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    visible: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Which factors of each picture a judge reads as they should be: 1, 0, or NaN unless visible.

    Args:
      predicted, labels: by factor, whole numbers (G,). visible: bool (G,), whether the view that
        was asked for shows the factor; a factor that is missing there is always visible.

    Returns:
      By factor float64 (G,), and `visible_factors`, each picture's share of right ones.

    Raises:
      UvitError: if a factor has no prediction.
    """
    if missing := sorted(set(labels) - set(predicted)):
        raise UvitError(f"the judge predicts no {', '.join(missing)}")
    hits = {}
    for name, label in labels.items():
        hit = (np.asarray(predicted[name]) == np.asarray(label)).astype(np.float64)
        shown = np.asarray(visible.get(name, np.ones(hit.shape, bool)), bool)
        hits[name] = np.where(shown, hit, np.nan)
    stacked_FG = np.stack(list(hits.values()))
    counted = (~np.isnan(stacked_FG)).sum(axis=0)
    total = np.nansum(stacked_FG, axis=0)
    hits["visible_factors"] = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    return hits


def diversity(distances_GG: np.ndarray) -> float:
    """DIV: the mean distance of two samples of one prompt (higher is better; Ruiz et al. 2022).

    Args:
      distances_GG: symmetric, of G ≥ 2 samples; LPIPS's (`stlpips.Stlpips.pairwise`), or
        1 - `cosine` of an encoder's features.
    """
    distances_GG = np.asarray(distances_GG, np.float64)
    G = len(distances_GG)
    if distances_GG.shape != (G, G) or G < 2:
        raise UvitError(f"diversity is of two or more samples, got {distances_GG.shape}")
    return float(distances_GG[~np.eye(G, dtype=bool)].mean())


def prior_scores(real_RD: np.ndarray, generic_GD: np.ndarray) -> np.ndarray:
    """PRES: how alike pictures of the bare class are to the subject's real ones, (G,).

    Lower is better: high means that fine-tuning has turned the class into the subject (Ruiz et al.
    2022, section 4.3)."""
    return identity_scores(real_RD, generic_GD, pairing="all")


def copy_threshold(oracle_scores: np.ndarray, quantile: float = 0.95) -> float:
    """The similarity to the nearest reference that real, held-out pictures of a subject seldom
    exceed: a quantile of `identity_scores(…, pairing="max")` of the oracle."""
    if not 0 < quantile < 1:
        raise UvitError(f"quantile must lie in (0, 1), got {quantile}")
    return float(np.quantile(_scores(oracle_scores), quantile))


def copies(references_RD: np.ndarray, generated_GD: np.ndarray, threshold: float) -> np.ndarray:
    """Which pictures are nearer to a reference than `copy_threshold` allows: bool (G,)."""
    return identity_scores(references_RD, generated_GD, pairing="max") > threshold


def pixel_copies(
    references: np.ndarray, generated: np.ndarray, *, tolerance: float = 0.1
) -> np.ndarray:
    """Which pictures are a reference pixel for pixel: bool (G,).

    Args:
      references, generated: (R, H, W, C) and (G, H, W, C), floats in [-1, 1].
      tolerance: the root mean square difference up to which they are the same.
    """
    references, generated = (np.asarray(a, np.float32) for a in (references, generated))
    if references.shape[1:] != generated.shape[1:]:
        raise UvitError(
            f"pictures of {generated.shape[1:]} are no copies of references {references.shape[1:]}"
        )
    squares = [((generated - r) ** 2).mean(axis=(1, 2, 3)) for r in references]
    return np.sqrt(np.min(squares, axis=0)) <= tolerance


def frame_consistency(frames_TD: np.ndarray) -> float:
    """VBench's subject consistency of a video: the mean over its frames t ≥ 1 of
    ½ [max(0, cos(f_t, f_{t-1})) + max(0, cos(f_t, f_0))] (Huang et al. 2023).

    A video that stands still wins: report it beside a measure of motion.
    """
    frames = _unit(frames_TD)
    if len(frames) < 2:
        raise UvitError(f"a video has two or more frames, got {len(frames)}")
    before = np.maximum((frames[1:] * frames[:-1]).sum(axis=1), 0)
    first = np.maximum(frames[1:] @ frames[0], 0)
    return float((before + first).mean() / 2)


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features):
        raise UvitError(f"features are (N, D) of one or more pictures, got {features.shape}")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0])
        raise UvitError(f"the features of picture {row} are zero or not finite")
    return features / norms


def _known(own: np.ndarray, identities: np.ndarray) -> np.ndarray:
    own = np.asarray(own)
    if not np.isin(own, identities).all():
        missing = own[~np.isin(own, identities)][0]
        raise UvitError(f"the identity {missing} is not in the gallery")
    return own


def _scores(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    if not values.size or not np.isfinite(values).all():
        raise UvitError("scores must be one or more finite numbers")
    return values
