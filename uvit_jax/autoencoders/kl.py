"""Stable Diffusion's KL autoencoder as pure functions.

    autoencoder, params = load_autoencoder("vae.safetensors")  # of kl_weights
    moments = autoencoder.encode(params, images)         # (B, H/8, W/8, 2C): means, log-variances
    latents = sample_moments(key, moments, scale=SCALE)  # (B, H/8, W/8, C)
    images = decode_in_batches(autoencoder, params, latents, scale=SCALE)

Source: Esser et al., "Taming Transformers" (2021); Rombach et al., "High-Resolution Image Synthesis
with Latent Diffusion Models" (2022). The default is the autoencoder of Stable Diffusion 1 and 2, of
83.65M parameters, whose latents U-ViT, DiT and UniDiffuser model.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.config import Config, parse
from uvit_jax.errors import UvitError
from uvit_jax.models.pure_network import Params, PureNetwork
from uvit_jax.parallel.attention.implementations import attention
from uvit_jax.parallel.sharding import constrain_batch

SCALE = 0.18215
"""The inverse standard deviation of the latents; the published COCO models have 0.23010."""

LOGVAR_RANGE = (-30.0, 20.0)
"""Log-variances are clamped to this range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """The KL autoencoder; the defaults are Stable Diffusion's.

    Attributes:
      widths: channels of each level, from full resolution down; every level but the last ends in a
        downsampling by 2 (diffusers' `block_out_channels`).
      num_blocks: residual blocks per level of the encoder; the decoder has one more
        (`layers_per_block`).
      latent_channels: C. image_channels: 3, or 1 for grey.
      num_groups: of the GroupNorms, whose epsilon is 1e-6 (`norm_num_groups`).
      mid_attention: single-head attention at the lowest resolution.
      quant_conv, post_quant_conv: a 1×1 convolution after the encoder, and before the decoder.
      latent_mean, latent_std: C numbers each, or () for 0 and 1: the network's latents z become
        (z - mean) / std (`shift_factor`, or `latents_mean` and `latents_std`).
      dtype: of the computation. Norm statistics, softmaxes and outputs are float32.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    num_groups: int = 32
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        for key in ("num_blocks", "latent_channels", "image_channels", "num_groups"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if not self.widths or min(self.widths) < 1:
            raise UvitError(f"widths must be one or more positive numbers, got {self.widths}")
        for key in ("latent_mean", "latent_std"):
            if len(getattr(self, key)) not in (0, self.latent_channels):
                raise UvitError(f"{key} must have latent_channels={self.latent_channels} numbers")
        if min(self.latent_std, default=1.0) <= 0:
            raise UvitError(f"latent_std must be positive, got {self.latent_std}")
        for width in self.widths:
            if width % self.num_groups:
                raise UvitError(f"num_groups={self.num_groups} does not divide the width {width}")

    @property
    def factor(self) -> int:
        """The downsampling factor of each side: 2^(levels - 1)."""
        return 2 ** (len(self.widths) - 1)


def _norm(config: AutoencoderConfig, width: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    # The fast variance E[x²] - E[x]² is inaccurate for groups of large mean, which occur here.
    return nnx.GroupNorm(
        width,
        config.num_groups,
        epsilon=1e-6,
        dtype=jnp.dtype(config.dtype),
        use_fast_variance=False,
        rngs=rngs,
    )


def _conv(
    config: AutoencoderConfig, inputs: int, outputs: int, size: int, rngs: nnx.Rngs, stride: int = 1
) -> nnx.Conv:
    # Downsampling pads only at the bottom and right.
    padding = (size // 2, size // 2) if stride == 1 else (0, 1)
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=(padding, padding),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


class ResBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, h, w, inputs) → (B, h, w, outputs)."""

    def __init__(self, config: AutoencoderConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = _norm(config, inputs, rngs)
        self.conv1 = _conv(config, inputs, outputs, 3, rngs)
        self.norm2 = _norm(config, outputs, rngs)
        self.conv2 = _conv(config, outputs, outputs, 3, rngs)
        self.shortcut = _conv(config, inputs, outputs, 1, rngs) if inputs != outputs else None

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        h_BHWD = self.conv1(nnx.silu(self.norm1(x_BHWD)))
        h_BHWD = self.conv2(nnx.silu(self.norm2(h_BHWD)))
        return h_BHWD + (x_BHWD if self.shortcut is None else self.shortcut(x_BHWD))


class AttentionBlock(nnx.Module):
    """x + single-head self-attention over pixels: (B, h, w, D) → (B, h, w, D)."""

    def __init__(self, config: AutoencoderConfig, width: int, *, rngs: nnx.Rngs):
        options = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
        self.norm = _norm(config, width, rngs)
        self.q = nnx.Linear(width, width, **options)
        self.k = nnx.Linear(width, width, **options)
        self.v = nnx.Linear(width, width, **options)
        self.out = nnx.Linear(width, width, **options)

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        B, H, W, D = x_BHWD.shape
        h_BN1D = self.norm(x_BHWD).reshape(B, H * W, 1, D)
        h_BN1D = attention(self.q(h_BN1D), self.k(h_BN1D), self.v(h_BN1D))
        return x_BHWD + self.out(h_BN1D).reshape(B, H, W, D)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        width = config.widths[-1]
        self.block1 = ResBlock(config, width, width, rngs=rngs)
        self.attention = AttentionBlock(config, width, rngs=rngs) if config.mid_attention else None
        self.block2 = ResBlock(config, width, width, rngs=rngs)

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        x_BHWD = self.block1(x_BHWD)
        if self.attention is not None:
            x_BHWD = self.attention(x_BHWD)
        return self.block2(x_BHWD)


class ResolutionLevel(nnx.Module):
    """Residual blocks at one resolution, then a resampling by 2."""

    def __init__(
        self,
        config: AutoencoderConfig,
        inputs: int,
        width: int,
        *,
        num_blocks: int,
        resample: Literal["none", "down", "up"],
        rngs: nnx.Rngs,
    ):
        sizes = [inputs] + [width] * num_blocks
        self.blocks = nnx.List(
            ResBlock(config, a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)
        )
        self.kind = resample
        stride = 2 if resample == "down" else 1
        conv = None if resample == "none" else _conv(config, width, width, 3, rngs, stride)
        self.resample = conv

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        for block in self.blocks:
            x_BHWD = block(x_BHWD)
        if self.kind == "up":  # nearest neighbours
            x_BHWD = x_BHWD.repeat(2, axis=1).repeat(2, axis=2)
        return x_BHWD if self.resample is None else self.resample(x_BHWD)


class KLEncoder(nnx.Module):
    """(B, H, W, image channels) → (B, H/f, W/f, 2C)."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = _conv(config, config.image_channels, widths[0], 3, rngs)
        self.levels = nnx.List(
            ResolutionLevel(
                config,
                widths[max(i - 1, 0)],
                width,
                num_blocks=config.num_blocks,
                resample="none" if i == last else "down",
                rngs=rngs,
            )
            for i, width in enumerate(widths)
        )
        self.mid = MidBlock(config, rngs=rngs)
        self.norm_out = _norm(config, widths[-1], rngs)
        self.conv_out = _conv(config, widths[-1], 2 * config.latent_channels, 3, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWD = self.conv_in(x_BHWC)
        for level in self.levels:
            x_BHWD = level(x_BHWD)
        return self.conv_out(nnx.silu(self.norm_out(self.mid(x_BHWD))))


class KLDecoder(nnx.Module):
    """(B, h, w, C) → (B, fh, fw, image channels). `levels` are in order of execution."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.conv_in = _conv(config, config.latent_channels, widths[0], 3, rngs)
        self.mid = MidBlock(config, rngs=rngs)
        self.levels = nnx.List(
            ResolutionLevel(
                config,
                widths[max(i - 1, 0)],
                width,
                num_blocks=config.num_blocks + 1,
                resample="none" if i == last else "up",
                rngs=rngs,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(config, widths[-1], rngs)
        self.conv_out = _conv(config, widths[-1], config.image_channels, 3, rngs)

    def __call__(self, z_BHWC: jax.Array) -> jax.Array:
        x_BHWD = self.mid(self.conv_in(z_BHWC))
        for level in self.levels:
            x_BHWD = level(x_BHWD)
        return self.conv_out(nnx.silu(self.norm_out(x_BHWD)))


class KLNetwork(nnx.Module):
    """Encoder, two 1×1 convolutions, decoder."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        C, self.config = config.latent_channels, config
        self.encoder = KLEncoder(config, rngs=rngs)
        self.quant_conv = _conv(config, 2 * C, 2 * C, 1, rngs) if config.quant_conv else None
        self.post_quant_conv = _conv(config, C, C, 1, rngs) if config.post_quant_conv else None
        self.decoder = KLDecoder(config, rngs=rngs)

    def encode(self, x_BHWC: jax.Array) -> jax.Array:
        m_BHWC = self.encoder(x_BHWC)
        m_BHWC = m_BHWC if self.quant_conv is None else self.quant_conv(m_BHWC)
        m_BHWC = m_BHWC.astype(jnp.float32)
        zeros = (0.0,) * self.config.latent_channels
        if mean := self.config.latent_mean:
            m_BHWC -= np.float32([*mean, *zeros])
        if std := self.config.latent_std:
            m_BHWC -= np.float32([*zeros, *(2 * np.log(std))])
            m_BHWC /= np.float32([*std, *np.ones(len(std))])
        return m_BHWC

    def decode(self, z_BHWC: jax.Array) -> jax.Array:
        if std := self.config.latent_std:
            z_BHWC = z_BHWC * np.float32(std)
        if mean := self.config.latent_mean:
            z_BHWC = z_BHWC + np.float32(mean)
        z_BHWC = z_BHWC.astype(jnp.dtype(self.config.dtype))
        if self.post_quant_conv is not None:
            z_BHWC = self.post_quant_conv(z_BHWC)
        return self.decoder(z_BHWC)


class Autoencoder(PureNetwork):
    """An autoencoder as pure functions: `init`, `encode`, `decode`.

    Attributes:
      config: its `AutoencoderConfig`.
      abstract_params: the shapes and dtypes of the parameters.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config, functools.partial(KLNetwork, config))

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(H, W, image channels) → (h, w, C).

        Raises:
          UvitError: on another number of channels, or sides that `config.factor` does not divide.
        """
        height, width, channels = image_shape
        f = self.config.factor
        if channels != self.config.image_channels:
            raise UvitError(
                f"the autoencoder takes images of {self.config.image_channels} channels, "
                f"not {channels}"
            )
        if height % f or width % f:
            raise UvitError(
                f"the autoencoder takes sides that are multiples of {f}, not {height}×{width}"
            )
        return height // f, width // f, self.config.latent_channels

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """Encodes images to the moments of their latents. Pure.

        Args:
          params: as `init` returns them.
          images: (B, H, W, image channels) in [-1, 1], H and W multiples of `config.factor`.

        Returns:
          float32 (B, H/f, W/f, 2C): means, then log-variances, of latents with the config's mean
          and standard deviation taken out; neither clamped nor scaled.

        Raises:
          UvitError: on another shape.
        """
        self.latent_shape(images.shape[1:])
        x_BHWC = images.astype(jnp.dtype(self.config.dtype))
        return nnx.merge(self._graph, params).encode(x_BHWC)

    def decode(self, params: Params, latents: jax.Array, *, scale: float = 1.0) -> jax.Array:
        """Decodes latents to images. Pure.

        Args:
          params: as `init` returns them.
          latents: (B, h, w, C), samples of the moments times `scale`.
          scale: the latents are divided by it.

        Returns:
          float32 (B, fh, fw, image channels), roughly in [-1, 1], not clipped.

        Raises:
          UvitError: on another number of channels.
        """
        if latents.shape[-1] != self.config.latent_channels:
            raise UvitError(
                f"the autoencoder's latents have {self.config.latent_channels} channels, "
                f"these have {latents.shape[-1]}"
            )
        return nnx.merge(self._graph, params).decode(latents / scale).astype(jnp.float32)

    def check_latents(self, shape: tuple[int, ...], name: str) -> None:
        """Raises UvitError if latents (h, w, C) of the segment `name` have other channels."""
        if shape[-1] != self.config.latent_channels:
            raise UvitError(
                f"the autoencoder's latents have {self.config.latent_channels} channels, but the "
                f"model's segment {name!r} is {shape}; pass the autoencoder of these latents"
            )

    @functools.partial(jax.jit, static_argnums=0)
    def _encode(self, params: Params, images: jax.Array) -> jax.Array:
        return self.encode(params, images)

    @functools.partial(jax.jit, static_argnums=0)
    def _decode(self, params: Params, latents: jax.Array, scale: jax.Array) -> jax.Array:
        return self.decode(params, latents, scale=scale)


def build_autoencoder(config: Mapping[str, Any] | AutoencoderConfig | None = None) -> Autoencoder:
    """Builds the autoencoder of a config; None is Stable Diffusion's.

    Raises:
      UvitError: on an unknown key or impossible value, naming the key.
    """
    if not isinstance(config, AutoencoderConfig):
        config = parse(AutoencoderConfig, config or {}, "autoencoder")
    return _built(config)


# Cached, with its compiled functions: it is pure.
_built = functools.lru_cache(32)(Autoencoder)


def sample_moments(key: jax.Array, moments: jax.Array, *, scale: float = SCALE) -> jax.Array:
    """Samples latents: (mean + exp(logvar / 2) eps) · scale.

    Args:
      key: a typed PRNG key. moments: (B, h, w, 2C), as `encode` returns them.

    Returns:
      float32 (B, h, w, C), log-variances clamped to `LOGVAR_RANGE`.
    """
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    eps = jax.random.normal(key, mean.shape)
    return (mean + jnp.exp(jnp.clip(logvar, *LOGVAR_RANGE) / 2) * eps) * scale


def encode_in_batches(
    autoencoder: Autoencoder, params: Params, images: np.ndarray, *, batch_size: int = 8
) -> np.ndarray:
    """`encode`, `batch_size` images at a time, compiled once.

    Args:
      images: float (B, H, W, image channels) in [-1, 1].

    Returns:
      numpy float32 (B, h, w, 2C), means and log-variances.

    Raises:
      UvitError: without images, or if batch_size is below 1.
    """
    return _in_batches(lambda x: autoencoder._encode(params, x), images, batch_size)


def decode_in_batches(
    autoencoder: Autoencoder,
    params: Params,
    latents: np.ndarray,
    *,
    scale: float = SCALE,
    batch_size: int = 8,
) -> np.ndarray:
    """`decode`, `batch_size` images at a time, compiled once.

    Args:
      latents: (B, h, w, C). scale: the latents are divided by it.

    Returns:
      numpy float32 (B, fh, fw, image channels), roughly in [-1, 1].

    Raises:
      UvitError: without latents, on another number of channels, or if batch_size is below 1.
    """
    return _in_batches(lambda z: autoencoder._decode(params, z, scale), latents, batch_size)


def decode_in_parts(
    autoencoder: Autoencoder,
    params: Params,
    latents: jax.Array,
    *,
    scale: float,
    shards: int = 1,
    at_once: int = 8,
) -> jax.Array:
    """`decode` under jit in several parts, to bound memory.

    Args:
      latents: (B, h, w, C), possibly sharded over `shards` devices, as then are the images.
      at_once: maximum number of images per device and part.
    """
    rows = len(latents) // shards if len(latents) % shards == 0 else len(latents)
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows <= n * at_once)
    # Part i takes every `parts`-th row, so that rows stay on their devices.
    cut = latents.reshape(-1, parts, *latents.shape[1:]).swapaxes(0, 1)
    images = jax.lax.map(
        lambda z: constrain_batch(autoencoder.decode(params, constrain_batch(z), scale=scale)), cut
    )
    return images.swapaxes(0, 1).reshape(len(latents), *images.shape[2:])


def _in_batches(function, inputs, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    if not len(inputs):
        raise UvitError("nothing to encode or decode: the batch is empty")
    inputs = np.asarray(inputs)
    outputs = []
    for start in range(0, len(inputs), batch_size):
        # Padded to full batches: one compilation.
        rows = np.arange(start, start + batch_size) % len(inputs)
        outputs.append(jax.device_get(function(inputs[rows])))
    return np.concatenate(outputs)[: len(inputs)]
