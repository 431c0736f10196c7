"""Modalities: how one kind of data becomes tokens, and tokens that kind of data again.

A modality is an NNX module with three static methods that the layout asks (`check`, `num_tokens`,
`null`), a `__call__` that embeds a batch, and, if it can be noisy, a module that reads tokens back
(`Head`). A new kind of condition is a new class here, entered in `MODALITIES`, nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.parallel.sharding import constrain_batch
from uvit_jax.tokens.segment import Segment

# PyTorch's trunc_normal_(std=.02) cuts at the absolute values ±2, a hundred standard deviations
# away: what the published models start from is the plain normal distribution.
normal = nnx.initializers.normal(0.02)


def torch_uniform(fan_in: int):
    """PyTorch's default for convolutions, weights and biases alike: U(-1/√fan_in, 1/√fan_in)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


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


class Text(nnx.Module):
    """Token ids with a table trained along: int32 (B, T) → (B, T, D). Id 0 is padding."""

    Head = None

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.table = nnx.Embed(
            segment.vocab_size, width, dtype=dtype, embedding_init=normal, rngs=rngs
        )

    @staticmethod
    def check(segment: Segment) -> str | None:
        if len(segment.shape) != 1:
            return f"a text segment needs shape (T,), got {segment.shape}"
        return None if segment.vocab_size > 0 else "a text segment needs vocab_size >= 1"

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        return segment.shape[0]

    @staticmethod
    def null(segment: Segment, batch_size: int) -> np.ndarray | None:
        return np.zeros((batch_size, *segment.shape), np.int32)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        return self.table(ids_BT)


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


class Image(nnx.Module):
    """Pictures cut into p×p patches, rows first: (B, H, W, C) → (B, HW/p², D)."""

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.patch_size = segment.patch_size
        self.dtype = dtype
        fan_in = segment.patch_size**2 * segment.shape[-1]
        # A convolution whose kernel is its stride is a product of patches with one matrix.
        kernel_init = bias_init = torch_uniform(fan_in)
        if segment.patch_init == "xavier":
            kernel_init, bias_init = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        options = dict(dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)
        self.proj = nnx.Linear(fan_in, width, **options)

    @staticmethod
    def check(segment: Segment) -> str | None:
        if len(segment.shape) != 3:
            return f"an image segment needs shape (H, W, C), got {segment.shape}"
        height, width, _ = segment.shape
        p = segment.patch_size
        if p < 1 or height % p or width % p:
            return f"patch_size={p} does not divide the image's {height}×{width} pixels"
        return None

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        height, width, _ = segment.shape
        return (height // segment.patch_size) * (width // segment.patch_size)

    @staticmethod
    def null(segment: Segment, batch_size: int) -> np.ndarray | None:
        return np.zeros((batch_size, *segment.shape), np.float32)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        return self.proj(patchify(image_BHWC.astype(self.dtype), self.patch_size))

    class Head(nnx.Module):
        """(B, HW/p², D) → (B, H, W, C), or 2C with a learned range; an optional 3×3 convolution."""

        def __init__(self, segment: Segment, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
            height, width_px, channels = segment.shape
            channels *= 1 + segment.learned_range
            p = self.patch_size = segment.patch_size
            self.grid = (height // p, width_px // p)
            init = nnx.initializers.zeros if zero else normal
            self.proj = nnx.Linear(
                width, p * p * channels, dtype=dtype, kernel_init=init, rngs=rngs
            )
            conv_init = torch_uniform(9 * channels)
            options = dict(dtype=dtype, kernel_init=conv_init, bias_init=conv_init, rngs=rngs)
            final_conv = segment.final_conv
            self.conv = nnx.Conv(channels, channels, (3, 3), **options) if final_conv else None

        def __call__(self, tokens_BND: jax.Array) -> jax.Array:
            # Tokens may come spread over the mesh's context axis. A convolution must not: with the
            # tensor axis in play, XLA's partitioner gets its kernel's gradient wrong (by a factor).
            patches_BNP = constrain_batch(self.proj(constrain_batch(tokens_BND)))
            image_BHWC = constrain_batch(unpatchify(patches_BNP, self.patch_size, self.grid))
            return image_BHWC if self.conv is None else constrain_batch(self.conv(image_BHWC))


def patchify(image_BHWC: jax.Array, p: int) -> jax.Array:
    """(B, H, W, C) → (B, HW/p², p²C): patches in rows, (row, column, channel) within a patch."""
    B, H, W, C = image_BHWC.shape
    x = image_BHWC.reshape(B, H // p, p, W // p, p, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(patches_BNP: jax.Array, p: int, grid: tuple[int, int]) -> jax.Array:
    """The inverse of `patchify`, for a grid of (rows, columns) patches."""
    B, _, P = patches_BNP.shape
    h, w = grid
    x = patches_BNP.reshape(B, h, w, p, p, P // (p * p))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, h * p, w * p, P // (p * p))


MODALITIES: dict[str, Any] = {
    "time": Time,
    "label": Label,
    "text": Text,
    "features": Features,
    "image": Image,
}
