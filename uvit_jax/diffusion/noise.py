"""Gaussian noise: from one key or one per example, and with a part that all frames share."""

from typing import Any

import jax
import jax.numpy as jnp


def one_per_example(key: jax.Array) -> bool:
    """Whether `key` holds keys (B,), not a single one; a raw key, uint32 (2,), is a single one."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def fold_in(key: jax.Array, data: Any) -> jax.Array:
    """`jax.random.fold_in` of one key, or of each of keys (B,)."""
    if one_per_example(key):
        return jax.vmap(lambda k: jax.random.fold_in(k, data))(key)
    return jax.random.fold_in(key, data)


def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal noise (B, …) from one key, or from one of keys (B,) for each example."""
    if one_per_example(key):
        return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(key)
    return jax.random.normal(key, shape, dtype)


def with_shared_noise(
    key: jax.Array, noise: dict[str, jax.Array], share: float
) -> dict[str, jax.Array]:
    """Noise whose frames have a part in common, each still standard normal: the "mixed noise" of
    PYoCo (Ge et al. 2023) with alpha² / (1 + alpha²) = share.

    Args:
      key: one key, or keys (B,), one per example; of nothing else.
      noise: independent noise by segment. All of shape (B, T, H, W, C) are frames of one clip, the
        others are returned as they are.
      share: of the variance, in [0, 1).
    """
    if not share:
        return noise

    def mixed(x: jax.Array) -> jax.Array:
        if x.ndim != 5:
            return x
        common = normal(key, (x.shape[0], 1, *x.shape[2:]))
        return share**0.5 * common + (1 - share) ** 0.5 * x

    return {name: mixed(x) for name, x in noise.items()}
