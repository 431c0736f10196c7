"""Encodes sets of images and computes their metrics, named after the encoder."""

import dataclasses
import hashlib
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from uvit_jax.encoders.image_encoder import Encoder
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.frechet import Moments, Statistics, frechet_distance
from uvit_jax.evaluation.image_sets import ImageSet
from uvit_jax.evaluation.precision_recall import precision_recall
from uvit_jax.evaluation.scores import inception_score, kernel_distance
from uvit_jax.models.model import Params
from uvit_jax.parallel.sharding import path_string

# A merge costs D², independent of the number of features; so this many are merged at once.
_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The features of a set of images.

    Attributes:
      statistics: of all of them.
      pool: float32 (n, D), of a random subset in random order; None if only statistics are known.
      logits: float32 (N, K), of all in order, if the encoder is a classifier.
    """

    statistics: Statistics
    pool: np.ndarray | None = None
    logits: np.ndarray | None = None


def encode(encoder: Encoder, images: ImageSet, *, keep: int, seed: int = 0) -> ImageFeatures:
    """Streams images through an encoder.

    Args:
      keep: the number of images, chosen at random, whose features are returned in `pool`.
      seed: of this choice.

    Raises:
      UvitError: if an image has NaN or infinite values.
    """
    count = images.count
    chosen = np.zeros((count,), bool)
    rng = np.random.default_rng(seed)
    chosen[rng.permutation(count)[:keep]] = True
    moments, pending, pools, logits = None, [], [], []
    done = 0
    with tqdm(
        total=count,
        desc=f"{encoder.title}: {images.name}",
        unit="image",
        dynamic_ncols=True,
        disable=None if jax.process_index() == 0 else True,
    ) as bar:
        for batch in images.batches():
            valid = min(len(batch), count - done)
            outputs = encoder.features(batch)
            pool = np.asarray(outputs["pool"])[:valid]
            if not np.isfinite(pool).all():
                bad = done + int(np.flatnonzero(~np.isfinite(pool).all(axis=1))[0])
                raise UvitError(f"image {bad} of {images.name} has NaN or infinite values")
            pending.append(pool)
            if sum(map(len, pending)) >= _AT_ONCE or done + valid == count:
                part = Moments.of(np.concatenate(pending))
                moments = part if moments is None else moments.merge(part)
                pending = []
            pools.append(pool[chosen[done : done + valid]])
            if "logits" in outputs:
                logits.append(np.asarray(outputs["logits"])[:valid])
            done += valid
            bar.update(valid)
            if done == count:
                break
    return ImageFeatures(
        moments.statistics(encoder.version),
        # Shuffled, since data sets are often sorted by class: any prefix is a random subset.
        rng.permutation(np.concatenate(pools)),
        np.concatenate(logits) if logits else None,
    )


def metrics(encoder: Encoder, samples: ImageFeatures, reference: ImageFeatures) -> dict[str, float]:
    """All metrics that two sets of features determine, by name.

    With the official Inception: `fid`, `kid`, `inception_score`, the last two also with `_std`,
    `inception_precision`, `inception_recall`. With any other encoder:
    `<encoder>_frechet_distance`, `_kernel_distance`, `_class_score`,
    `_precision`, `_recall`.
    """
    prefix, known = encoder.name, {}
    if encoder.official:
        prefix, known = "inception", OFFICIAL_NAMES
    elif prefix.startswith("inception"):
        prefix = f"unofficial_{prefix}"
    values = {"frechet_distance": frechet_distance(samples.statistics, reference.statistics)}
    if samples.logits is not None:
        splits = min(10, len(samples.logits))
        mean, std = inception_score(samples.logits, splits=splits)
        values |= {"class_score": mean, "class_score_std": std}
    if reference.pool is not None:
        count = compared(samples, reference)
        pools = samples.pool[:count], reference.pool[:count]
        for compare in COMPARISONS:
            values |= compare(*pools)
    return {known.get(name, f"{prefix}_{name}"): value for name, value in values.items()}


def _manifolds(samples: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    precision, recall = precision_recall(samples, reference)
    return {"precision": precision, "recall": recall}


def _kernels(samples: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    mean, std = kernel_distance(samples, reference)
    return {"kernel_distance": mean, "kernel_distance_std": std}


COMPARISONS: list[Callable[[np.ndarray, np.ndarray], dict[str, float]]] = [_manifolds, _kernels]
"""Metrics of two feature sets (n, D) of equal size: functions (samples, reference) → values by
name, which `metrics` prefixes with the name of the encoder."""

OFFICIAL_NAMES = {
    "frechet_distance": "fid",
    "class_score": "inception_score",
    "class_score_std": "inception_score_std",
    "kernel_distance": "kid",
    "kernel_distance_std": "kid_std",
}
"""Names of the metrics with Inception's official weights."""


def compared(samples: ImageFeatures, reference: ImageFeatures) -> int:
    """The number of features of each set in precision, recall and kernel distance."""
    return 0 if reference.pool is None else min(len(samples.pool), len(reference.pool))


def params_sha256(params: Params) -> str:
    """A hash of the parameters: paths, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(value)
        digest.update(f"{path_string(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
