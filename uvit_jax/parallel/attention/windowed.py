"""Attention of groups of queries that see different keys, each as full attention over its keys."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Slices = Sequence[slice]


def windowed(
    attend: Callable[..., jax.Array],
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_NM: np.ndarray | None,
    present_BM: jax.Array | None,
    groups: Sequence[tuple[Slices, Slices]],
) -> jax.Array:
    """softmax(q kᵀ / √K) v, (B, N, H, K); zeros for queries after those of the groups (padding).

    Args:
      attend: attention, `(q, k, v, mask_NM=, present_BM=)`. mask_NM, present_BM: see `attention`.
      groups: (queries, keys) as slices of the tokens, ascending. Each query is in one.
    """
    parts: dict[int, jax.Array] = {}
    for queries, keys in groups:
        mask = None
        if mask_NM is not None:
            rows, columns = (np.concatenate([np.r_[s] for s in part]) for part in (queries, keys))
            mask = mask_NM[np.ix_(rows, columns)]
            mask = None if mask.all() else mask
        out = attend(
            _taken(q_BNHK, queries),
            _taken(k_BMHK, keys),
            _taken(v_BMHK, keys),
            mask_NM=mask,
            present_BM=None if present_BM is None else _taken(present_BM, keys),
        )
        start = 0
        for one in queries:
            parts[one.start] = out[:, start : start + one.stop - one.start]
            start += one.stop - one.start
    out_BNHK = jnp.concatenate([parts[start] for start in sorted(parts)], axis=1)
    padding = q_BNHK.shape[1] - out_BNHK.shape[1]
    return jnp.pad(out_BNHK, ((0, 0), (0, padding), (0, 0), (0, 0)))


def _taken(array: jax.Array, slices: Slices) -> jax.Array:
    return jnp.concatenate([array[:, s] for s in slices], axis=1)
