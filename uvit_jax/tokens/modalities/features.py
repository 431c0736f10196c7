"""Vectors of a frozen encoder: CLIP's text tokens, an image embedding."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
from flax import nnx

from uvit_jax.tokens.segment import NAME_TOKENS, Grid, Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Segment):
    """N vectors of size F, float (B, N, F). What stands for "no text" is the encoder's own (CLIP:
    the encoding of the empty string), so the data bring it.

    References with `names_from` take the vector at their subject's name from it. Which token that
    is cannot be read from features: the input `name_tokens`, int32 (B, max_subjects), says it, -1
    for subjects that the text does not name.

    Attributes:
      shape: (N, F).
    """

    null_remedy: ClassVar[str] = (
        ": its null value is the encoding of the empty text; train on latents with features "
        "(experiments.encode_text), or name the encoder with --text_encoder=FOLDER"
    )

    kind: Literal["features"] = "features"
    shape: tuple[int, ...] = ()

    def problem(self) -> str:
        if len(self.shape) != 2 or min(self.shape) < 1:
            return f"shape must be (N, F), positive numbers, got {self.shape}"
        return ""

    @property
    def grid(self) -> Grid:
        return (1, 1, self.shape[0])

    def names_in(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        return jax.nn.one_hot(inputs[NAME_TOKENS], self.shape[0])

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return FeaturesEmbedding(self, width, dtype=dtype, rngs=rngs)

    def head(self, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs) -> nnx.Module:
        return FeaturesHead(self, width, dtype=dtype, zero=zero, rngs=rngs)


class FeaturesEmbedding(nnx.Module):
    """(B, N, F) → (B, N, D)."""

    def __init__(self, segment: Features, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.proj = nnx.Linear(segment.shape[-1], width, dtype=dtype, kernel_init=normal, rngs=rngs)

    def __call__(self, features_BNF: jax.Array) -> jax.Array:
        return self.proj(features_BNF)


class FeaturesHead(nnx.Module):
    """(B, N, D) → (B, N, F)."""

    def __init__(self, segment: Features, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
        init = nnx.initializers.zeros if zero else normal
        self.proj = nnx.Linear(width, segment.shape[-1], dtype=dtype, kernel_init=init, rngs=rngs)

    def __call__(self, tokens_BND: jax.Array, segment: Features) -> jax.Array:
        return self.proj(tokens_BND)
