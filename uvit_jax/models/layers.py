"""The transformer block: attention and an MLP, pre-norm, optionally modulated by adaLN.

One class serves U-ViT (affine norms, a skip merged in before the block) and DiT (norms without
parameters, shift, scale and gate from a conditioning vector).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.models.config import BackboneConfig
from uvit_jax.models.kernels import HOOKS
from uvit_jax.parallel.attention import SPREAD, attention
from uvit_jax.tokens.initializers import normal

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
INITS = {"normal": normal, "xavier": nnx.initializers.xavier_uniform()}


class Attention(nnx.Module):
    """Multi-head self-attention, (B, N, D) → (B, N, D). Heads are an axis of the parameters."""

    def __init__(self, config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, H = config.width, config.num_heads
        options = dict(dtype=dtype, kernel_init=INITS[config.init], rngs=rngs, **HOOKS)
        self.implementation = config.attention
        self.qkv = nnx.LinearGeneral(D, (3, H, D // H), use_bias=config.qkv_bias, **options)
        self.out = nnx.LinearGeneral((H, D // H), D, axis=(-2, -1), **options)

    def __call__(
        self,
        x_BND: jax.Array,
        mask_NN: jax.Array | None,
        angles_NR: jax.Array | None = None,
    ) -> jax.Array:
        qkv_BN3HK = self.qkv(x_BND)
        q, k, v = (qkv_BN3HK[:, :, i] for i in range(3))
        if angles_NR is not None:
            q, k = rotate(q, angles_NR), rotate(k, angles_NR)
        return self.out(attention(q, k, v, mask_NM=mask_NN, implementation=self.implementation))


class CrossAttention(nnx.Module):
    """Attention of tokens (B, N, D) to a context (B, M, D) outside their sequence."""

    def __init__(self, config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, H = config.width, config.num_heads
        options = dict(dtype=dtype, kernel_init=INITS[config.init], rngs=rngs, **HOOKS)
        # The context is short, and every device has all of it.
        self.implementation = "xla" if config.attention in SPREAD else config.attention
        self.q = nnx.LinearGeneral(D, (H, D // H), use_bias=config.qkv_bias, **options)
        self.kv = nnx.LinearGeneral(D, (2, H, D // H), use_bias=config.qkv_bias, **options)
        self.out = nnx.LinearGeneral((H, D // H), D, axis=(-2, -1), **options)

    def __call__(self, x_BND: jax.Array, context_BMD: jax.Array) -> jax.Array:
        kv_BM2HK = self.kv(context_BMD)
        k, v = kv_BM2HK[:, :, 0], kv_BM2HK[:, :, 1]
        return self.out(attention(self.q(x_BND), k, v, implementation=self.implementation))


class MLP(nnx.Module):
    """Linear, GELU, Linear, on each token by itself."""

    def __init__(self, config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, hidden = config.width, int(config.width * config.mlp_ratio)
        options = dict(dtype=dtype, kernel_init=INITS[config.init], rngs=rngs, **HOOKS)
        self.activation = config.activation
        self.fc1 = nnx.Linear(D, hidden, **options)
        self.fc2 = nnx.Linear(hidden, D, **options)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x_BND)))


class Modulation(nnx.Module):
    """adaLN's SiLU and Linear: a conditioning vector (B, D) → `count` vectors (B, 1, D)."""

    def __init__(self, config: BackboneConfig, count: int, *, dtype: Any, rngs: nnx.Rngs):
        zero = config.modulation == "adaln_zero"
        self.count = count
        self.linear = nnx.Linear(
            config.width,
            count * config.width,
            dtype=dtype,
            kernel_init=nnx.initializers.zeros if zero else INITS[config.init],
            rngs=rngs,
            **HOOKS,
        )

    def __call__(self, c_BD: jax.Array) -> list[jax.Array]:
        return jnp.split(self.linear(nnx.silu(c_BD))[:, None], self.count, axis=-1)


def layer_norm(config: BackboneConfig, *, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm as the backbone wants it; its statistics are float32 in any precision."""
    affine = config.norm_affine
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

    Args:
      config: the backbone's.
      cross: whether x + cross_attention(norm(x)) stands between the two.
      merge_skip: whether the block first merges a long skip, as `config.skip` says.
    """

    def __init__(
        self,
        config: BackboneConfig,
        *,
        cross: bool = False,
        merge_skip: bool = False,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        D = config.width
        init = INITS[config.init]
        self.merge_skip = config.skip if merge_skip else "none"
        size = {"concat": 2 * D, "add": 0, "none": 0}.get(self.merge_skip, D)
        self.skip = nnx.Linear(size, D, kernel_init=init, **options, **HOOKS) if size else None
        self.norm1 = layer_norm(config, **options)
        self.attention = Attention(config, **options)
        self.norm_cross = layer_norm(config, **options) if cross else None
        self.cross = CrossAttention(config, **options) if cross else None
        self.norm2 = layer_norm(config, **options)
        self.mlp = MLP(config, **options)
        count = {"none": 0, "adaln": 4, "adaln_zero": 6}[config.modulation]
        self.modulation = Modulation(config, count, **options) if count else None

    def __call__(
        self,
        x_BND: jax.Array,
        *,
        skip_BND: jax.Array | None = None,
        c_BD: jax.Array | None = None,
        context_BMD: jax.Array | None = None,
        mask_NN: jax.Array | None = None,
        angles_NR: jax.Array | None = None,
    ) -> jax.Array:
        if self.merge_skip == "concat":
            x_BND = self.skip(jnp.concatenate([x_BND, skip_BND], axis=-1))
        elif self.merge_skip == "add":
            x_BND = x_BND + skip_BND
        elif self.merge_skip == "linear_of_sum":
            x_BND = self.skip(x_BND + skip_BND)
        elif self.merge_skip == "sum_of_linear":
            x_BND = x_BND + self.skip(skip_BND)
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulations(c_BD)
        h_BND = self.attention(modulate(self.norm1(x_BND), shift1, scale1), mask_NN, angles_NR)
        x_BND = x_BND + (h_BND if gate1 is None else gate1 * h_BND)
        if self.cross is not None:
            x_BND = x_BND + self.cross(self.norm_cross(x_BND), context_BMD)
        h_BND = self.mlp(modulate(self.norm2(x_BND), shift2, scale2))
        return x_BND + (h_BND if gate2 is None else gate2 * h_BND)

    def _modulations(self, c_BD: jax.Array | None) -> list[jax.Array | None]:
        """Shift, scale and gate of the attention, then of the MLP; None where there is none."""
        if self.modulation is None:
            return [None] * 6
        parts = self.modulation(c_BD)
        if len(parts) == 6:
            return parts
        shift1, scale1, shift2, scale2 = parts
        return [shift1, scale1, None, shift2, scale2, None]


def modulate(
    x_BND: jax.Array, shift_B1D: jax.Array | None, scale_B1D: jax.Array | None
) -> jax.Array:
    """adaLN's x·(1 + scale) + shift; x itself where there is nothing to modulate by."""
    return x_BND if scale_B1D is None else x_BND * (1 + scale_B1D) + shift_B1D


def rotary_angles(places_N2: np.ndarray, head_size: int, period: float = 100.0) -> np.ndarray:
    """Angles by which rotary positions turn queries and keys, float32 (N, K/2).

    The first half of the pairs turns with the row, the second with the column, at frequencies
    period^(-i / (K/4)), i = 0 .. K/4 - 1 (axial RoPE with the period of Heo et al. 2024).
    """
    frequencies = period ** (-np.arange(head_size // 4) / (head_size // 4))
    angles_N2F = places_N2[..., None] * frequencies
    return angles_N2F.reshape(len(places_N2), -1).astype(np.float32)


def rotate(x_BNHK: jax.Array, angles_NR: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + K/2) of every head by a token's angles (Su et al. 2021), R = K/2."""
    cos, sin = jnp.cos(angles_NR)[:, None], jnp.sin(angles_NR)[:, None]
    first, second = jnp.split(x_BNHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x_BNHK.dtype)
