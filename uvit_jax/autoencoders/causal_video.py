"""A causal video autoencoder in the form of Wan's, as pure functions.

    autoencoder, params = load_video_autoencoder("Wan2.1_VAE.pth")     # of causal_video_weights
    moments = encode_in_chunks(autoencoder, params, video)  # (B, 1 + k, H/8, W/8, 2C)
    latents = sample_moments(key, moments, scale=1.0)       # of kl.py
    video = decode_in_chunks(autoencoder, params, latents)  # (B, 1 + 4k, H, W, 3)

No frame depends on later ones: convolutions are padded in time on the left only, and the first
frame is not merged with others, so that an image is a video of one frame. A clip can therefore be
processed in chunks of any length, with the last two frames of every convolution's input as state,
in memory that does not grow with its length.

Source: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (2025), section 4.1;
the layers are those of the published weights. The default is Wan 2.1's, of 127M parameters.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.autoencoders.tiles import tiled
from uvit_jax.config import Config, parse
from uvit_jax.errors import UvitError
from uvit_jax.models.pure_network import Params, PureNetwork
from uvit_jax.parallel.attention.implementations import attention

WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
State = list[jax.Array]
"""What the layers of an encoder or decoder keep from one chunk of a video to the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoAutoencoderConfig(Config):
    """The causal video autoencoder; the defaults are Wan 2.1's.

    Attributes:
      widths: channels of each level, from full resolution down; every level but the last ends in a
        downsampling by 2 of rows and columns. All but the first must be even.
      temporal: for each of these downsamplings, whether it halves the frames too.
      num_blocks: residual blocks per level of the encoder; the decoder has one more.
      latent_channels: C. image_channels: 3, or 1 for grey.
      patch_size: squares of so many pixels become channels before the first convolution, and back.
      mid_attention: single-head attention within each frame at the lowest resolution.
      kernel_frames: frames that the kernels of convolutions span; with 1, only the time
        convolutions of `temporal` mix frames, and the others have a third of the parameters.
      latent_mean, latent_std: C numbers each, or () for 0 and 1: the network's latents z become
        (z - mean) / std.
      convolutions: `3d`, or `2d`: each as a sum of three over frames, which is faster on XLA's CPU
        backend.
      dtype: of the computation. Norm statistics, softmaxes and outputs are float32.
    """

    widths: tuple[int, ...] = (96, 192, 384, 384)
    temporal: tuple[bool, ...] = (False, True, True)
    num_blocks: int = 2
    latent_channels: int = 16
    image_channels: int = 3
    patch_size: int = 1
    mid_attention: bool = True
    kernel_frames: Literal[1, 3] = 3
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    convolutions: Literal["3d", "2d"] = "3d"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        for key in ("num_blocks", "latent_channels", "image_channels", "patch_size"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if not self.widths or min(self.widths) < 1 or any(w % 2 for w in self.widths[1:]):
            raise UvitError(
                f"widths must be positive numbers, all but the first even, got {self.widths}"
            )
        if len(self.temporal) != len(self.widths) - 1:
            raise UvitError(
                f"temporal must have a value for each downsampling, {len(self.widths) - 1}, got "
                f"{self.temporal}"
            )
        for key in ("latent_mean", "latent_std"):
            if len(getattr(self, key)) not in (0, self.latent_channels):
                raise UvitError(f"{key} must have latent_channels={self.latent_channels} numbers")
        if min(self.latent_std, default=1.0) <= 0:
            raise UvitError(f"latent_std must be positive, got {self.latent_std}")

    @property
    def factor(self) -> int:
        """The downsampling factor of rows and columns."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    @property
    def frame_factor(self) -> int:
        """The downsampling factor f of frames: 1 + f·k frames have 1 + k latent ones."""
        return 2 ** sum(self.temporal)


class Stream:
    """The state of a chunk's layers: each takes its own in the order in which they run, and puts
    the next chunk's.

    Args:
      state: of the chunk before; None if this one is the first.
    """

    def __init__(self, state: State | None = None):
        self.first = state is None
        self._old = iter(state or ())
        self.state: State = []

    def before(self, x_BTHWD: jax.Array, frames: int) -> jax.Array:
        """The last `frames` frames of the layer's inputs so far; zeros at the start."""
        if self.first:
            B, _, *rest = x_BTHWD.shape
            return jnp.zeros((B, frames, *rest), x_BTHWD.dtype)
        return next(self._old)

    def extended(self, x_BTHWD: jax.Array, frames: int) -> jax.Array:
        """The input after its last `frames` frames of before, and those of the next chunk kept."""
        x_BTHWD = jnp.concatenate([self.before(x_BTHWD, frames), x_BTHWD], axis=1)
        self.state.append(x_BTHWD[:, x_BTHWD.shape[1] - frames :])
        return x_BTHWD


class CausalConv(nnx.Module):
    """A convolution (T, H, W) of kernel (t, s, s), zero-padded, in time on the left only.

    Args:
      size: (t, s); None is (`config.kernel_frames`, 3).
    """

    def __init__(
        self,
        config: VideoAutoencoderConfig,
        inputs: int,
        outputs: int,
        size: tuple[int, int] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        size = size or (config.kernel_frames, 3)
        self.size, self.config = size, config
        shape = (size[0], size[1], size[1], inputs, outputs)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x_BTHWD: jax.Array, stream: Stream) -> jax.Array:
        before = self.size[0] - 1
        extended = stream.extended(x_BTHWD, before) if before else x_BTHWD
        if stream.first and x_BTHWD.shape[1] == 1:  # all frames before an image are zeros
            return self.valid(x_BTHWD, skip=before)
        return self.valid(extended)

    def valid(self, x_BTHWD: jax.Array, *, stride: int = 1, skip: int = 0) -> jax.Array:
        """Without padding in time, every `stride`-th frame, by the kernel without its first `skip`
        frames."""
        dtype = jnp.dtype(self.config.dtype)
        kernel, bias = self.kernel[skip:].astype(dtype), self.bias[...].astype(dtype)
        t, s = kernel.shape[:2]
        pad = (s // 2, s // 2)
        if self.config.convolutions == "3d" and (t, s) != (1, 1):
            return bias + jax.lax.conv_general_dilated(
                x_BTHWD,
                kernel,
                (stride, 1, 1),
                ((0, 0), pad, pad),
                dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            )
        frames = (x_BTHWD.shape[1] - t) // stride + 1

        def tap(i: int) -> jax.Array:
            part = x_BTHWD[:, i : i + stride * (frames - 1) + 1 : stride]
            if s == 1:
                return part @ kernel[i, 0, 0]
            flat = part.reshape(-1, *part.shape[2:])
            y = jax.lax.conv_general_dilated(
                flat, kernel[i], (1, 1), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return y.reshape(*part.shape[:2], *y.shape[1:])

        return bias + sum(tap(i) for i in range(t))


class ChannelNorm(nnx.Module):
    """x / ‖x‖ · √D · scale over the D channels."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(wide * wide, axis=-1, keepdims=True))
        wide = wide / jnp.maximum(norm, 1e-12) * (x.shape[-1] ** 0.5 * self.scale[...])
        return wide.astype(x.dtype)


class VideoResBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, T, h, w, inputs) → (…, outputs)."""

    def __init__(self, config: VideoAutoencoderConfig, inputs: int, outputs: int, *, rngs):
        self.norm1 = ChannelNorm(inputs, rngs=rngs)
        self.conv1 = CausalConv(config, inputs, outputs, rngs=rngs)
        self.norm2 = ChannelNorm(outputs, rngs=rngs)
        self.conv2 = CausalConv(config, outputs, outputs, rngs=rngs)
        changes = inputs != outputs
        self.shortcut = CausalConv(config, inputs, outputs, (1, 1), rngs=rngs) if changes else None

    def __call__(self, x: jax.Array, stream: Stream) -> jax.Array:
        h = self.conv1(nnx.silu(self.norm1(x)), stream)
        h = self.conv2(nnx.silu(self.norm2(h)), stream)
        return h + (x if self.shortcut is None else self.shortcut(x, stream))


class FrameAttention(nnx.Module):
    """x + single-head self-attention over the pixels of each frame."""

    def __init__(self, config: VideoAutoencoderConfig, width: int, *, rngs: nnx.Rngs):
        options = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
        self.norm = ChannelNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, **options)
        self.out = nnx.Linear(width, width, **options)

    def __call__(self, x_BTHWD: jax.Array) -> jax.Array:
        B, T, H, W, D = x_BTHWD.shape
        qkv = self.qkv(self.norm(x_BTHWD)).reshape(B * T, H * W, 1, 3 * D)
        return x_BTHWD + self.out(attention(*jnp.split(qkv, 3, axis=-1))).reshape(x_BTHWD.shape)


class VideoMidBlock(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, config: VideoAutoencoderConfig, *, rngs: nnx.Rngs):
        width = config.widths[-1]
        self.block1 = VideoResBlock(config, width, width, rngs=rngs)
        self.attention = FrameAttention(config, width, rngs=rngs) if config.mid_attention else None
        self.block2 = VideoResBlock(config, width, width, rngs=rngs)

    def __call__(self, x: jax.Array, stream: Stream) -> jax.Array:
        x = self.block1(x, stream)
        x = x if self.attention is None else self.attention(x)
        return self.block2(x, stream)


class Downsample(nnx.Module):
    """Halves rows and columns, and with `time` the frames: 1 + 2k → 1 + k at the start, 2k → k
    later."""

    def __init__(self, config: VideoAutoencoderConfig, width: int, time: bool, *, rngs: nnx.Rngs):
        # Padded only at the bottom and right.
        self.conv = _frame_conv(config, width, width, stride=2, rngs=rngs)
        self.time_conv = CausalConv(config, width, width, (3, 1), rngs=rngs) if time else None

    def __call__(self, x_BTHWD: jax.Array, stream: Stream) -> jax.Array:
        x_BTHWD = _by_frame(self.conv, x_BTHWD)
        if self.time_conv is None:
            return x_BTHWD
        if stream.first:
            stream.state.append(x_BTHWD[:, -1:])
            if x_BTHWD.shape[1] == 1:
                return x_BTHWD
            return jnp.concatenate(
                [x_BTHWD[:, :1], self.time_conv.valid(x_BTHWD, stride=2)], axis=1
            )
        return self.time_conv.valid(stream.extended(x_BTHWD, 1), stride=2)


class Upsample(nnx.Module):
    """Doubles rows and columns and halves the channels; with `time` doubles the frames too, but for
    the first of the video."""

    def __init__(self, config: VideoAutoencoderConfig, width: int, time: bool, *, rngs: nnx.Rngs):
        self.conv = _frame_conv(config, width, width // 2, rngs=rngs)
        self.time_conv = CausalConv(config, width, 2 * width, (3, 1), rngs=rngs) if time else None

    def __call__(self, x_BTHWD: jax.Array, stream: Stream) -> jax.Array:
        if self.time_conv is not None:
            alone, rest = (1, x_BTHWD[:, 1:]) if stream.first else (0, x_BTHWD)
            # Of an empty rest the state is kept all the same.
            both = stream.extended(rest, 2)
            if rest.shape[1]:
                B, T, H, W, D = rest.shape
                pairs = self.time_conv.valid(both).reshape(B, T, H, W, 2, D)
                rest = pairs.transpose(0, 1, 4, 2, 3, 5).reshape(B, 2 * T, H, W, D)
            x_BTHWD = jnp.concatenate([x_BTHWD[:, :alone], rest], axis=1)
        return _by_frame(self.conv, x_BTHWD.repeat(2, axis=2).repeat(2, axis=3))


class VideoLevel(nnx.Module):
    """Residual blocks at one resolution, then a resampling."""

    def __init__(
        self,
        config: VideoAutoencoderConfig,
        sizes: Sequence[int],
        resample: nnx.Module | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.List(
            VideoResBlock(config, a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)
        )
        self.resample = resample

    def __call__(self, x: jax.Array, stream: Stream) -> jax.Array:
        for block in self.blocks:
            x = block(x, stream)
        return x if self.resample is None else self.resample(x, stream)


class VideoEncoder(nnx.Module):
    """(B, T, H, W, image channels) → (B, t, h, w, 2C)."""

    def __init__(self, config: VideoAutoencoderConfig, *, rngs: nnx.Rngs):
        widths, self.patch_size = config.widths, config.patch_size
        inputs = config.image_channels * config.patch_size**2
        self.conv_in = CausalConv(config, inputs, widths[0], rngs=rngs)
        self.levels = nnx.List(
            VideoLevel(
                config,
                [widths[max(i - 1, 0)], *[width] * config.num_blocks],
                Downsample(config, width, config.temporal[i], rngs=rngs)
                if i < len(widths) - 1
                else None,
                rngs=rngs,
            )
            for i, width in enumerate(widths)
        )
        self.mid = VideoMidBlock(config, rngs=rngs)
        self.norm_out = ChannelNorm(widths[-1], rngs=rngs)
        self.conv_out = CausalConv(config, widths[-1], 2 * config.latent_channels, rngs=rngs)
        C = 2 * config.latent_channels
        self.quant_conv = CausalConv(config, C, C, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, stream: Stream) -> jax.Array:
        x = self.conv_in(_squares(x, self.patch_size), stream)
        for level in self.levels:
            x = level(x, stream)
        x = self.conv_out(nnx.silu(self.norm_out(self.mid(x, stream))), stream)
        return self.quant_conv(x, stream)


class VideoDecoder(nnx.Module):
    """(B, t, h, w, C) → (B, T, H, W, image channels). `levels` are in order of execution."""

    def __init__(self, config: VideoAutoencoderConfig, *, rngs: nnx.Rngs):
        C, widths, self.patch_size = config.latent_channels, config.widths[::-1], config.patch_size
        self.post_quant_conv = CausalConv(config, C, C, (1, 1), rngs=rngs)
        self.conv_in = CausalConv(config, C, widths[0], rngs=rngs)
        self.mid = VideoMidBlock(config, rngs=rngs)
        levels, temporal = [], config.temporal[::-1]
        for i, width in enumerate(widths):
            inputs = widths[0] if i == 0 else widths[i - 1] // 2
            up = i < len(widths) - 1
            resample = Upsample(config, width, temporal[i], rngs=rngs) if up else None
            sizes = [inputs, *[width] * (config.num_blocks + 1)]
            levels.append(VideoLevel(config, sizes, resample, rngs=rngs))
        self.levels = nnx.List(levels)
        self.norm_out = ChannelNorm(widths[-1], rngs=rngs)
        outputs = config.image_channels * config.patch_size**2
        self.conv_out = CausalConv(config, widths[-1], outputs, rngs=rngs)

    def __call__(self, z: jax.Array, stream: Stream) -> jax.Array:
        x = self.mid(self.conv_in(self.post_quant_conv(z, stream), stream), stream)
        for level in self.levels:
            x = level(x, stream)
        x = self.conv_out(nnx.silu(self.norm_out(x)), stream)
        return _pixels(x, self.patch_size)


class VideoNetwork(nnx.Module):
    """Encoder and decoder."""

    def __init__(self, config: VideoAutoencoderConfig, *, rngs: nnx.Rngs):
        self.encoder = VideoEncoder(config, rngs=rngs)
        self.decoder = VideoDecoder(config, rngs=rngs)


class VideoAutoencoder(PureNetwork):
    """A causal video autoencoder as pure functions: `init`, `encode`, `decode`.

    Attributes:
      config: its `VideoAutoencoderConfig`.
      abstract_params: the shapes and dtypes of the parameters.
    """

    def __init__(self, config: VideoAutoencoderConfig):
        super().__init__(config, functools.partial(VideoNetwork, config))

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """(T, H, W, image channels) → (t, h, w, C).

        Raises:
          UvitError: on another number of channels, frames that are not 1 + f·k, or sides that
            `config.factor` does not divide.
        """
        frames, height, width, channels = shape
        f, g = self.config.factor, self.config.frame_factor
        if channels != self.config.image_channels:
            raise UvitError(
                f"the autoencoder takes videos of {self.config.image_channels} channels, not "
                f"{channels}"
            )
        if frames < 1 or (frames - 1) % g:
            good = 1 + max(frames - 1, 0) // g * g
            raise UvitError(
                f"the autoencoder takes 1 + {g}k frames, not {frames}; use {good} or {good + g}"
            )
        if height % f or width % f:
            raise UvitError(
                f"the autoencoder takes sides that are multiples of {f}, not {height}×{width}"
            )
        return 1 + (frames - 1) // g, height // f, width // f, self.config.latent_channels

    def encode(self, params: Params, video: jax.Array) -> jax.Array:
        """Encodes videos to the moments of their latents. Pure.

        Args:
          video: (B, T, H, W, image channels) in [-1, 1]; T = 1 + f·k.

        Returns:
          float32 (B, 1 + k, H/8, W/8, 2C): means, then log-variances, of latents with the config's
          mean and standard deviation taken out; neither clamped nor scaled.

        Raises:
          UvitError: on another shape, see `latent_shape`.
        """
        self.latent_shape(video.shape[1:])
        return self.encode_chunk(params, video)[0]

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """Decodes latents (B, 1 + k, h, w, C) to videos float32 (B, 1 + f·k, H, W, image channels),
        roughly in [-1, 1], not clipped. Pure.

        Raises:
          UvitError: on another number of channels.
        """
        return self.decode_chunk(params, latents)[0]

    def encode_chunk(
        self, params: Params, video: jax.Array, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """`encode` of the next frames of a video: 1 + f·k at its start, f·k with the state of the
        chunk before."""
        stream = Stream(state)
        x = video.astype(jnp.dtype(self.config.dtype))
        m = nnx.merge(self._graph, params).encoder(x, stream).astype(jnp.float32)
        zeros = (0.0,) * self.config.latent_channels
        if mean := self.config.latent_mean:
            m -= np.float32([*mean, *zeros])
        if std := self.config.latent_std:
            m -= np.float32([*zeros, *(2 * np.log(std))])
            m /= np.float32([*std, *np.ones(len(std))])
        return m, stream.state

    def decode_chunk(
        self, params: Params, latents: jax.Array, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """`decode` of the next latent frames of a video, any number of them."""
        if latents.shape[-1] != self.config.latent_channels:
            raise UvitError(
                f"the autoencoder's latents have {self.config.latent_channels} channels, "
                f"these have {latents.shape[-1]}"
            )
        if std := self.config.latent_std:
            latents = latents * np.float32(std)
        if mean := self.config.latent_mean:
            latents = latents + np.float32(mean)
        stream = Stream(state)
        z = latents.astype(jnp.dtype(self.config.dtype))
        x = nnx.merge(self._graph, params).decoder(z, stream)
        return x.astype(jnp.float32), stream.state

    @functools.partial(jax.jit, static_argnums=0)
    def _encode_chunk(self, params, video, state):
        return self.encode_chunk(params, video, state)

    @functools.partial(jax.jit, static_argnums=0)
    def _decode_chunk(self, params, latents, state):
        return self.decode_chunk(params, latents, state)


def build_video_autoencoder(
    config: Mapping[str, Any] | VideoAutoencoderConfig | None = None,
) -> VideoAutoencoder:
    """Builds the autoencoder of a config; None is Wan 2.1's, with its latents' statistics.

    Raises:
      UvitError: on an unknown key or impossible value, naming the key.
    """
    if config is None:
        config = VideoAutoencoderConfig(latent_mean=WAN_MEAN, latent_std=WAN_STD)
    if not isinstance(config, VideoAutoencoderConfig):
        config = parse(VideoAutoencoderConfig, config, "autoencoder")
    return _built(config)


# Cached, with its compiled functions: it is pure.
_built = functools.lru_cache(32)(VideoAutoencoder)


def encode_in_chunks(
    autoencoder: VideoAutoencoder,
    params: Params,
    video: np.ndarray,
    *,
    chunk: int = 1,
    tile: int = 0,
) -> np.ndarray:
    """`encode` of a long video in memory that does not grow with its length.

    Args:
      video: float (B, 1 + f·k, H, W, image channels) in [-1, 1].
      chunk: latent frames at once. tile: latent rows and columns at once, so that memory does not
        grow with the frames' size either; neighbouring tiles share a third. 0 for whole frames.

    Returns:
      numpy float32 (B, 1 + k, h, w, 2C), equal to `encode` but for rounding, and at the tiles'
      borders.

    Raises:
      UvitError: on another shape.
    """
    video = np.asarray(video)
    frames = autoencoder.latent_shape(video.shape[1:])[0]
    f = autoencoder.config.frame_factor
    parts = [0, *[1 + f * i for i in _bounds(frames, chunk)]]

    def encode(video: np.ndarray) -> np.ndarray:
        return _in_chunks(lambda x, s: autoencoder._encode_chunk(params, x, s), video, parts)

    return tiled(encode, video, tile, autoencoder.config.factor)


def decode_in_chunks(
    autoencoder: VideoAutoencoder,
    params: Params,
    latents: np.ndarray,
    *,
    chunk: int = 1,
    tile: int = 0,
) -> np.ndarray:
    """`decode` of long latents (B, 1 + k, h, w, C) in memory that does not grow with their length.

    Args:
      chunk, tile: latent frames, and rows and columns, at once, as for `encode_in_chunks`.

    Returns:
      numpy float32 (B, 1 + f·k, H, W, image channels), equal to `decode` but for rounding, and at
      the tiles' borders.
    """
    latents = np.asarray(latents)
    parts = [0, *[1 + i for i in _bounds(latents.shape[1], chunk)]]

    def decode(latents: np.ndarray) -> np.ndarray:
        return _in_chunks(lambda z, s: autoencoder._decode_chunk(params, z, s), latents, parts)

    return tiled(decode, latents, tile)


def _bounds(frames: int, chunk: int) -> Iterator[int]:
    """The ends of the chunks of 1 + k latent frames, without the first: 0, chunk, …, k."""
    if chunk < 1:
        raise UvitError(f"chunk must be at least 1, got {chunk}")
    yield from range(0, frames - 1, chunk)
    yield frames - 1


def _in_chunks(function, x: np.ndarray, bounds: list[int]) -> np.ndarray:
    outputs, state = [], None
    for start, stop in itertools.pairwise(bounds):
        y, state = function(x[:, start:stop], state)
        outputs.append(jax.device_get(y))
    return np.concatenate(outputs, axis=1)


def _frame_conv(
    config: VideoAutoencoderConfig, inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs
) -> nnx.Conv:
    padding = (1, 1) if stride == 1 else (0, 1)
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=stride,
        padding=(padding, padding),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def _by_frame(conv: nnx.Conv, x_BTHWD: jax.Array) -> jax.Array:
    B, T, *rest = x_BTHWD.shape
    y = conv(x_BTHWD.reshape(B * T, *rest))
    return y.reshape(B, T, *y.shape[1:])


def _squares(x_BTHWC: jax.Array, p: int) -> jax.Array:
    """(B, T, H, W, C) → (B, T, H/p, W/p, p²C)."""
    B, T, H, W, C = x_BTHWC.shape
    x = x_BTHWC.reshape(B, T, H // p, p, W // p, p, C).transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(B, T, H // p, W // p, p * p * C)


def _pixels(x: jax.Array, p: int) -> jax.Array:
    """The inverse of `_squares`."""
    B, T, h, w, P = x.shape
    x = x.reshape(B, T, h, w, p, p, P // (p * p)).transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(B, T, h * p, w * p, P // (p * p))
