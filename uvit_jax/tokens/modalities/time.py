"""The timestep as a sinusoid, optionally through an MLP."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.segment import Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Time(Segment):
    """A timestep: its data are `times[time]`, the network's number for it, float (B,).

    Attributes:
      sinusoid_size: features of the sinusoid; 0 stands for the model's width.
      mlp_ratio: 0 leaves the sinusoid as it is (U-ViT); r > 0 sends it through Linear(r·D), SiLU,
        Linear(D) (DiT, with r = 1).
    """

    kind: Literal["time"] = "time"
    sinusoid_size: int = 0
    mlp_ratio: float = 0.0

    def problem(self) -> str:
        if not self.time:
            return "a time segment needs `time`, the key in `times` that it embeds"
        if min(self.mlp_ratio, self.sinusoid_size) < 0:
            return "mlp_ratio and sinusoid_size must be at least 0"
        return ""

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return TimeEmbedding(self, width, dtype=dtype, rngs=rngs)


class TimeEmbedding(nnx.Module):
    """Network times (B,) → (B, 1, D)."""

    def __init__(self, segment: Time, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.size = segment.sinusoid_size or width
        self.dtype = dtype
        hidden = int(segment.mlp_ratio * width)
        options = dict(dtype=dtype, kernel_init=normal, rngs=rngs)
        self.fc1 = nnx.Linear(self.size, hidden, **options) if hidden else None
        self.fc2 = nnx.Linear(hidden, width, **options) if hidden else None
        if not hidden and self.size != width:
            raise UvitError(
                f"segment {segment.name!r}: without an MLP the sinusoid must have the model's "
                f"width {width}, not sinusoid_size={self.size}; set mlp_ratio to project it"
            )

    def __call__(self, t_B: jax.Array) -> jax.Array:
        x_BD = sinusoid(t_B, self.size).astype(self.dtype)
        if self.fc1 is not None:
            x_BD = self.fc2(nnx.silu(self.fc1(x_BD)))
        return x_BD[:, None]


def sinusoid(t_B: jax.Array, size: int, period: float = 10_000.0) -> jax.Array:
    """`[cos, sin]` features of network times, float32 (B, size).

    Frequencies are period^(-i / (size // 2)), i = 0 .. size // 2 - 1 (Vaswani et al. 2017, with the
    halves in the order of ADM, U-ViT and DiT). An odd size is padded with a zero.
    """
    half = size // 2
    frequencies = np.exp(-np.log(period) * np.arange(half) / half).astype(np.float32)
    angles = t_B.astype(jnp.float32)[:, None] * frequencies
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, size - 2 * half)))
