"""Means and covariances of features, and the Fréchet distance between them. NumPy, in float64.

Heusel et al. 2017 (arXiv:1706.08500), equation 6; with the official Inception it is FID.
"""

import dataclasses
import os

import numpy as np

from uvit_jax.encoders.weights import read_npz
from uvit_jax.errors import UvitError
from uvit_jax.io import atomic
from uvit_jax.paths import local_path


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """The Gaussian fitted to a set of features.

    Attributes:
      mean: float64 (D,). covariance: float64 (D, D), divided by count - 1.
      count: of features; None if unknown.
      encoder: version of the encoder; "" if unknown.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None
    encoder: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Streaming moments of features.

    They are merged by the pairwise formula of Chan et al. 1979, which avoids the cancellation of
    sums of squares: any split into batches, in any order, gives the same moments up to the rounding
    of float64.

    Attributes:
      count: N. mean: float64 (D,). scatter: float64 (D, D), the sum of the outer products of the
        deviations from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Moments":
        """The moments of one batch, N ≥ 1.

        Raises:
          UvitError: if a feature is not finite.
        """
        features = np.asarray(features_ND, np.float64)
        mean = features.mean(axis=0)
        if not np.isfinite(mean).all():
            raise UvitError("a feature is not finite: an image has NaN or infinite values")
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the union of two sets."""
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = np.outer(gap, gap)
        scatter *= self.count * other.count / count
        scatter += self.scatter
        scatter += other.scatter
        return Moments(count, self.mean + gap * (other.count / count), scatter)

    def statistics(self, encoder: str = "") -> Statistics:
        """The unbiased estimate of mean and covariance.

        Raises:
          UvitError: with fewer than two features.
        """
        if self.count < 2:
            raise UvitError(f"a covariance needs at least 2 images, got {self.count}")
        return Statistics(self.mean, self.scatter / (self.count - 1), self.count, encoder)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μa - μb|² + tr Σa + tr Σb - 2 tr (Σa Σb)^½.

    The last trace is the sum of the singular values of Σa^½ Σb^½, computed from symmetric
    eigendecompositions truncated at the rounding level. This is accurate for singular covariances
    (fewer images than features), where a square root of the product loses half of the digits.

    Raises:
      UvitError: if the encoders differ.
    """
    if a.mean.shape != b.mean.shape:
        raise UvitError(
            f"statistics of {a.mean.size} and {b.mean.size} features cannot be compared; "
            "use one encoder for both"
        )
    if a.encoder and b.encoder and a.encoder != b.encoder:
        raise UvitError(
            f"statistics of the encoders {a.encoder} and {b.encoder} cannot be compared"
        )
    product = _root(a.covariance).T @ _root(b.covariance)
    common = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    gap = a.mean - b.mean
    distance = gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * common
    return float(max(distance, 0.0))


def write_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes `mu`, `sigma` (as pytorch-fid does), `count` and `encoder`, atomically."""
    path = local_path(path)
    arrays = dict(mu=statistics.mean, sigma=statistics.covariance)
    if statistics.count is not None:
        arrays["count"] = np.asarray(statistics.count)
    if statistics.encoder:
        arrays["encoder"] = np.asarray(statistics.encoder)
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: str | os.PathLike) -> Statistics:
    """Reads an npz of `mu` (D,) and `sigma` (D, D), written here or elsewhere, without pickle.

    Raises:
      UvitError: if it is missing, damaged, or lacks one of them.
    """
    arrays = read_npz(local_path(path), ("mu", "sigma", "count", "encoder"))
    if not {"mu", "sigma"} <= set(arrays):
        raise UvitError(f"{path} has no statistics: mu or sigma is missing")
    mean, covariance = (np.asarray(arrays[k], np.float64) for k in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
        raise UvitError(
            f"{path}: mu {mean.shape} and sigma {covariance.shape} should be (D,) and (D, D)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UvitError(f"{path}: mu and sigma are not finite")
    count = int(arrays["count"]) if "count" in arrays else None
    return Statistics(mean, covariance, count, str(arrays.get("encoder", "")))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R (D, rank) with R Rᵀ = covariance up to the rounding of float64."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    noise = np.finfo(np.float64).eps * values.size * max(values[-1], 0.0)
    significant = values > noise
    return vectors[:, significant] * np.sqrt(values[significant])
