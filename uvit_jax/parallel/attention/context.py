"""Context-parallel attention: a sequence sharded over the mesh's `context` axis. It is exact.

`ring` keeps the queries on their device and passes keys and values around the ring, one neighbour
per step, with a running softmax (Liu, Zaharia & Abbeel 2023, "Ring attention"). `ulysses` exchanges
tokens for heads by all-to-all, computes full attention, and exchanges back (Jacobs et al. 2023,
"DeepSpeed Ulysses"). On P devices, ring moves 2 D (P - 1)/P numbers per token and supports any
number of heads; Ulysses moves 4 D (P - 1)/P² and needs a multiple of P heads.

A length that the axis does not divide is padded with masked tokens, and a batch that data × fsdp
does not divide with rows, which are cut off again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import BATCH_AXES, batch_shards

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def ring(
    q_BNHK: jax.Array, k_BNHK: jax.Array, v_BNHK: jax.Array, mask_NN: jax.Array | None
) -> jax.Array:
    """Ring attention over the ambient mesh's context axis; (B, N, H, K), in the queries' dtype."""
    return _sharded(_ring, q_BNHK, k_BNHK, v_BNHK, mask_NN)


def ulysses(
    q_BNHK: jax.Array,
    k_BNHK: jax.Array,
    v_BNHK: jax.Array,
    mask_NN: jax.Array | None,
    full: Attend,
) -> jax.Array:
    """All-to-all attention over the ambient mesh's context axis; (B, N, H, K).

    Args:
      mask_NN: as a NumPy array it is one for `full` too.
      full: attention on one device, `(q, k, v, mask_NN)`.

    Raises:
      UvitError: if the context axis does not divide the heads of a device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        check_ulysses(mesh, q_BNHK.shape[2])
    exchange = functools.partial(_ulysses, full=full)
    return _sharded(exchange, q_BNHK, k_BNHK, v_BNHK, mask_NN, replicated_mask=True)


def check_ulysses(mesh: Mesh | AbstractMesh, num_heads: int) -> None:
    """Raises UvitError if the context axis does not divide the heads of a tensor shard."""
    parts, heads = mesh.shape["context"], num_heads // mesh.shape["tensor"]
    if heads % parts:
        raise UvitError(
            f"attention 'ulysses' divides heads among config.mesh.context={parts} devices, which "
            f"does not divide {heads}; use 'ring', or another context or num_heads"
        )


def _sharded(
    attend: Callable,
    q_BNHK: jax.Array,
    k_BNHK: jax.Array,
    v_BNHK: jax.Array,
    mask_NN: jax.Array | None,
    *,
    replicated_mask: bool = False,
) -> jax.Array:
    """Runs `attend(q, k, v, mask, parts)` on each device's part of the tokens.

    Batch and heads stay sharded as they are. Each device has its own rows of the mask and all
    columns; with `replicated_mask`, all rows, and a NumPy mask stays one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q_BNHK, k_BNHK, v_BNHK, mask_NN, 1)
    B, N, H, _ = q_BNHK.shape
    parts, tensor = mesh.shape["context"], mesh.shape["tensor"]
    if H % tensor:
        raise UvitError(f"config.mesh.tensor={tensor} does not divide the {H} heads of attention")
    rows, short = -B % batch_shards(mesh), -N % parts
    if rows or short:
        widths = ((0, rows), (0, short), (0, 0), (0, 0))
        q_BNHK, k_BNHK, v_BNHK = (jnp.pad(a, widths) for a in (q_BNHK, k_BNHK, v_BNHK))
    if short:
        if mask_NN is None:  # a NumPy one for kernels that need it, else no large constant
            mask_NN = (np if replicated_mask else jnp).ones((N, N), bool)
        xp = np if isinstance(mask_NN, np.ndarray) else jnp
        mask_NN = xp.pad(mask_NN, ((0, short), (0, short)))
    spec = P(BATCH_AXES, "context", "tensor", None)
    of_mask = P() if replicated_mask else P("context", None)
    arrays, specs = [q_BNHK, k_BNHK, v_BNHK], [spec, spec, spec]
    constant = mask_NN if replicated_mask and isinstance(mask_NN, np.ndarray) else None
    if mask_NN is not None and constant is None:
        arrays, specs = [*arrays, mask_NN], [*specs, of_mask]

    def local(q, k, v, mask=constant):
        return attend(q, k, v, mask, parts)

    run = jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=spec, check_vma=False)
    return run(*arrays)[:B, :N]


def _ulysses(q, k, v, mask_NN, parts: int, *, full: Attend) -> jax.Array:
    if parts == 1:
        return full(q, k, v, mask_NN)
    swap = functools.partial(jax.lax.all_to_all, axis_name="context", tiled=True)
    q, k, v = (swap(a, split_axis=2, concat_axis=1) for a in (q, k, v))
    return swap(full(q, k, v, mask_NN), split_axis=1, concat_axis=2)


def _ring(q_BNHK, k_BNHK, v_BNHK, mask_NM, parts: int) -> jax.Array:
    """N tokens on this device, M in all."""
    B, N, H, K = q_BNHK.shape
    me = jax.lax.axis_index("context") if parts > 1 else 0
    q_BNHK = q_BNHK * K**-0.5
    ring_order = [(i, (i + 1) % parts) for i in range(parts)]

    # The backward pass stores the keys and values of each step, not the logits of all token pairs.
    @jax.checkpoint
    def attend(carry, k, v, owner):
        max_BHN, sum_BHN, out_BHNK = carry
        logits = jnp.einsum("bnhk,bmhk->bhnm", q_BNHK, k, preferred_element_type=jnp.float32)
        if mask_NM is not None:
            mask_NN = jax.lax.dynamic_slice_in_dim(mask_NM, owner * N, N, axis=1)
            logits = jnp.where(mask_NN, logits, -jnp.inf)
        # The result does not depend on the subtracted maximum, so neither does its gradient.
        new_max = jax.lax.stop_gradient(jnp.maximum(max_BHN, logits.max(axis=-1)))
        # A row without any visible key so far has the maximum -inf; -inf - (-inf) would be nan.
        safe = jnp.where(jnp.isfinite(new_max), new_max, 0.0)
        weights = jnp.exp(logits - safe[..., None])
        decay = jnp.exp(max_BHN - safe)
        out = out_BHNK * decay[..., None] + jnp.einsum(
            "bhnm,bmhk->bhnk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return new_max, sum_BHN * decay + weights.sum(axis=-1), out

    def step(carry, i):
        state, k, v = carry
        state = attend(state, k, v, (me - i) % parts)
        k, v = (jax.lax.ppermute(a, "context", ring_order) for a in (k, v))
        return (state, k, v), None

    state = (
        jnp.full((B, H, N), -jnp.inf, jnp.float32),
        jnp.zeros((B, H, N), jnp.float32),
        jnp.zeros((B, H, N, K), jnp.float32),
    )
    # The last step passes nothing on.
    carry = state, k_BNHK, v_BNHK
    if parts > 1:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(parts - 1))
    _, sum_BHN, out_BHNK = attend(*carry, (me - (parts - 1)) % parts)
    # A row without visible keys (padding) becomes zeros.
    out_BHNK = out_BHNK / jnp.where(sum_BHN > 0, sum_BHN, 1.0)[..., None]
    return out_BHNK.transpose(0, 2, 1, 3).astype(q_BNHK.dtype)
