"""Pictures as tokens: patches in, patches out, and the convolutions that may stand around them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.parallel.sharding import constrain_batch
from uvit_jax.tokens.initializers import normal, torch_uniform
from uvit_jax.tokens.segment import Segment


class Image(nnx.Module):
    """Pictures cut into p×p patches, rows first: (B, H, W, C) → (B, HW/p², D)."""

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.patch_size = segment.patch_size
        self.dtype = dtype
        convolutions = segment.patch_embed == "conv_stack"
        self.stack = ConvStack(segment, width, dtype=dtype, rngs=rngs) if convolutions else None
        fan_in = segment.patch_size**2 * segment.shape[-1]
        # A convolution whose kernel is its stride is a product of patches with one matrix.
        kernel_init = bias_init = torch_uniform(fan_in)
        if segment.patch_init == "xavier":
            kernel_init, bias_init = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        options = dict(dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)
        self.proj = None if convolutions else nnx.Linear(fan_in, width, **options)

    @staticmethod
    def check(segment: Segment) -> str | None:
        if len(segment.shape) != 3:
            return f"an image segment needs shape (H, W, C), got {segment.shape}"
        height, width, _ = segment.shape
        p = segment.patch_size
        if p < 1 or height % p or width % p:
            return f"patch_size={p} does not divide the image's {height}×{width} pixels"
        if segment.patch_embed == "conv_stack" and (p < 2 or p & (p - 1)):
            return f"patch_embed='conv_stack' halves the picture: patch_size={p} must be 2, 4, 8, …"
        return None

    @staticmethod
    def num_tokens(segment: Segment) -> int:
        height, width, _ = segment.shape
        return (height // segment.patch_size) * (width // segment.patch_size)

    @staticmethod
    def null(segment: Segment, batch_size: int) -> np.ndarray | None:
        return np.zeros((batch_size, *segment.shape), np.float32)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        image_BHWC = image_BHWC.astype(self.dtype)
        if self.stack is not None:
            return self.stack(image_BHWC)
        return self.proj(patchify(image_BHWC, self.patch_size))

    class Head(nnx.Module):
        """(B, HW/p², D) → (B, H, W, C), or 2C with a learned range; a 3×3 convolution somewhere."""

        def __init__(self, segment: Segment, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
            height, width_px, channels = segment.shape
            channels *= 1 + segment.learned_range
            p = self.patch_size = segment.patch_size
            self.grid = (height // p, width_px // p)
            init = nnx.initializers.zeros if zero else normal
            self.proj = nnx.Linear(
                width, p * p * channels, dtype=dtype, kernel_init=init, rngs=rngs
            )
            self.final_conv = segment.final_conv
            size = {"after": channels, "before": width, "none": 0}[self.final_conv]
            if self.final_conv == "after":
                # The last thing done, on few channels: in half precision it would round the
                # prediction, and the gradient of its bias would be summed over all pixels in it.
                dtype = jnp.float32
            self.conv = conv3x3(size, size, dtype=dtype, rngs=rngs) if size else None

        def __call__(self, tokens_BND: jax.Array) -> jax.Array:
            # Tokens may come spread over the mesh's context axis. A convolution must not: with the
            # tensor axis in play, XLA's partitioner gets its kernel's gradient wrong (by a factor).
            tokens_BND = constrain_batch(tokens_BND)
            if self.final_conv == "before":
                tokens_BHWD = tokens_BND.reshape(-1, *self.grid, tokens_BND.shape[-1])
                tokens_BND = constrain_batch(self.conv(tokens_BHWD)).reshape(tokens_BND.shape)
            patches_BNP = constrain_batch(self.proj(tokens_BND))
            image_BHWC = constrain_batch(unpatchify(patches_BNP, self.patch_size, self.grid))
            if self.final_conv == "after":
                image_BHWC = constrain_batch(self.conv(image_BHWC))
            return image_BHWC


class ConvStack(nnx.Module):
    """A patch embedding by convolutions, (B, H, W, C) → (B, HW/p², D), p a power of two.

    log2(p) times a 3×3 convolution of stride 2, LayerNorm and GELU, the channels doubling up to D,
    then a 1×1 convolution (Xiao et al. 2021, with LayerNorm for their batch statistics).
    """

    def __init__(self, segment: Segment, width: int, *, dtype: Any, rngs: nnx.Rngs):
        count = segment.patch_size.bit_length() - 1
        sizes = [segment.shape[-1]] + [max(1, width >> (count - 1 - i)) for i in range(count)]
        pairs = list(itertools.pairwise(sizes))
        self.convs = nnx.List([conv3x3(a, b, stride=2, dtype=dtype, rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([nnx.LayerNorm(b, dtype=dtype, rngs=rngs) for _, b in pairs])
        self.proj = nnx.Linear(sizes[-1], width, dtype=dtype, kernel_init=normal, rngs=rngs)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        x_BHWC = constrain_batch(image_BHWC)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BHWC = nnx.gelu(norm(constrain_batch(conv(x_BHWC))), approximate=False)
        return self.proj(x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1]))


def conv3x3(inputs: int, outputs: int, *, stride: int = 1, dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3×3 convolution that starts as PyTorch's does and pads as PyTorch's `padding=1`."""
    init = torch_uniform(9 * inputs)
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=stride,
        padding=1,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )


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
