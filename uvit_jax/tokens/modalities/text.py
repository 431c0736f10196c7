"""Captions as token ids: a table of vectors, and an optional small transformer trained with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax import described_names
from uvit_jax.config import brief
from uvit_jax.errors import UvitError
from uvit_jax.tokens.segment import Grid, Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Segment):
    """Token ids, int32 (B, T), in [0, vocab_size). Id 0 is padding; all padding is the null text.

    Attributes:
      shape: (T,).
      vocab_size: how many ids there are.
      encoder_depth: blocks of a small transformer that the ids' vectors go through before they
        enter the sequence; 0 for none.
      encoder_heads: of that transformer.
      encoder_width: of that transformer and the ids' vectors; 0 for the sequence's. With a width of
        its own, networks of different widths have the same encoder.
      names: the ids of the words that name subject 1, 2, …, for references with `names_from`.
      attributes: how many values each attribute of a subject has, for captions with described names
        (`uvit_jax.described_names`); empty for none. The encoder reads such a name as the plain
        one, and vectors of its values, or of its own word, are added to the output.
      pooled: the text enters as one vector, the mean over its tokens without padding, as adaLN
        needs.
    """

    integers: ClassVar[bool] = True

    kind: Literal["text"] = "text"
    shape: tuple[int, ...] = ()
    vocab_size: int = 0
    encoder_depth: int = 0
    encoder_heads: int = 4
    encoder_width: int = 0
    names: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()
    pooled: bool = False

    def problem(self) -> str:
        if len(self.shape) != 1 or min(self.shape) < 1:
            return f"shape must be (T,), a positive number, got {self.shape}"
        if self.encoder_depth < 0 or self.encoder_heads < 1:
            return "encoder_depth must be at least 0 and encoder_heads at least 1"
        if not 0 < self.vocab_size < 2**31:  # ids are int32
            return f"vocab_size must lie in [1, 2**31 - 1], got {self.vocab_size}"
        if self.encoder_width < 0 or (self.encoder_width and not self.encoder_depth):
            return (
                f"encoder_width={self.encoder_width} must be 0, or positive and with encoder_depth"
            )
        impossible = [i for i in self.names if not 0 < i < self.vocab_size]
        if impossible or len(set(self.names)) < len(self.names):
            return f"names must be different ids from 1 to vocab_size - 1, got {self.names}"
        if self.names and self.pooled:
            return "names needs pooled=False: a mean over all tokens has no vector of a name"
        if self.attributes and not self.names:
            return f"attributes={brief(self.attributes)} describe names, and there are none"
        if self.attributes and (
            min(self.attributes) < 1
            or described_names.num_ids(self.attributes) > 2**31
            or self.vocab_size > described_names.FIRST
        ):
            attributes = brief(self.attributes)
            return f"attributes={attributes} must be positive, and their product below 2**27"
        return ""

    @property
    def num_ids(self) -> int:
        return described_names.num_ids(self.attributes) if self.attributes else self.vocab_size

    @property
    def grid(self) -> Grid:
        return (1, 1, 1 if self.pooled else self.shape[0])

    def shared_fields(self, other: Segment) -> tuple[str, ...]:
        # The encoder has positions of its own.
        length = ("shape",) if self.encoder_depth else ()
        encoder = ("encoder_depth", "encoder_heads", "encoder_width")
        return ("vocab_size", "attributes", *encoder, "pooled", *length)

    def names_in(self, inputs: Mapping[str, jax.Array]) -> jax.Array | None:
        if not self.names:
            return None
        ids_BT = inputs[self.name]
        if self.attributes:
            ids_BT = described_names.plain(ids_BT, self.names, jnp)
        named_BST = ids_BT[:, None] == jnp.array(self.names)[:, None]
        # A caption may name a subject more than once.
        return named_BST / jnp.maximum(named_BST.sum(axis=-1, keepdims=True), 1)

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return TextEmbedding(self, width, dtype=dtype, rngs=rngs)

    def null(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, *self.shape), np.int32)


class TextEmbedding(nnx.Module):
    """Token ids (B, T) → (B, T, D), or (B, 1, D) if pooled (zeros for the null text)."""

    def __init__(self, segment: Text, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.table = nnx.Embed(
            segment.vocab_size,
            segment.encoder_width or width,
            dtype=dtype,
            embedding_init=normal,
            rngs=rngs,
        )
        self.pooled = segment.pooled
        encode = segment.encoder_depth > 0
        self.encoder = TextTransformer(segment, width, dtype=dtype, rngs=rngs) if encode else None
        self.names = segment.names
        options = dict(dtype=dtype, rngs=rngs)
        self.described = Descriptions(segment, width, **options) if segment.attributes else None

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        if self.described is not None:
            described_BTD = self.described(ids_BT)
            ids_BT = described_names.plain(ids_BT, self.names, jnp)
        # Unsigned: a negative id is NaN, as one beyond the table is, not counted from its end.
        vectors_BTD = self.table(ids_BT.astype(jnp.uint32))
        if self.encoder is not None:
            vectors_BTD = self.encoder(vectors_BTD)
        if self.described is not None:
            vectors_BTD = vectors_BTD + described_BTD
        if not self.pooled:
            return vectors_BTD
        words_BT1 = (ids_BT != 0)[..., None]
        total_B1D = jnp.sum(vectors_BTD * words_BT1, axis=1, keepdims=True)
        return total_B1D / jnp.maximum(words_BT1.sum(axis=1, keepdims=True), 1)


class Descriptions(nnx.Module):
    """The vectors of described names: token ids (B, T) → (B, T, D), 0 for other words.

    A name's vector is the sum of its values' vectors, as large in all as an encoder's output, or
    that of its own word, which begins at 0: `@1*` is `@1` until it is trained.
    """

    def __init__(self, segment: Text, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.attributes, values = segment.attributes, sum(segment.attributes)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            vectors = jax.random.normal(key, shape, dtype) / len(segment.attributes) ** 0.5
            return vectors * (jnp.arange(shape[0]) < values)[:, None]

        self.table = nnx.Embed(
            values + described_names.NAMES, width, dtype=dtype, embedding_init=init, rngs=rngs
        )

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        rows_BTF, own_BT = described_names.rows(ids_BT, self.attributes, jnp)
        rows_BTG = jnp.concatenate([rows_BTF, own_BT[..., None]], axis=-1)
        vectors_BTGD = self.table(jnp.maximum(rows_BTG, 0)) * (rows_BTG >= 0)[..., None]
        return vectors_BTGD.sum(axis=2)


class TextTransformer(nnx.Module):
    """A small pre-norm transformer over a caption, (B, T, E) → (B, T, D).

    It takes the place of the published text-to-image models' CLIP text tower: position embeddings
    of its own, a final LayerNorm, and a linear projection into the sequence. E is D unless the
    segment has an `encoder_width`.
    """

    def __init__(self, segment: Text, width: int, *, dtype: Any, rngs: nnx.Rngs):
        heads, inner = segment.encoder_heads, segment.encoder_width or width
        if inner % heads:
            raise UvitError(
                f"segment {segment.name!r}: encoder_heads={heads} does not divide the width {inner}"
            )
        self.positions = nnx.Param(normal(rngs.params(), (segment.shape[0], inner)))
        options = dict(dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [TextBlock(inner, heads, **options) for _ in range(segment.encoder_depth)]
        )
        self.norm = nnx.LayerNorm(inner, epsilon=1e-5, **options)
        # The vectors of names have to be as large as the sin-cos positions they are added to.
        init = nnx.initializers.lecun_normal() if segment.names else normal
        self.proj = nnx.Linear(inner, width, kernel_init=init, **options)

    def __call__(self, x_BTE: jax.Array) -> jax.Array:
        return self.proj(self.features(x_BTE))

    def features(self, x_BTE: jax.Array) -> jax.Array:
        """The normalised output before the projection, (B, T, E)."""
        x_BTE = x_BTE + self.positions[...].astype(x_BTE.dtype)
        for block in self.blocks:
            x_BTE = block(x_BTE)
        return self.norm(x_BTE)


class TextBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); attention is not masked."""

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
