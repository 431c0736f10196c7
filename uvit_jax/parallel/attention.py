"""Attention by name. The name is configuration and is never guessed from the machine, so that a
program compiled ahead of time for another machine is the program that will run there."""

import jax
import jax.numpy as jnp

from uvit_jax.errors import UvitError, nearest
from uvit_jax.parallel import context
from uvit_jax.parallel.blocked import blocked

IMPLEMENTATIONS = ("xla", "blocked", "cudnn", "ring", "ulysses")
SPREAD = ("ring", "ulysses")  # those that are about tokens spread over the context axis


def check(implementation: str) -> None:
    """Raises UvitError if `implementation` is not one of `IMPLEMENTATIONS`."""
    if implementation not in IMPLEMENTATIONS:
        hint = nearest(implementation, IMPLEMENTATIONS)
        raise UvitError(f"unknown attention {implementation!r}{hint}")


def check_platform(implementation: str, platform: str) -> None:
    """Raises UvitError if `implementation` cannot run on devices of `platform` (cpu, gpu, tpu)."""
    if implementation == "cudnn" and platform != "gpu":
        raise UvitError(f"attention 'cudnn' runs on NVIDIA GPUs, not on {platform}; use 'xla'")


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    *,
    mask_NM: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """softmax(q kᵀ / √K) v, the softmax in float32.

    Args:
      q_BNHK: queries. k_BMHK, v_BMHK: keys and values.
      mask_NM: bool, True where query n may see key m; None when all see all.
      implementation: `xla` anywhere; `blocked` anywhere too, and meant for CPUs (see blocked.py);
        `cudnn` is flash attention on NVIDIA GPUs (half precision);
        `ring` and `ulysses` are for sequences that are spread over the mesh's context axis, and
        take as many keys as queries (see context.py).

    Returns:
      (B, N, H, K), in the dtype of the queries.
    """
    check(implementation)
    if implementation == "cudnn":
        mask = None if mask_NM is None else mask_NM[None, None]
        return jax.nn.dot_product_attention(
            q_BNHK, k_BMHK, v_BMHK, mask=mask, implementation="cudnn"
        )
    if implementation == "blocked":
        return blocked(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "ring":
        return context.ring(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "ulysses":
        return context.ulysses(q_BNHK, k_BMHK, v_BMHK, mask_NM, full=_full)
    return _full(q_BNHK, k_BMHK, v_BMHK, mask_NM)


def _full(
    q_BNHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, mask_NM: jax.Array | None
) -> jax.Array:
    scale = q_BNHK.shape[-1] ** -0.5
    logits_BHNM = jnp.einsum(
        "bnhk,bmhk->bhnm", q_BNHK * scale, k_BMHK, preferred_element_type=jnp.float32
    )
    if mask_NM is not None:
        logits_BHNM = jnp.where(mask_NM, logits_BHNM, jnp.finfo(jnp.float32).min)
    weights_BHNM = jax.nn.softmax(logits_BHNM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("bhnm,bmhk->bnhk", weights_BHNM, v_BMHK)
