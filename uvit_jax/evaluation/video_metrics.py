"""Metrics of videos: consistency with dynamics, the camera, amplitude, identity over frames.

Features are those of a frozen encoder, whose name belongs to every value (VBench has DINO
ViT-B/16). A still video has perfect consistency, so `consistency_with_motion` is the value to
compare, and consistency is never reported without dynamics.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.frechet import Moments, frechet_distance
from uvit_jax.evaluation.video_motion import (
    CAMERA_CHANGES,
    camera_moves,
    camera_path,
    dynamic_degree,
)

SHIFT, ANGLE = slice(0, 2), 3


def subject_consistency(features_BTD: np.ndarray) -> np.ndarray:
    """VBench's subject consistency of each video, (B,): the mean over t > 0 of
    ½ [max(0, cos(f_t, f_{t-1})) + max(0, cos(f_t, f_0))] (Huang et al. 2024).

    Args:
      features_BTD: of the frames of B videos.
    """
    if features_BTD.shape[1] < 2:
        raise UvitError("consistency needs videos of at least 2 frames")
    f_BTD = _unit(features_BTD)
    last = np.maximum(0, (f_BTD[:, 1:] * f_BTD[:, :-1]).sum(-1))
    first = np.maximum(0, (f_BTD[:, 1:] * f_BTD[:, :1]).sum(-1))
    return (0.5 * (last + first)).mean(axis=1)


def consistency_with_motion(
    features_BTD: np.ndarray, videos: np.ndarray, true_videos: np.ndarray
) -> dict[str, float]:
    """Consistency beside dynamics, and their product.

    Args:
      features_BTD: of the frames of `videos`, (B, T, H, W, C).
      true_videos: of the same conditions, or of the data, (n, T, H, W, C).

    Returns:
      `subject_consistency`; `dynamic_degree`, relative to that of the true videos; and
      `moving_consistency`, the consistency times the relative dynamics of each video up to 1, which
      is 0 for a still video.
    """
    consistency = subject_consistency(features_BTD)
    wanted = np.mean([dynamic_degree(video) for video in true_videos])
    relative = np.array([dynamic_degree(video) for video in videos]) / max(wanted, 1e-9)
    return {
        "subject_consistency": float(consistency.mean()),
        "dynamic_degree": float(relative.mean()),
        "moving_consistency": float((consistency * np.minimum(relative, 1)).mean()),
    }


def camera_scores(videos: np.ndarray, changes: np.ndarray) -> dict[str, float]:
    """How videos follow the camera that was asked for, measured by `video_motion.camera_path`.

    Args:
      videos: (B, T, H, W, C) in [-1, 1].
      changes: (B, 4), the changes of `CAMERA_CHANGES` asked for from the first frame to the last.

    Returns:
      `camera_accuracy`, the share of videos with exactly the moves asked for, each in its
      direction; `angle_error` in degrees and `zoom_error`, means of absolute differences; and
      `shift_error`, the mean distance in half image sides.
    """
    changes = np.asarray(changes, np.float64)
    if changes.shape != (len(videos), len(CAMERA_CHANGES)):
        raise UvitError(
            f"changes must be ({len(videos)}, {len(CAMERA_CHANGES)}), one row for each video, got "
            f"{changes.shape}"
        )
    found = np.array([camera_path(video)[-1] for video in videos])
    right = [camera_moves(a) == camera_moves(b) for a, b in zip(found, changes, strict=True)]
    difference = found - changes
    return {
        "camera_accuracy": float(np.mean(right)),
        "angle_error": float(np.degrees(np.abs(difference[:, ANGLE])).mean()),
        "shift_error": float(np.linalg.norm(difference[:, SHIFT], axis=1).mean()),
        "zoom_error": float(np.abs(difference[:, 2]).mean()),
    }


def amplitude_correlation(videos: np.ndarray, amplitudes: Sequence[float]) -> float:
    """Spearman's rank correlation of the amplitudes asked for and the dynamics measured; 0 where
    either is constant, as for still videos."""
    measured = np.array([dynamic_degree(video) for video in videos])
    return rank_correlation(measured, amplitudes)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where either is constant."""
    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def identity_over_frames(
    features_BTD: np.ndarray, reference_BD: np.ndarray
) -> dict[str, float | list[float]]:
    """How the subject of each frame resembles its reference, and how that drifts.

    Args:
      features_BTD: of the subject in every frame, such as of its crop. reference_BD: of the
        reference, or the mean over several.

    Returns:
      `identity`, the mean cosine similarity; `identity_by_frame`, T means; `identity_drift`, the
      mean over the last third of the frames less that over the first.
    """
    cosine_BT = (_unit(features_BTD) * _unit(reference_BD)[:, None]).sum(-1)
    third = max(1, cosine_BT.shape[1] // 3)
    return {
        "identity": float(cosine_BT.mean()),
        "identity_by_frame": cosine_BT.mean(axis=0).tolist(),
        "identity_drift": float(cosine_BT[:, -third:].mean() - cosine_BT[:, :third].mean()),
    }


def frechet_video_distance(
    features_BTD: np.ndarray, reference_BTD: np.ndarray, encoder: str
) -> Mapping[str, float]:
    """The Fréchet distance of features of videos, named after the encoder of their frames: the mean
    of a video's features over its frames, beside the mean of their absolute changes, which a still
    video has not.

    Args:
      features_BTD, reference_BTD: of the frames of samples and of true videos, B of each.
    """
    moments = [
        Moments.of(_video_features(f)).statistics(encoder) for f in (features_BTD, reference_BTD)
    ]
    return {f"{encoder}_video_frechet_distance": frechet_distance(*moments)}


def _video_features(features_BTD: np.ndarray) -> np.ndarray:
    f_BTD = np.asarray(features_BTD, np.float32)
    change = np.abs(np.diff(f_BTD, axis=1)).mean(axis=1)
    return np.concatenate([f_BTD.mean(axis=1), change], axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
