"""Improved precision and recall of samples against reference images.

Kynkäänniemi et al. 2019 (arXiv:1904.06991), section 2. Distances are computed in blocks on the
device; memory is linear in the number of features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UvitError

_HIGHEST = jax.lax.Precision.HIGHEST


def precision_recall(
    samples_ND: np.ndarray, reference_MD: np.ndarray, *, k: int = 3, block: int = 1024
) -> tuple[float, float]:
    """Precision and recall of samples against a reference.

    A set's manifold is the union of balls around its features, each reaching to its k-th nearest
    neighbour in the set. Precision is the share of samples in the reference's manifold, recall the
    share of the reference in the samples'. Both depend on N and M: compare at equal counts.

    Args:
      samples_ND, reference_MD: features, finite. k: 3 in the paper.
      block: size of the blocks; memory is block² distances and both sets.

    Returns:
      (precision, recall), in [0, 1].

    Raises:
      UvitError: if a set has at most k features.
    """
    for name, features in (("samples", samples_ND), ("reference", reference_MD)):
        if len(features) <= k:
            raise UvitError(
                f"precision and recall with k={k} need more than {k} {name}, got {len(features)}"
            )
    # Centred, since distances in float32 would cancel far from the origin.
    centre = np.mean(reference_MD, axis=0, dtype=np.float64)
    samples, reference = (
        _blocks(np.asarray(f - centre, np.float32), block) for f in (samples_ND, reference_MD)
    )
    precision = _share_inside(samples, reference, _squared_radii(reference, k))
    recall = _share_inside(reference, samples, _squared_radii(samples, k))
    return precision, recall


def _blocks(features_ND: np.ndarray, block: int) -> tuple[jax.Array, jax.Array]:
    """Features as (blocks, block, D), padded, and their indices (blocks, block), -1 for padding."""
    count = len(features_ND)
    block = min(block, count)
    numbers = np.arange(-(-count // block) * block)
    filled = features_ND[numbers % count].reshape(-1, block, features_ND.shape[1])
    return jnp.asarray(filled), jnp.where(numbers < count, numbers, -1).reshape(-1, block)


def _squared_radii(blocks: tuple[jax.Array, jax.Array], k: int) -> jax.Array:
    """(blocks, block): the squared distance of each feature to its k-th neighbour."""
    rows = [_nearest(x_bD, number_b, *blocks, k=k) for x_bD, number_b in zip(*blocks, strict=True)]
    return jnp.stack(rows)


def _share_inside(
    points: tuple[jax.Array, jax.Array],
    centres: tuple[jax.Array, jax.Array],
    radii: jax.Array,
) -> float:
    inside, total = 0, 0
    for x_bD, number_b in zip(*points, strict=True):
        valid = np.asarray(number_b) >= 0
        inside += int(np.asarray(_covered(x_bD, *centres, radii))[valid].sum())
        total += int(valid.sum())
    return inside / total


@functools.partial(jax.jit, static_argnames="k")
def _nearest(x_bD, number_b, others, numbers, *, k: int) -> jax.Array:
    """(b,): the k-th smallest squared distance to the others, excluding the point itself."""

    def step(best_bk, other):
        y_cD, number_c = other
        hidden = (number_c[None] < 0) | (number_c[None] == number_b[:, None])
        distances = jnp.where(hidden, jnp.inf, _squared_distances(x_bD, y_cD))
        both = jnp.concatenate([best_bk, distances], axis=1)
        return -jax.lax.top_k(-both, k)[0], None

    start = jnp.full((len(x_bD), k), jnp.inf)
    return jax.lax.scan(step, start, (others, numbers))[0][:, -1]


@jax.jit
def _covered(x_bD, centres, numbers, radii) -> jax.Array:
    """(b,) bool: whether a point lies in any of the balls."""

    def step(inside_b, ball):
        y_cD, number_c, radius_c = ball
        within = (_squared_distances(x_bD, y_cD) <= radius_c[None]) & (number_c[None] >= 0)
        return inside_b | within.any(axis=1), None

    start = jnp.zeros((len(x_bD),), bool)
    return jax.lax.scan(step, start, (centres, numbers, radii))[0]


def _squared_distances(x_bD: jax.Array, y_cD: jax.Array) -> jax.Array:
    products = jnp.dot(x_bD, y_cD.T, precision=_HIGHEST)
    return jnp.maximum((x_bD**2).sum(1)[:, None] + (y_cD**2).sum(1)[None] - 2 * products, 0)
