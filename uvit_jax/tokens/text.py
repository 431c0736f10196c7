"""Captions as tokens: a table of vectors, and an optional small encoder that is trained along."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.initializers import normal
from uvit_jax.tokens.segment import Segment


class Text(nnx.Module):
    """Token ids with a table trained along: int32 (B, T) → (B, T, D). Id 0 is padding.

    With `encoder_depth`, a `TextEncoder` stands between the table and the sequence; `pooled`, the
    mean over all that is no padding is the only token (zeros for the null text).
    """

    Head = None

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.table = nnx.Embed(
            segment.vocab_size, width, dtype=dtype, embedding_init=normal, rngs=rngs
        )
        self.pooled = segment.pooled
        encode = segment.encoder_depth > 0
        self.encoder = TextEncoder(segment, width, dtype=dtype, rngs=rngs) if encode else None

    @staticmethod
    def check(segment: Segment) -> str | None:
        if len(segment.shape) != 1:
            return f"a text segment needs shape (T,), got {segment.shape}"
        if segment.encoder_depth < 0 or segment.encoder_heads < 1:
            return "encoder_depth must be at least 0 and encoder_heads at least 1"
        return None if segment.vocab_size > 0 else "a text segment needs vocab_size >= 1"

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        return 1 if segment.pooled else segment.shape[0]

    @staticmethod
    def null(segment: Segment, batch_size: int) -> np.ndarray | None:
        return np.zeros((batch_size, *segment.shape), np.int32)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        vectors_BTD = self.table(ids_BT)
        if self.encoder is not None:
            vectors_BTD = self.encoder(vectors_BTD)
        if not self.pooled:
            return vectors_BTD
        words_BT1 = (ids_BT != 0)[..., None]
        total_B1D = jnp.sum(vectors_BTD * words_BT1, axis=1, keepdims=True)
        return total_B1D / jnp.maximum(words_BT1.sum(axis=1, keepdims=True), 1)


class TextEncoder(nnx.Module):
    """A small pre-norm transformer over a caption, (B, T, D) → (B, T, D).

    It stands where the published text-to-image models have CLIP's text tower, with the same face:
    positions of its own, a LayerNorm at its end, and a linear projection into the sequence.
    """

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        heads = segment.encoder_heads
        if width % heads:
            raise UvitError(
                f"segment {segment.name!r}: encoder_heads={heads} does not divide the width {width}"
            )
        self.positions = nnx.Param(normal(rngs.params(), (segment.shape[0], width)))
        options = dict(dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [TextBlock(width, heads, **options) for _ in range(segment.encoder_depth)]
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, **options)
        self.proj = nnx.Linear(width, width, kernel_init=normal, **options)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = x_BTD + self.positions[...].astype(x_BTD.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.proj(self.norm(x_BTD))


class TextBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), every token seeing every other."""

    def __init__(self, width: int, heads: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, **options)
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, kernel_init=normal, **options
        )
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, **options)
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=normal, **options)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=normal, **options)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD))
        return x_BTD + self.fc2(nnx.gelu(self.fc1(self.norm2(x_BTD)), approximate=False))
