"""Scaled dot-product attention, with the implementation chosen by name.

The name is configuration and never depends on the machine, so that a program compiled ahead of time
for another machine is the one that runs there.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.parallel.attention import context
from uvit_jax.parallel.attention.blocked import blocked
from uvit_jax.parallel.attention.windowed import Slices, windowed

Implementation = Literal["xla", "blocked", "splash", "cudnn", "ring", "ulysses", "ulysses_splash"]
KERNELS = {  # the platform they need
    "splash": ("tpu", "TPUs"),
    "ulysses_splash": ("tpu", "TPUs"),
    "cudnn": ("gpu", "NVIDIA GPUs"),
}
CONTEXT_PARALLEL = ("ring", "ulysses", "ulysses_splash")


def check_platform(
    implementation: str, platform: str, remedy: str = "set config.model.backbone.attention='xla'"
) -> None:
    """Raises UvitError, ending in `remedy`, if `implementation` does not run on `platform` (cpu,
    gpu or tpu)."""
    needed, devices = KERNELS.get(implementation, (platform, ""))
    if platform not in (needed, {"gpu": "cuda"}.get(needed)):
        raise UvitError(
            f"attention {implementation!r} runs on {devices}, not on {platform}; {remedy}"
        )


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    *,
    mask_NM: jax.Array | np.ndarray | None = None,
    present_BM: jax.Array | None = None,
    windows: Sequence[tuple[Slices, Slices]] | None = None,
    implementation: Implementation = "xla",
) -> jax.Array:
    """softmax(q kᵀ / √K) v, the softmax in float32.

    Args:
      q_BNHK: queries. k_BMHK, v_BMHK: keys and values.
      mask_NM: bool, True where query n attends to key m; None for full attention.
      present_BM: bool, False for keys that an example lacks and that no query attends to.
      windows: groups of queries that see some of the keys, as (queries, keys), each as slices;
        None if all see all. The mask is a NumPy array then.
      implementation: `xla`, on any device; `blocked`, on any, but made for CPUs (see blocked.py);
        `splash`, flash attention on TPUs, with a NumPy mask (see splash.py); `cudnn`, flash
        attention on NVIDIA GPUs, in half precision; `ring`, `ulysses` and `ulysses_splash` (the
        kernel on each device), context parallel, for as many keys as queries, all of them present
        (see context.py).

    Returns:
      (B, N, H, K), in the dtype of the queries.

    Raises:
      UvitError: if a context-parallel implementation is given absent keys, or another number of
        keys than queries, or `ring` windows.
    """
    if implementation in CONTEXT_PARALLEL and (
        present_BM is not None or q_BNHK.shape[1] != k_BMHK.shape[1]
    ):
        what = "cached keys" if present_BM is None else "absent references"
        raise UvitError(
            f"attention {implementation!r} does not support {what}; use 'xla' or 'cudnn'"
        )
    if implementation == "ring" and windows is not None:
        raise UvitError(
            "attention 'ring' does not support windows of frames; use 'ulysses', or window=0"
        )
    if implementation in ("ulysses", "ulysses_splash"):
        return _ulysses(q_BNHK, k_BMHK, v_BMHK, mask_NM, windows, implementation)
    if windows is not None:
        attend = functools.partial(attention, implementation=implementation)
        return windowed(attend, q_BNHK, k_BMHK, v_BMHK, mask_NM, present_BM, windows)
    mask_NM = _combined(mask_NM, present_BM)
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
        from uvit_jax.parallel.attention.splash import splash  # importing Pallas takes long

        return splash(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "blocked":
        return blocked(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    if implementation == "ring":
        return context.ring(q_BNHK, k_BMHK, v_BMHK, mask_NM)
    return _full(q_BNHK, k_BMHK, v_BMHK, mask_NM)


def _ulysses(
    q_BNHK: jax.Array,
    k_BNHK: jax.Array,
    v_BNHK: jax.Array,
    mask_NN: jax.Array | np.ndarray | None,
    windows: Sequence[tuple[Slices, Slices]] | None,
    implementation: str,
) -> jax.Array:
    """Ulysses, whose devices have all tokens of some heads, and windows of them."""
    full = _full
    if implementation == "ulysses_splash":
        from uvit_jax.parallel.attention.splash import splash_on_device as full  # Pallas, as above

    def attend(q, k, v, mask_NM, present_BM=None):
        return full(q, k, v, mask_NM)

    def within(q, k, v, mask_NM):
        return windowed(attend, q, k, v, mask_NM, None, windows)

    return context.ulysses(
        q_BNHK, k_BNHK, v_BNHK, mask_NN, full=attend if windows is None else within
    )


def _combined(
    mask_NM: jax.Array | np.ndarray | None, present_BM: jax.Array | None
) -> jax.Array | np.ndarray | None:
    """The conjunction of both masks: (N, M), or (B, 1, N or 1, M) if it differs by example."""
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
