"""Attention by name. The name is configuration and is never guessed from the machine, so that a
program compiled ahead of time for another machine is the program that will run there."""

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UvitError, nearest
from uvit_jax.parallel.attention import context
from uvit_jax.parallel.attention.blocked import blocked

IMPLEMENTATIONS = ("xla", "blocked", "splash", "cudnn", "ring", "ulysses")
KERNELS = {"splash": ("tpu", "TPUs"), "cudnn": ("gpu", "NVIDIA GPUs")}  # where they run
CONTEXT_PARALLEL = ("ring", "ulysses")  # those that are about tokens spread over the context axis


def check(implementation: str) -> None:
    """Raises UvitError if `implementation` is not one of `IMPLEMENTATIONS`."""
    if implementation not in IMPLEMENTATIONS:
        hint = nearest(implementation, IMPLEMENTATIONS)
        raise UvitError(f"unknown attention {implementation!r}{hint}")


def check_platform(
    implementation: str, platform: str, remedy: str = "set config.model.backbone.attention='xla'"
) -> None:
    """Raises UvitError if `implementation` cannot run on devices of `platform` (cpu, gpu, tpu),
    with what to do about it."""
    needed, named = KERNELS.get(implementation, (platform, ""))
    if platform not in (needed, {"gpu": "cuda"}.get(needed)):
        raise UvitError(
            f"attention {implementation!r} runs on {named}, not on {platform}; {remedy}"
        )


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    *,
    mask_NM: jax.Array | np.ndarray | None = None,
    present_BM: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """softmax(q kᵀ / √K) v, the softmax in float32.

    Args:
      q_BNHK: queries. k_BMHK, v_BMHK: keys and values.
      mask_NM: bool, True where query n may see key m; None when all see all.
      present_BM: bool, False where an example lacks key m, which then nobody sees.
      implementation: `xla` anywhere; `blocked` anywhere too, and meant for CPUs (see blocked.py);
        `splash` is flash attention on TPUs, and its mask is a NumPy array (see splash.py);
        `cudnn` is flash attention on NVIDIA GPUs (half precision);
        `ring` and `ulysses` are for sequences that are spread over the mesh's context axis, and
        take as many keys as queries, present in every example (see context.py).

    Returns:
      (B, N, H, K), in the dtype of the queries.

    Raises:
      UvitError: if a spread sequence differs by example, or in length from its keys.
    """
    check(implementation)
    if implementation in CONTEXT_PARALLEL and (
        present_BM is not None or q_BNHK.shape[1] != k_BMHK.shape[1]
    ):
        what = "cached keys" if present_BM is None else "absent references"
        raise UvitError(f"attention {implementation!r} knows no {what}; use 'xla' or 'cudnn'")
    mask_NM = _both(mask_NM, present_BM)
    if implementation == "cudnn":
        mask = None
        if mask_NM is not None:
            # (B or 1, 1, N, M); cuDNN broadcasts over heads, not over queries.
            N, M = q_BNHK.shape[1], k_BMHK.shape[1]
            mask = jnp.broadcast_to(mask_NM, (*mask_NM.shape[:-2], N, M)).reshape(-1, 1, N, M)
        return jax.nn.dot_product_attention(
            q_BNHK, k_BMHK, v_BMHK, mask=mask, implementation="cudnn"
        )
    if implementation == "splash":
        from uvit_jax.parallel.attention.splash import splash  # Pallas is large, and few need it

        return splash(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "blocked":
        return blocked(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "ring":
        return context.ring(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "ulysses":
        return context.ulysses(q_BNHK, k_BMHK, v_BMHK, mask_NM, full=_full)
    return _full(q_BNHK, k_BMHK, v_BMHK, mask_NM)


def _both(
    mask_NM: jax.Array | np.ndarray | None, present_BM: jax.Array | None
) -> jax.Array | np.ndarray | None:
    """Both masks as one: (N, M), or (B, 1, N or 1, M) where it differs by example."""
    if present_BM is None:
        return mask_NM
    present_B11M = present_BM[:, None, None, :]
    return present_B11M if mask_NM is None else mask_NM & present_B11M


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
