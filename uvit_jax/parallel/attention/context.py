"""Attention over a sequence that is spread over the mesh's `context` axis, exact to full attention.

`ring` keeps every device's queries and sends keys and values around the ring, one neighbour a step,
with a running softmax (Liu, Zaharia & Abbeel 2023, "Ring attention"). `ulysses` exchanges tokens
for heads by all-to-all, attends in full, and exchanges back (Jacobs et al. 2023, "DeepSpeed
Ulysses"). Ring moves 2 D (P - 1)/P numbers a token and takes any number of heads; Ulysses moves
4 D (P - 1)/P² and needs a multiple of P of them.

A length that the axis does not divide is padded with tokens that nobody sees, and a batch that
data × fsdp do not divide with rows that are cut off again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import BATCH_AXES, batch_shards

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def ring(
    q_BNHK: jax.Array, k_BNHK: jax.Array, v_BNHK: jax.Array, mask_NN: jax.Array | None
) -> jax.Array:
    """Ring attention over the ambient mesh's context axis; (B, N, H, K), in the queries' dtype."""
    return _spread(_ring, q_BNHK, k_BNHK, v_BNHK, mask_NN)


def ulysses(
    q_BNHK: jax.Array,
    k_BNHK: jax.Array,
    v_BNHK: jax.Array,
    mask_NN: jax.Array | None,
    full: Attend,
) -> jax.Array:
    """All-to-all attention over the ambient mesh's context axis; (B, N, H, K).

    Args:
      full: attention on one device, `(q, k, v, mask_NN)`.

    Raises:
      UvitError: if a device's heads cannot be divided among the devices of the context axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        check_ulysses(mesh, q_BNHK.shape[2])
    exchange = functools.partial(_ulysses, full=full)
    return _spread(exchange, q_BNHK, k_BNHK, v_BNHK, mask_NN, whole_mask=True)


def check_ulysses(mesh: Mesh | AbstractMesh, num_heads: int) -> None:
    """Raises UvitError if the heads cannot be divided among the context (and tensor) axes."""
    parts, here = mesh.shape["context"], num_heads // mesh.shape["tensor"]
    if here % parts:
        raise UvitError(
            f"attention 'ulysses' divides heads among config.mesh.context={parts} devices, and "
            f"there are {here} on each; use 'ring', or another context or num_heads"
        )


def _spread(
    attend: Callable,
    q_BNHK: jax.Array,
    k_BNHK: jax.Array,
    v_BNHK: jax.Array,
    mask_NN: jax.Array | None,
    *,
    whole_mask: bool = False,
) -> jax.Array:
    """Runs `attend(q, k, v, mask, parts)` on each device's part of the tokens.

    Batch and heads stay spread as they are. The mask has each device's rows, or all of them with
    `whole_mask`, and all columns.
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
        mask_NN = jnp.ones((N, N), bool) if mask_NN is None else mask_NN
        mask_NN = jnp.pad(mask_NN, ((0, short), (0, short)))
    spec = P(BATCH_AXES, "context", "tensor", None)
    of_mask = P() if whole_mask else P("context", None)
    arrays, specs = [q_BNHK, k_BNHK, v_BNHK], [spec, spec, spec]
    if mask_NN is not None:
        arrays, specs = [*arrays, mask_NN], [*specs, of_mask]

    def local(q, k, v, mask=None):
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
    following = [(i, (i + 1) % parts) for i in range(parts)]

    # What a step keeps for the backward pass are the keys and values that passed by, not the
    # logits of every pair of tokens.
    @jax.checkpoint
    def attend(carry, k, v, owner):
        top_BHN, total_BHN, out_BHNK = carry
        logits = jnp.einsum("bnhk,bmhk->bhnm", q_BNHK, k, preferred_element_type=jnp.float32)
        if mask_NM is not None:
            seen = jax.lax.dynamic_slice_in_dim(mask_NM, owner * N, N, axis=1)
            logits = jnp.where(seen, logits, -jnp.inf)
        # The result does not depend on what is subtracted, so neither does its gradient.
        new_top = jax.lax.stop_gradient(jnp.maximum(top_BHN, logits.max(axis=-1)))
        # A row that has seen nothing yet has the maximum -inf, which must not meet itself.
        safe = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
        weights = jnp.exp(logits - safe[..., None])
        decay = jnp.exp(top_BHN - safe)
        out = out_BHNK * decay[..., None] + jnp.einsum(
            "bhnm,bmhk->bhnk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return new_top, total_BHN * decay + weights.sum(axis=-1), out

    def step(carry, i):
        state, k, v = carry
        state = attend(state, k, v, (me - i) % parts)
        k, v = (jax.lax.ppermute(a, "context", following) for a in (k, v))
        return (state, k, v), None

    state = (
        jnp.full((B, H, N), -jnp.inf, jnp.float32),
        jnp.zeros((B, H, N), jnp.float32),
        jnp.zeros((B, H, N, K), jnp.float32),
    )
    # The last step needs to send nothing on.
    carry = state, k_BNHK, v_BNHK
    if parts > 1:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(parts - 1))
    _, total_BHN, out_BHNK = attend(*carry, (me - (parts - 1)) % parts)
    # A row that sees nobody (padding) is a row of zeros.
    out_BHNK = out_BHNK / jnp.where(total_BHN > 0, total_BHN, 1.0)[..., None]
    return out_BHNK.transpose(0, 2, 1, 3).astype(q_BNHK.dtype)
