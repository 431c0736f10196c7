"""Images and videos as patches, and back; an image is a video of one frame."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.config import brief
from uvit_jax.parallel.sharding import constrain_batch
from uvit_jax.tokens.segment import Grid, Segment, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patches(Segment):
    """An image (B, H, W, C) or a video (B, T, H, W, C), in pixels or latents, float.

    A token is a patch of patch_size_t × patch_size × patch_size, in the order of frames, rows and
    columns.

    Attributes:
      shape: (H, W, C) of an image, (T, H, W, C) of a video.
      patch_size: side of a patch. patch_size_t: frames of a patch.
      patch_embed: `linear`, one matrix; or, for images, `conv_stack`: 3×3 convolutions of stride 2,
        then 1×1 (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").
      patch_init: of that matrix, `torch` (a convolution's default; U-ViT) or `xavier` (DiT).
      final_conv: a 3×3 convolution of each frame `after` the projection to pixels (U-ViT), `before`
        it (on tokens), or `none`.
      learned_range: the output has twice the channels; the second half interpolates the variance
        (Nichol & Dhariwal 2021, eq. 15; DiT).
      trained_shape: the shape that its positions belong to; empty for `shape`. Another one
        interpolates them, so that a model samples at another resolution or length.
      start: the position of its first frame on the frame axis: of frames that follow other frames.
      frames_from: of a video, a camera, whose token of each frame is added to that frame's patches
        as well. Its learned or sin-cos position is the frame's, and position='sincos' here is of
        rows and columns alone, as of an image.
      follow_camera: of a noisy video with `frames_from` a planar camera, and position='sincos' or
        'rope': a patch's position on rows and columns is that of the point it shows in the clip's
        middle view (`CameraPoses.seen_points`), so that patches of one point have one position.
        It may lie outside of the grid; with 'rope' and references with offset='diagonal', which
        start there, give the layout the axis `segment`.
      window: of a noisy video, and of noisy ones that share its parameters: a token sees only the
        tokens of the clip in its own window of so many frames and the two beside it (see
        windows.py); 0 for all.
      offset: of a reference with RoPE, `diagonal` places it behind the target and all slots before
        its own, along rows and columns, in steps of the largest grid (UNO, Wu et al. 2025).
    """

    kind: Literal["patches"] = "patches"
    shape: tuple[int, ...] = ()
    patch_size: int = 1
    patch_size_t: int = 1
    patch_embed: Literal["linear", "conv_stack"] = "linear"
    patch_init: Literal["torch", "xavier"] = "torch"
    final_conv: Literal["after", "before", "none"] = "after"
    learned_range: bool = False
    trained_shape: tuple[int, ...] = ()
    start: int = 0
    frames_from: str = ""
    follow_camera: bool = False
    window: int = 0
    offset: Literal["none", "diagonal"] = "none"

    def problem(self) -> str:
        for key in ("shape", "trained_shape") if self.trained_shape else ("shape",):
            if problem := self._shape_problem(key, getattr(self, key)):
                return problem
        if self.trained_shape and len(self.trained_shape) != len(self.shape):
            return f"trained_shape={self.trained_shape} and shape={self.shape} differ in length"
        p = self.patch_size
        if self.patch_embed == "conv_stack" and (p < 2 or p & (p - 1) or self.is_video):
            return f"patch_embed='conv_stack' needs an image and patch_size 2, 4, 8, …, not {p}"
        if self.learned_range and self.role != "noisy":
            return "learned_range=True needs role='noisy'"
        if self.start < 0:
            return f"start must be at least 0, got {self.start}"
        if self.frames_from and not self.is_video:
            return f"frames_from={self.frames_from!r} is for videos, shape (T, H, W, C)"
        moving = self.role == "noisy" and self.frames_from and self.position in ("sincos", "rope")
        if self.follow_camera and not moving:
            return "follow_camera=True needs role='noisy', frames_from, position='sincos' or 'rope'"
        if self.window < 0 or self.window % self.patch_size_t:
            return f"window={self.window} must be a multiple of patch_size_t={self.patch_size_t}"
        if self.window and (self.share or self.role != "noisy" or not self.is_video):
            return (
                f"window={self.window} is for a noisy video that shares no other's parameters; "
                "noisy ones that share its parameters have its windows"
            )
        if self.offset != "none" and not (self.is_reference and self.position == "rope"):
            return f"offset={self.offset!r} is for references with position='rope'"
        return ""

    def _shape_problem(self, key: str, shape: tuple[int, ...]) -> str:
        if len(shape) not in (3, 4) or min(shape) < 1:
            return f"{key} must be (H, W, C) or (T, H, W, C), positive numbers, got {brief(shape)}"
        for name, size, patch in (
            ("patch_size_t", shape[0] if len(shape) == 4 else 1, self.patch_size_t),
            ("patch_size", shape[-3], self.patch_size),
            ("patch_size", shape[-2], self.patch_size),
        ):
            if patch < 1 or size % patch:
                return f"{name}={patch} does not divide {key}={shape}"
        return ""

    @property
    def is_video(self) -> bool:
        """Whether its data have a frame axis."""
        return len(self.shape) == 4

    @property
    def is_latent(self) -> bool:
        """Whether it cannot be pixels: its channels are neither RGB nor grey."""
        return self.shape[-1] not in (1, 3)

    @property
    def patch(self) -> Grid:
        """The patch's size along frames, rows and columns."""
        return (self.patch_size_t, self.patch_size, self.patch_size)

    @property
    def grid(self) -> Grid:
        return self._grid(self.shape)

    @property
    def trained_grid(self) -> Grid:
        return self._grid(self.trained_shape or self.shape)

    @property
    def grid_axes(self) -> tuple[int, ...]:
        frames = self.is_video and not (self.frames_from and self.position == "sincos")
        return (0, 1, 2) if frames else (1, 2)

    @property
    def frames_per_token(self) -> int:
        return self.patch_size_t

    def _grid(self, shape: tuple[int, ...]) -> Grid:
        frames = shape[0] if len(shape) == 4 else 1
        p = self.patch_size
        return (frames // self.patch_size_t, shape[-3] // p, shape[-2] // p)

    def shared_fields(self, other: Segment) -> tuple[str, ...]:
        head = ("final_conv", "learned_range") if self.role == other.role == "noisy" else ()
        return ("patch_size", "patch_size_t", "patch_embed", *head)

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return PatchEmbedding(self, width, dtype=dtype, rngs=rngs)

    def head(self, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs) -> nnx.Module:
        return PatchHead(self, width, dtype=dtype, zero=zero, rngs=rngs)

    def null(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, *self.shape), np.float32)


class PatchEmbedding(nnx.Module):
    """(B, H, W, C) or (B, T, H, W, C) → (B, n, D)."""

    def __init__(self, segment: Patches, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.patch = segment.patch
        self.dtype = dtype
        convolutions = segment.patch_embed == "conv_stack"
        self.stack = ConvStack(segment, width, dtype=dtype, rngs=rngs) if convolutions else None
        fan_in = segment.patch_size_t * segment.patch_size**2 * segment.shape[-1]
        # A convolution whose stride is its kernel's size is one matrix product with the patches.
        kernel_init = bias_init = torch_uniform(fan_in)
        if segment.patch_init == "xavier":
            kernel_init, bias_init = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        options = dict(dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)
        self.proj = None if convolutions else nnx.Linear(fan_in, width, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        if self.stack is not None:
            return self.stack(x)
        return self.proj(patchify(x, self.patch))


class PatchHead(nnx.Module):
    """(B, n, D) → (B, H, W, C) or (B, T, H, W, C); 2C channels with a learned range."""

    def __init__(self, segment: Patches, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
        channels = segment.shape[-1] * (1 + segment.learned_range)
        size = segment.patch_size_t * segment.patch_size**2 * channels
        init = nnx.initializers.zeros if zero else normal
        self.proj = nnx.Linear(width, size, dtype=dtype, kernel_init=init, rngs=rngs)
        self.final_conv = segment.final_conv
        conv_channels = {"after": channels, "before": width, "none": 0}[self.final_conv]
        if self.final_conv == "after":
            # The last operation, on few channels: in half precision it would round the prediction,
            # and the gradient of its bias would be summed over all pixels in it.
            dtype = jnp.float32
        self.conv = (
            conv3x3(conv_channels, conv_channels, dtype=dtype, rngs=rngs) if conv_channels else None
        )

    def __call__(self, tokens_BND: jax.Array, segment: Patches) -> jax.Array:
        # Tokens may come sharded over the mesh's context axis. A convolution must not: with a
        # tensor axis, XLA's partitioner gets its kernel's gradient wrong (by a factor).
        tokens_BND = constrain_batch(tokens_BND)
        T, h, w = segment.grid
        if self.final_conv == "before":
            frames = tokens_BND.reshape(-1, h, w, tokens_BND.shape[-1])
            tokens_BND = constrain_batch(self.conv(frames)).reshape(tokens_BND.shape)
        patches_BNP = constrain_batch(self.proj(tokens_BND))
        video = constrain_batch(unpatchify(patches_BNP, segment.patch, (T, h, w)))
        if self.final_conv == "after":
            frames = video.reshape(-1, *video.shape[2:])
            video = constrain_batch(self.conv(frames)).reshape(video.shape)
        return video if segment.is_video else video[:, 0]


class ConvStack(nnx.Module):
    """A patch embedding by convolutions, (B, H, W, C) → (B, HW/p², D), p a power of two.

    log2(p) times a 3×3 convolution of stride 2, LayerNorm and GELU, the channels doubling up to D,
    then a 1×1 convolution (Xiao et al. 2021, with LayerNorm for their batch normalisation).
    """

    def __init__(self, segment: Patches, width: int, *, dtype: Any, rngs: nnx.Rngs):
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


def patchify(x: jax.Array, patch: Grid) -> jax.Array:
    """(B, H, W, C) or (B, T, H, W, C) → (B, n, P), each patch in the order (frame, row, column,
    channel)."""
    if x.ndim == 4:
        x = x[:, None]
    B, T, H, W, C = x.shape
    t, p, q = patch
    if t == 1:  # a transpose of fewer axes, which XLA compiles faster
        x = x.reshape(B * T, H // p, p, W // q, q, C)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, p * q * C)
    x = x.reshape(B, T // t, t, H // p, p, W // q, q, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, t * p * q * C)


def unpatchify(patches_BNP: jax.Array, patch: Grid, grid: Grid) -> jax.Array:
    """The inverse of `patchify`, as a video (B, T, H, W, C), for a grid of patches."""
    B, _, P = patches_BNP.shape
    (t, p, q), (T, h, w) = patch, grid
    C = P // (t * p * q)
    if t == 1:
        x = patches_BNP.reshape(B * T, h, w, p, q, C)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, T, h * p, w * q, C)
    x = patches_BNP.reshape(B, T, h, w, t, p, q, C)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, T * t, h * p, w * q, C)


def conv3x3(inputs: int, outputs: int, *, stride: int = 1, dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3×3 convolution with PyTorch's initialisation and its `padding=1`."""
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


def torch_uniform(fan_in: int):
    """PyTorch's default for convolutions, weights and biases alike: U(-1/√fan_in, 1/√fan_in)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
