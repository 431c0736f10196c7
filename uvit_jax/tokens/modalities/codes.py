"""Captions that are denoised: token ids as fixed random codes of ±1."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.tokens.segment import Grid, Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes(Segment):
    """T token ids, int32 (B, T), each as F numbers of ±1, float (B, T, F), to which noise is added.

    Each id has a random code, the same for every model, and what is generated is rounded to the
    nearest one. With binary digits in their place (Chen et al. 2023, "Analog Bits") one wrong digit
    is another word; random codes of more digits than necessary differ in about half of them.

    Attributes:
      shape: (T, F). vocab_size: how many ids there are; id 0 is padding.
    """

    kind: Literal["codes"] = "codes"
    shape: tuple[int, ...] = ()
    vocab_size: int = 0

    def problem(self) -> str:
        if len(self.shape) != 2 or min(self.shape) < 1:
            return f"shape must be (T, F), positive numbers, got {self.shape}"
        if not 1 <= self.vocab_size <= 2 ** self.shape[1]:
            return (
                f"vocab_size={self.vocab_size} must be at least 1 and at most 2^F, the number of "
                "codes"
            )
        return ""

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.shape[:1]

    @property
    def grid(self) -> Grid:
        return (1, 1, self.shape[0])

    def encoded(self, data: Any) -> jax.Array:
        data = jnp.asarray(data)
        if not jnp.issubdtype(data.dtype, jnp.integer):
            return data
        return jnp.asarray(codes(self.vocab_size, self.shape[1]))[data]

    def decoded(self, values: Any) -> np.ndarray:
        """The ids of the nearest codes, int32 (B, T)."""
        table_VF = codes(self.vocab_size, self.shape[1])
        return np.argmax(np.asarray(values) @ table_VF.T, axis=-1).astype(np.int32)

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return CodesEmbedding(self, width, dtype=dtype, rngs=rngs)

    def head(self, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs) -> nnx.Module:
        return CodesHead(self, width, dtype=dtype, zero=zero, rngs=rngs)


@functools.cache
def codes(vocab_size: int, size: int) -> np.ndarray:
    """`vocab_size` different codes of ±1, float32 (vocab_size, size); a larger vocabulary begins
    with the codes of a smaller one."""
    rng = np.random.default_rng(0)
    known: dict[bytes, np.ndarray] = {}
    while len(known) < vocab_size:
        code = rng.integers(2, size=size).astype(np.float32) * 2 - 1
        known.setdefault(code.tobytes(), code)
    return np.stack(list(known.values()))


class CodesEmbedding(nnx.Module):
    """(B, T, F) → (B, T, D)."""

    def __init__(self, segment: Codes, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.proj = nnx.Linear(segment.shape[1], width, dtype=dtype, kernel_init=normal, rngs=rngs)

    def __call__(self, codes_BTF: jax.Array) -> jax.Array:
        return self.proj(codes_BTF)


class CodesHead(nnx.Module):
    """(B, T, D) → (B, T, F)."""

    def __init__(self, segment: Codes, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
        init = nnx.initializers.zeros if zero else normal
        self.proj = nnx.Linear(width, segment.shape[1], dtype=dtype, kernel_init=init, rngs=rngs)

    def __call__(self, tokens_BTD: jax.Array, segment: Codes) -> jax.Array:
        return self.proj(tokens_BTD)
