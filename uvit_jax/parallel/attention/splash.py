"""Flash attention on TPUs: JAX's Pallas kernel, "splash attention", for any length and mesh.

The kernel takes sequences in blocks of 128 tokens. A length that is no multiple is padded, and the
padding is another segment (`SegmentIds`), which no token of the sequence sees. The kernel is a
program of its own that XLA's partitioner cannot look into and would gather the batch for; so it
runs in a `shard_map`, on each device's examples and heads.
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

LANES = 128  # a block is a multiple of it
LARGEST_BLOCK = 512  # tokens; the logits of a pair of blocks stay within a megabyte


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
      mask_NM: bool, True where query n may see key m. It must be known when the program is traced:
        blocks that nobody sees are left out of the program.
      interpret: run the kernel as a plain JAX program, on any machine (for tests; slow).

    Returns:
      (B, N, H, K), in the dtype of the queries.

    Raises:
      UvitError: if the mask is an array of the program's.
    """
    if isinstance(mask_NM, jax.core.Tracer):
        raise UvitError(
            "attention 'splash' takes a mask that is known before the program is compiled (a NumPy "
            "array), as a layout's is; use 'xla' for one that is computed"
        )
    mask_NM = None if mask_NM is None else np.asarray(mask_NM)
    local = functools.partial(_local, mask_NM=mask_NM, interpret=interpret)
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
    """(padded length, block): the largest block that divides the length's next multiple of 128."""
    padded = -(-length // LANES) * LANES
    count = padded // LANES
    largest = max(n for n in range(1, LARGEST_BLOCK // LANES + 1) if count % n == 0)
    return padded, largest * LANES


def _local(q_BNHK, k_BMHK, v_BMHK, *, mask_NM: np.ndarray | None, interpret: bool) -> jax.Array:
    """The examples and heads of one device."""
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
        block_sizes=_block_sizes(block_q, block_k, one=block_k == padded_M),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",  # so that remat by this name keeps what it needs
        interpret=interpret,
    )
    out_BHNK = jax.vmap(lambda q, k, v: attend(q, k, v, segments))(q_BHNK, k_BHMK, v_BHMK)
    return out_BHNK.transpose(0, 2, 1, 3)[:, :N].astype(q_BNHK.dtype)


def _block_sizes(block_q: int, block_k: int, *, one: bool) -> kernel.BlockSizes:
    """Blocks for the forward and the backward pass.

    One backward kernel computes all three gradients, and the logits once, where all keys are in
    one block; with more it would keep a part of the queries' gradient for each of them.
    """
    apart = {} if one else dict(block_q_dq=block_q, block_kv_dq=block_k)
    return kernel.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        use_fused_bwd_kernel=one,
        **apart,
    )
