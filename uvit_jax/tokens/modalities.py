"""Modalities: how one kind of data becomes tokens, and tokens that kind of data again.

A modality is an NNX module with three static methods that the layout asks (`check`, `num_tokens`,
`null`), a `__call__` that embeds a batch, and, if it can be noisy, a module that reads tokens back
(`Head`). A new kind of condition is a new class, entered in `MODALITIES`, nothing else. Pictures
and texts have files of their own, `image.py` and `text.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.image import Image
from uvit_jax.tokens.initializers import normal
from uvit_jax.tokens.segment import Segment
from uvit_jax.tokens.text import Text


def sinusoid(t_B: jax.Array, size: int, period: float = 10_000.0) -> jax.Array:
    """`[cos, sin]` features of network times, float32 (B, size).

    Frequencies are period^(-i / (size // 2)), i = 0 .. size // 2 - 1 (Vaswani et al., 2017, in the
    half-and-half order of ADM, U-ViT and DiT). An odd size gets a zero at the end.
    """
    half = size // 2
    frequencies = np.exp(-np.log(period) * np.arange(half) / half).astype(np.float32)
    angles = t_B.astype(jnp.float32)[:, None] * frequencies
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, size - 2 * half)))


class Time(nnx.Module):
    """A timestep as a sinusoid, optionally through an MLP: (B,) → (B, 1, D)."""

    Head = None

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.size = segment.sinusoid_size or width
        self.dtype = dtype
        hidden = int(segment.mlp_ratio * width)
        options = dict(dtype=dtype, kernel_init=normal, rngs=rngs)
        self.fc1 = nnx.Linear(self.size, hidden, **options) if hidden else None
        self.fc2 = nnx.Linear(hidden, width, **options) if hidden else None
        if not hidden and self.size != width:
            raise UvitError(
                f"segment {segment.name!r}: a raw sinusoid must have the model's width {width}, "
                f"not sinusoid_size={self.size}; set mlp_ratio to project it"
            )

    @staticmethod
    def check(segment: Segment) -> str | None:
        return None if segment.of else "a time segment needs `of`, the noisy segment it times"

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        return 1

    def __call__(self, t_B: jax.Array) -> jax.Array:
        x_BD = sinusoid(t_B, self.size).astype(self.dtype)
        if self.fc1 is not None:
            x_BD = self.fc2(nnx.silu(self.fc1(x_BD)))
        return x_BD[:, None]


class Label(nnx.Module):
    """A class index, `num_classes` being the null class: int32 (B,) → (B, 1, D)."""

    Head = None

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.table = nnx.Embed(
            segment.num_classes + segment.null,
            width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(segment.init_std),
            rngs=rngs,
        )

    @staticmethod
    def check(segment: Segment) -> str | None:
        return None if segment.num_classes > 0 else "a label segment needs num_classes >= 1"

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        return 1

    @staticmethod
    def null(segment: Segment, batch_size: int) -> np.ndarray | None:
        return np.full((batch_size,), segment.num_classes, np.int32) if segment.null else None

    def __call__(self, label_B: jax.Array) -> jax.Array:
        return self.table(label_B)[:, None]


class Features(nnx.Module):
    """Vectors of a frozen encoder (CLIP text, CLIP image, …): (B, N, F) → (B, N, D)."""

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.proj = nnx.Linear(segment.shape[-1], width, dtype=dtype, kernel_init=normal, rngs=rngs)

    @staticmethod
    def check(segment: Segment) -> str | None:
        if len(segment.shape) != 2:
            return f"a features segment needs shape (N, F), got {segment.shape}"
        return None

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        return segment.shape[0]

    @staticmethod
    def null(segment: Segment, batch_size: int) -> np.ndarray | None:
        # What "no text" looks like is the encoder's affair (CLIP: the encoding of the empty
        # string), so the data have to bring it.
        return None

    def __call__(self, features_BNF: jax.Array) -> jax.Array:
        return self.proj(features_BNF)

    class Head(nnx.Module):
        """(B, N, D) → (B, N, F)."""

        def __init__(self, segment: Segment, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
            init = nnx.initializers.zeros if zero else normal
            self.proj = nnx.Linear(
                width, segment.shape[-1], dtype=dtype, kernel_init=init, rngs=rngs
            )

        def __call__(self, tokens_BND: jax.Array) -> jax.Array:
            return self.proj(tokens_BND)


MODALITIES: dict[str, Any] = {
    "time": Time,
    "label": Label,
    "text": Text,
    "features": Features,
    "image": Image,
}
