"""Flash attention on TPUs: JAX's Pallas kernel, "splash attention", for any length and mesh.

The kernel works on blocks of 128 tokens. Other lengths are padded, and `SegmentIds` mask the
padding. XLA cannot partition a Pallas kernel and would all-gather the batch for it, so it runs in a
`shard_map`, on each device's examples and heads.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec as P

from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import BATCH_AXES

LANES = 128  # block sizes are multiples of it
LARGEST_BLOCK = 512  # tokens; the logits of a pair of blocks take at most 1 MiB


def splash(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_NM: np.ndarray | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q kᵀ / √K) v by the TPU kernel, the softmax in float32.

    Args:
      q_BNHK: queries. k_BMHK, v_BMHK: keys and values; any lengths and any head size.
      mask_NM: bool, True where query n attends to key m; a NumPy array, since fully masked blocks
        are omitted when the program is traced.
      interpret: run the kernel as a plain JAX program, on any device (for tests; slow).

    Returns:
      (B, N, H, K), in the dtype of the queries.

    Raises:
      UvitError: if the mask is a traced array.
    """
    _check_mask(mask_NM)
    mask_NM = None if mask_NM is None else np.asarray(mask_NM)
    local = functools.partial(splash_on_device, mask_NM=mask_NM, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q_BNHK, k_BMHK, v_BMHK)
    B, _, H, _ = q_BNHK.shape
    rows = math.prod(mesh.shape[a] for a in BATCH_AXES)
    spec = P(
        BATCH_AXES if B % rows == 0 else None,
        None,
        "tensor" if H % mesh.shape["tensor"] == 0 else None,
        None,
    )
    run = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return run(q_BNHK, k_BMHK, v_BMHK)


def block_size(length: int) -> tuple[int, int]:
    """(padded length, the block size that divides it): the largest block that pads the length by at
    most a block of 128 or 2%. Small blocks are slow, and a long sequence's are too many for the
    scalar memory that the kernel's table of blocks is in."""
    for block in range(LARGEST_BLOCK, LANES, -LANES):
        padded = -(-length // block) * block
        if padded - length < max(LANES, length // 50):
            return padded, block
    return -(-length // LANES) * LANES, LANES


def splash_on_device(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_NM: np.ndarray | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`splash` of one device's examples and heads, in a `shard_map` or without a mesh."""
    _check_mask(mask_NM)
    _, N, H, K = q_BNHK.shape
    M = k_BMHK.shape[1]
    (padded_N, block_q), (padded_M, block_k) = block_size(N), block_size(M)

    def padded(a_BNHK: jax.Array, length: int) -> jax.Array:
        short = length - a_BNHK.shape[1]
        return jnp.pad(a_BNHK, ((0, 0), (0, short), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    q_BHNK = padded(q_BNHK * K**-0.5, padded_N)
    k_BHMK, v_BHMK = padded(k_BMHK, padded_M), padded(v_BMHK, padded_M)
    mask = masks.FullMask((padded_N, padded_M))
    if mask_NM is not None:
        widths = ((0, padded_N - N), (0, padded_M - M))
        mask = masks.NumpyMask(np.pad(mask_NM, widths, constant_values=True))
    segments = None
    if padded_N > N or padded_M > M:
        of_q, of_kv = (np.arange(p) >= n for p, n in ((padded_N, N), (padded_M, M)))
        segments = kernel.SegmentIds(jnp.asarray(of_q, jnp.int32), jnp.asarray(of_kv, jnp.int32))
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        block_sizes=_block_sizes(block_q, block_k, fused=block_k == padded_M),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",  # for remat policies that save this name
        interpret=interpret,
    )
    out_BHNK = jax.vmap(lambda q, k, v: attend(q, k, v, segments))(q_BHNK, k_BHMK, v_BHMK)
    return out_BHNK.transpose(0, 2, 1, 3)[:, :N].astype(q_BNHK.dtype)


def _check_mask(mask_NM: np.ndarray | None) -> None:
    """Raises UvitError if a mask is a traced array."""
    if isinstance(mask_NM, jax.core.Tracer):
        raise UvitError(
            "attentions 'splash' and 'ulysses_splash' need a mask that is a NumPy array, known "
            "before the program is compiled; use 'xla' for a computed one"
        )


def _block_sizes(block_q: int, block_k: int, *, fused: bool) -> kernel.BlockSizes:
    """Block sizes for the forward and the backward pass.

    If all keys are in one block, a fused backward kernel computes all three gradients, and the
    logits once; with several it would store a partial gradient of the queries for each of them.
    """
    separate = {} if fused else dict(block_q_dq=block_q, block_kv_dq=block_k)
    return kernel.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        use_fused_bwd_kernel=fused,
        **separate,
    )
