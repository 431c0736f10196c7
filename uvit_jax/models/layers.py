"""The transformer block: attention and an MLP, optionally modulated by adaLN.

One class serves U-ViT (affine norms, a long skip merged in before the block), UniDiffuser (with
norms after the branches) and DiT (norms without parameters; shift, scale and gate from a
conditioning vector).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from uvit_jax.models.linear import Linear
from uvit_jax.models.model_config import BackboneConfig
from uvit_jax.parallel.attention.implementations import CONTEXT_PARALLEL, attention
from uvit_jax.parallel.sharding import gather_params
from uvit_jax.tokens.segment import normal
from uvit_jax.tokens.windows import Group

CLOSED = 1e-20
"""A gate's initial value: its keys have no weight in float32, yet a gradient of normal size."""
INITS = {"normal": normal, "xavier": nnx.initializers.xavier_uniform()}
KeysValues = tuple[jax.Array, jax.Array]


# Without the checkpoint, three arrays as large as x are saved for the gradient; with it, only x.
@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Φ(x), as PyTorch computes it. `jax.nn.gelu` uses erfc, which is more exact
    where the result is nearly 0, and costs twice as much."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class BlockInputs(NamedTuple):
    """What all blocks take besides the tokens and their own parameters.

    Attributes:
      modulation_BD: adaLN's conditioning vector, None without adaLN.
      clean_1D: the same at time 0, for the tokens of `is_clean_N1`; None if there are none.
      is_clean_N1: which tokens are modulated by `clean_1D` instead, bool.
      context_BMD: the keys and values' inputs of cross-attention, if there is any.
      mask_NM: the attention mask, bool; None if every token sees every token. A NumPy array: flash
        attention kernels skip the blocks that it excludes.
      windows: groups of queries with the keys that each sees, None for all (see tokens/windows.py).
      angles_NR: of RoPE, (N, R) or (B, N, R), R = K/2; None without RoPE.
      present_BM: which keys an example has; None if it has all.
      gated_M: which keys are of gated references, bool; None if no query of the sequence attends to
        them through a gate. The last N keys are the sequence's own.
    """

    modulation_BD: jax.Array | None = None
    clean_1D: jax.Array | None = None
    is_clean_N1: jax.Array | None = None
    context_BMD: jax.Array | None = None
    mask_NM: np.ndarray | None = None
    windows: Sequence[Group] | None = None
    angles_NR: jax.Array | None = None
    present_BM: jax.Array | None = None
    gated_M: np.ndarray | None = None


def linear(config: BackboneConfig, inputs, outputs, *, dtype: Any, rngs: nnx.Rngs, **options):
    """A linear layer of the blocks; see `Linear` for the options."""
    options = dict(kernel_init=INITS[config.init], products=config.products) | options
    return Linear(inputs, outputs, dtype=dtype, rngs=rngs, **options)


def gathered_module(module: nnx.Module, dtype: Any, *, path: str = "") -> nnx.Module:
    """A module with its parameters all-gathered (see `gather_params`), to be called once."""
    graph, params = nnx.split(module)
    return nnx.merge(graph, gather_params(params, dtype, path=path))


class QKNorm(nnx.Module):
    """Queries and keys (B, N, H, K), normalised over the head size.

    With scales of 1, no logit q·k / √K is larger than √K, however large the projections grow
    (Dehghani et al. 2023, section 2; Esser et al. 2024, section 5.3.2).
    """

    def __init__(self, config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs):
        size = config.width // config.num_heads
        options = dict(epsilon=1e-6, dtype=dtype, rngs=rngs)
        if config.qk_norm == "rms":
            self.q, self.k = (nnx.RMSNorm(size, **options) for _ in range(2))
        else:
            self.q, self.k = (nnx.LayerNorm(size, use_bias=False, **options) for _ in range(2))

    def __call__(self, q_BNHK: jax.Array, k_BMHK: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.q(q_BNHK), self.k(k_BMHK)


class Attention(nnx.Module):
    """Multi-head self-attention, (B, N, D) → (B, N, D). Heads are an axis of the parameters.

    It also returns the keys and values of its tokens; `cached` ones are prepended to them.

    With `gated`, the keys of gated references have the factor |gate| in the softmax's sums, for the
    queries of all other tokens.
    """

    def __init__(self, config: BackboneConfig, *, gated: bool = False, dtype: Any, rngs: nnx.Rngs):
        D, H = config.width, config.num_heads
        options = dict(dtype=dtype, rngs=rngs)
        self.implementation = config.attention
        self.qkv = linear(config, D, (3, H, D // H), use_bias=config.qkv_bias, **options)
        self.out = linear(config, (H, D // H), D, **options)
        self.qk_norm = qk_norm(config, **options)
        self.gate = nnx.Param(jnp.full((H,), CLOSED)) if gated else None

    def __call__(
        self, x_BND: jax.Array, given: BlockInputs, cached: KeysValues | None = None
    ) -> tuple[jax.Array, KeysValues]:
        qkv_BN3HK = checkpoint_name(self.qkv(x_BND), "qkv")
        q, k, v = (qkv_BN3HK[:, :, i] for i in range(3))
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        if given.angles_NR is not None:
            q, k = apply_rope(q, given.angles_NR), apply_rope(k, given.angles_NR)
        own = (k, v)
        if cached is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(cached, own, strict=True))
        size = v.shape[-1]
        if self.gate is not None and given.gated_M is not None:
            q, k, v = self._gated(q, k, v, given.gated_M)
        masks = dict(mask_NM=given.mask_NM, present_BM=given.present_BM, windows=given.windows)
        o_BNHK = attention(q, k, v, implementation=self.implementation, **masks)[..., :size]
        return self.out(checkpoint_name(o_BNHK, "attention")), own

    def _gated(
        self, q_BNHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, gated_M: np.ndarray
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of twice the size, whose products have log|gate| added: so any
        implementation of attention can be used."""
        K = q_BNHK.shape[-1]

        def extended(x_BNHK: jax.Array, column_NH: Any) -> jax.Array:
            rest = jnp.zeros((*x_BNHK.shape[:-1], K), x_BNHK.dtype)
            column_NH = jnp.broadcast_to(jnp.asarray(column_NH, x_BNHK.dtype), x_BNHK.shape[1:3])
            return jnp.concatenate([x_BNHK, rest.at[..., 0].set(column_NH)], axis=-1)

        opens_N = ~gated_M[len(gated_M) - q_BNHK.shape[1] :]
        log_H = jnp.log(jnp.maximum(jnp.abs(self.gate[...]), 1e-30))
        # Attention divides by √(2K) instead of √K.
        return (
            extended(q_BNHK * np.sqrt(2).astype(q_BNHK.dtype), np.sqrt(2 * K) * opens_N[:, None]),
            extended(k_BMHK, jnp.where(gated_M[:, None], log_H, 0)),
            extended(v_BMHK, 0),
        )


class CrossAttention(nnx.Module):
    """Attention of tokens (B, N, D) to a context (B, M, D) outside their sequence."""

    def __init__(self, config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, H = config.width, config.num_heads
        options = dict(dtype=dtype, rngs=rngs)
        # The context is short, and replicated over the mesh's context axis.
        self.implementation = "xla" if config.attention in CONTEXT_PARALLEL else config.attention
        self.q = linear(config, D, (H, D // H), use_bias=config.qkv_bias, **options)
        self.kv = linear(config, D, (2, H, D // H), use_bias=config.qkv_bias, **options)
        self.out = linear(config, (H, D // H), D, **options)
        self.qk_norm = qk_norm(config, **options)

    def __call__(self, x_BND: jax.Array, context_BMD: jax.Array) -> jax.Array:
        q_BNHK = checkpoint_name(self.q(x_BND), "qkv")
        kv_BM2HK = checkpoint_name(self.kv(context_BMD), "qkv")
        k, v = kv_BM2HK[:, :, 0], kv_BM2HK[:, :, 1]
        if self.qk_norm is not None:
            q_BNHK, k = self.qk_norm(q_BNHK, k)
        o_BNHK = attention(q_BNHK, k, v, implementation=self.implementation)
        return self.out(checkpoint_name(o_BNHK, "attention"))


class MLP(nnx.Module):
    """Linear, GELU, Linear, on each token."""

    def __init__(self, config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, hidden = config.width, int(config.width * config.mlp_ratio)
        options = dict(dtype=dtype, rngs=rngs)
        self.activation = config.activation
        self.fc1 = linear(config, D, hidden, **options)
        self.fc2 = linear(config, hidden, D, **options)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x_BND)))


class Modulation(nnx.Module):
    """adaLN's SiLU and Linear: a conditioning vector (B, D) → `count` vectors (B, 1, D), or
    (B, N, D) where some tokens have clean modulation."""

    def __init__(self, config: BackboneConfig, count: int, *, dtype: Any, rngs: nnx.Rngs):
        self.count = count
        options = {}
        if config.modulation == "adaln_zero":
            options["kernel_init"] = nnx.initializers.zeros
        D = config.width
        self.linear = linear(config, D, count * D, dtype=dtype, rngs=rngs, **options)

    def __call__(self, given: BlockInputs) -> list[jax.Array]:
        def parts(c_BD: jax.Array) -> list[jax.Array]:
            return jnp.split(self.linear(nnx.silu(c_BD))[:, None], self.count, axis=-1)

        if given.clean_1D is None:
            return parts(given.modulation_BD)
        if given.modulation_BD is None:  # all tokens of the sequence are clean
            return parts(given.clean_1D)
        pairs = zip(parts(given.clean_1D), parts(given.modulation_BD), strict=True)
        return [jnp.where(given.is_clean_N1, clean, noisy) for clean, noisy in pairs]


def qk_norm(config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs) -> QKNorm | None:
    """The normalisation of queries and keys, if the backbone has one."""
    return None if config.qk_norm == "none" else QKNorm(config, dtype=dtype, rngs=rngs)


def layer_norm(config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm of the backbone; its statistics are float32 in any precision.

    Flax rounds a norm's inputs to its dtype, so on a float32 residual stream it has to be float32
    as well; the products that follow round their own inputs.
    """
    affine = config.norm_affine
    dtype = jnp.float32 if config.residual == "float32" else dtype
    return nnx.LayerNorm(
        config.width,
        epsilon=config.norm_eps,
        use_bias=affine,
        use_scale=affine,
        dtype=dtype,
        rngs=rngs,
    )


class Block(nnx.Module):
    """x + gate·attention(norm(x)), then x + gate·mlp(norm(x)).

    Post-norm it is norm(x + attention(x)), then norm(x + mlp(x)), and a merged skip is normalised.

    Args:
      config: the backbone's.
      cross: whether x + cross_attention(norm(x)) stands between the two.
      gated: whether references are attended to through gates.
      merge_skip: whether the block first merges a long skip, as `config.skip` says.
    """

    def __init__(
        self,
        config: BackboneConfig,
        *,
        cross: bool = False,
        gated: bool = False,
        merge_skip: bool = False,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        D = config.width
        self.merge_skip = config.skip if merge_skip else "none"
        size = {"concat": 2 * D, "add": 0, "none": 0}.get(self.merge_skip, D)
        self.skip = linear(config, size, D, **options) if size else None
        self.post_norm = config.norm == "post"
        skip_norm = self.post_norm and self.merge_skip != "none"
        self.norm_skip = layer_norm(config, **options) if skip_norm else None
        self.norm1 = layer_norm(config, **options)
        self.attention = Attention(config, gated=gated, **options)
        self.norm_cross = layer_norm(config, **options) if cross else None
        self.cross = CrossAttention(config, **options) if cross else None
        self.norm2 = layer_norm(config, **options)
        self.mlp = MLP(config, **options)
        count = {"none": 0, "adaln": 4, "adaln_zero": 6}[config.modulation]
        self.modulation = Modulation(config, count, **options) if count else None

    def __call__(
        self,
        x_BND: jax.Array,
        given: BlockInputs,
        *,
        skip_BND: jax.Array | None = None,
        cached: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """The tokens after the block, and their keys and values in its attention."""
        stream = x_BND.dtype
        if self.merge_skip == "concat":
            x_BND = self.skip(jnp.concatenate([x_BND, skip_BND], axis=-1))
        elif self.merge_skip == "add":
            x_BND = x_BND + skip_BND
        elif self.merge_skip == "linear_of_sum":
            x_BND = self.skip(x_BND + skip_BND)
        elif self.merge_skip == "sum_of_linear":
            x_BND = x_BND + self.skip(skip_BND)
        if self.norm_skip is not None:
            x_BND = self.norm_skip(x_BND)
        x_BND = x_BND.astype(stream)
        if self.post_norm:
            h_BND, keys_values = self.attention(x_BND, given, cached)
            x_BND = self.norm1(x_BND + h_BND)
            if self.cross is not None:
                x_BND = self.norm_cross(x_BND + self.cross(x_BND, given.context_BMD))
            return self.norm2(x_BND + self.mlp(x_BND)), keys_values
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulations(given)
        h_BND = modulate(self.norm1(x_BND), shift1, scale1)
        h_BND, keys_values = self.attention(h_BND, given, cached)
        x_BND = x_BND + (h_BND if gate1 is None else gate1 * h_BND)
        if self.cross is not None:
            x_BND = x_BND + self.cross(self.norm_cross(x_BND), given.context_BMD)
        h_BND = self.mlp(modulate(self.norm2(x_BND), shift2, scale2))
        return x_BND + (h_BND if gate2 is None else gate2 * h_BND), keys_values

    def _modulations(self, given: BlockInputs) -> list[jax.Array | None]:
        """Shift, scale and gate of the attention, then of the MLP; None without them."""
        if self.modulation is None:
            return [None] * 6
        parts = self.modulation(given)
        if len(parts) == 6:
            return parts
        shift1, scale1, shift2, scale2 = parts
        return [shift1, scale1, None, shift2, scale2, None]


def modulate(
    x_BND: jax.Array, shift_B1D: jax.Array | None, scale_B1D: jax.Array | None
) -> jax.Array:
    """adaLN's x·(1 + scale) + shift; x itself without modulation."""
    return x_BND if scale_B1D is None else x_BND * (1 + scale_B1D) + shift_B1D


def apply_rope(x_BNHK: jax.Array, angles_NR: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + K/2) of every head by a token's angles (Su et al. 2021), R = K/2.

    The angles may be (B, N, R), different for each example.
    """
    cos, sin = jnp.cos(angles_NR)[..., None, :], jnp.sin(angles_NR)[..., None, :]
    first, second = jnp.split(x_BNHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.astype(x_BNHK.dtype)
