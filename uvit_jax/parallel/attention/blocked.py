"""Attention by blocks of heads, for CPUs: a block's logits fit into the cache, all heads' do not.

One head's products are too small to share among cores, so each iteration of the loop computes one
block per core. (XLA's CPU backend runs independent operations in parallel, but not two loops, which
share their temporary memory.) The backward pass recomputes the attention weights from each row's
log-sum-exp (Dao et al. 2022, "FlashAttention", section 3.1), so it stores no (N, M) array either.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from uvit_jax.parallel.cpu import num_cores

BLOCK = 5 << 20  # approximate limit of a block's logits, in bytes
Saved = tuple[jax.Array, ...]


def blocked(
    q_BNHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """softmax(q kᵀ / √K) v with a float32 softmax; (B, N, H, K), in the queries' dtype.

    The mask is bool, True where query n attends to key m: (N, M), or (B, 1, N or 1, M) if it
    differs by example; None for full attention.
    """
    B = q_BNHK.shape[0]
    # Scaled outside of `_attend`, so that JAX differentiates the scale.
    q_BNHK = q_BNHK * q_BNHK.shape[-1] ** -0.5
    parts = (_by_head(x) for x in (q_BNHK, k_BMHK, v_BMHK))
    if mask is not None:
        mask = jnp.asarray(mask)
        mask = mask[None] if mask.ndim == 2 else mask[:, 0]
    return _by_token(_attend(*parts, mask), B)


def _by_head(x_BNHK: jax.Array) -> jax.Array:
    B, N, H, K = x_BNHK.shape
    return x_BNHK.transpose(0, 2, 1, 3).reshape(B * H, N, K)


def _by_token(x_GNK: jax.Array, B: int) -> jax.Array:
    G, N, K = x_GNK.shape
    return x_GNK.reshape(B, G // B, N, K).transpose(0, 2, 1, 3)


def _map(one: Callable, heads: Saved):
    """`jax.vmap(one)(heads)`, a few blocks at a time; `heads` begins with q and k."""
    (G, N, _), M, lanes = heads[0].shape, heads[1].shape[1], min(num_cores(), 16)
    # Cores synchronise after every iteration, so blocks are large. On a single core, smaller ones
    # are faster, of which all arrays fit into the cache.
    block = BLOCK if lanes > 1 else BLOCK / 8
    iterations = max(1, math.ceil(G * N * M * 4 / (lanes * block)))
    each = -(-G // iterations)  # heads per iteration

    def run(start: jax.Array | int, count: int):
        own = [jax.lax.dynamic_slice_in_dim(x, start, count) for x in heads]
        ends = sorted({count * i // lanes for i in range(lanes + 1)})
        blocks = [jax.vmap(one)([x[a:b] for x in own]) for a, b in itertools.pairwise(ends)]
        return jax.tree.map(lambda *part: jnp.concatenate(part), *blocks)

    if iterations == 1:
        return run(0, G)
    full, rest = divmod(G, each)
    out = jax.lax.map(lambda i: run(i * each, each), jnp.arange(full))
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    if not rest:
        return out
    return jax.tree.map(lambda *part: jnp.concatenate(part), out, run(full * each, rest))


def _logits(q_NK: jax.Array, k_MK: jax.Array, mask_NM: jax.Array | None) -> jax.Array:
    logits_NM = jnp.einsum("nk,mk->nm", q_NK, k_MK, preferred_element_type=jnp.float32)
    if mask_NM is None:
        return logits_NM
    return jnp.where(mask_NM, logits_NM, jnp.finfo(jnp.float32).min)


@jax.custom_vjp
def _attend(
    q_GNK: jax.Array, k_GMK: jax.Array, v_GMK: jax.Array, mask_ENM: jax.Array | None
) -> jax.Array:
    return _forward(q_GNK, k_GMK, v_GMK, mask_ENM)[0]


def _forward(
    q_GNK: jax.Array, k_GMK: jax.Array, v_GMK: jax.Array, mask_ENM: jax.Array | None
) -> tuple[jax.Array, Saved]:
    def one(head):
        q_NK, k_MK, v_MK, e = head
        logits_NM = _logits(q_NK, k_MK, _mask(mask_ENM, e))
        max_N1 = logits_NM.max(axis=-1, keepdims=True)
        weights_NM = jnp.exp(logits_NM - max_N1)
        sum_N1 = weights_NM.sum(axis=-1, keepdims=True)
        out_NK = (weights_NM.astype(v_MK.dtype) @ v_MK).astype(jnp.float32) / sum_N1
        return out_NK.astype(v_MK.dtype), max_N1 + jnp.log(sum_N1)

    examples = _examples(mask_ENM, len(q_GNK))
    out_GNK, logsumexp_GN1 = _map(one, (q_GNK, k_GMK, v_GMK, examples))
    return out_GNK, (q_GNK, k_GMK, v_GMK, mask_ENM, out_GNK, logsumexp_GN1)


def _backward(saved: Saved, grad_GNK: jax.Array):
    *heads, mask_ENM, out_GNK, logsumexp_GN1 = saved

    def one(head):
        q_NK, k_MK, v_MK, out_NK, logsumexp_N1, grad_NK, e = head
        mask_NM = _mask(mask_ENM, e)
        weights_NM = jnp.exp(_logits(q_NK, k_MK, mask_NM) - logsumexp_N1)
        dv_MK = weights_NM.astype(grad_NK.dtype).T @ grad_NK
        dweights_NM = jnp.einsum("nk,mk->nm", grad_NK, v_MK, preferred_element_type=jnp.float32)
        dot_N1 = (grad_NK * out_NK).astype(jnp.float32).sum(axis=-1, keepdims=True)
        dlogits_NM = (weights_NM * (dweights_NM - dot_N1)).astype(q_NK.dtype)
        if mask_NM is not None:
            dlogits_NM = jnp.where(mask_NM, dlogits_NM, 0)
        return dlogits_NM @ k_MK, dlogits_NM.T @ q_NK, dv_MK

    examples = _examples(mask_ENM, len(out_GNK))
    return *_map(one, (*heads, out_GNK, logsumexp_GN1, grad_GNK, examples)), None


def _examples(mask_ENM: jax.Array | None, G: int) -> jax.Array:
    """The index of the mask of each of the G = B H heads, which are ordered by example."""
    masks = 1 if mask_ENM is None else mask_ENM.shape[0]
    return jnp.arange(G) // (G // masks)


def _mask(mask_ENM: jax.Array | None, e: jax.Array) -> jax.Array | None:
    """One head's mask, (N or 1, M)."""
    if mask_ENM is None or mask_ENM.shape[0] == 1:
        return None if mask_ENM is None else mask_ENM[0]
    return mask_ENM[e]


_attend.defvjp(_forward, _backward)
