"""The KL autoencoder's configuration and NNX modules; `autoencoder.py` makes them pure functions.

Names follow the roles of the parts, not any checkpoint's: `interop.autoencoder` knows theirs.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.config import DTYPES
from uvit_jax.parallel.attention import attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """An autoencoder; the defaults are Stable Diffusion's.

    Attributes:
      widths: channels at each level, from the pictures' resolution down; every level but the last
        ends in a downsampling by 2 (diffusers' `block_out_channels`).
      num_blocks: residual blocks a level of the encoder; the decoder has one more
        (`layers_per_block`).
      latent_channels: C. image_channels: 3, or 1 for grey.
      num_groups: of every GroupNorm, whose epsilon is 1e-6 (`norm_num_groups`).
      mid_attention: one-headed attention at the lowest resolution.
      quant_conv, post_quant_conv: a 1×1 convolution after the encoder, and before the decoder.
      dtype: of the computation. Statistics of norms and softmaxes, and the results, are float32.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    num_groups: int = 32
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        for key in ("num_blocks", "latent_channels", "image_channels", "num_groups"):
            if getattr(self, key) < 1:
                raise UvitError(f"{key} must be at least 1, got {getattr(self, key)}")
        if not self.widths or min(self.widths) < 1:
            raise UvitError(f"widths must be one or more positive numbers, got {self.widths}")
        for width in self.widths:
            if width % self.num_groups:
                raise UvitError(f"num_groups={self.num_groups} does not divide the width {width}")
        if self.dtype not in DTYPES:
            raise UvitError(f"unknown dtype {self.dtype!r}{nearest(self.dtype, DTYPES)}")

    @property
    def factor(self) -> int:
        """Pixels a latent pixel, along each side: 2^(levels - 1)."""
        return 2 ** (len(self.widths) - 1)


def _norm(config: AutoencoderConfig, width: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    # The fast variance E[x²] - E[x]² cancels where a group's mean is large, and here some are.
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
    # The downsampling pads below and on the right only.
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


class Block(nnx.Module):
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


class Attention(nnx.Module):
    """x + attention of all pixels with all, one head: (B, h, w, D) → (B, h, w, D)."""

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


class Mid(nnx.Module):
    """Block, attention, block, at the lowest resolution."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        width = config.widths[-1]
        self.block1 = Block(config, width, width, rngs=rngs)
        self.attention = Attention(config, width, rngs=rngs) if config.mid_attention else None
        self.block2 = Block(config, width, width, rngs=rngs)

    def __call__(self, x_BHWD: jax.Array) -> jax.Array:
        x_BHWD = self.block1(x_BHWD)
        if self.attention is not None:
            x_BHWD = self.attention(x_BHWD)
        return self.block2(x_BHWD)


class Level(nnx.Module):
    """Residual blocks at one resolution, then, if `resample` is not `none`, twice it or half."""

    def __init__(
        self,
        config: AutoencoderConfig,
        inputs: int,
        width: int,
        *,
        num_blocks: int,
        resample: str,
        rngs: nnx.Rngs,
    ):
        sizes = [inputs] + [width] * num_blocks
        self.blocks = nnx.List(Block(config, a, b, rngs=rngs) for a, b in itertools.pairwise(sizes))
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


class Encoder(nnx.Module):
    """(B, H, W, image channels) → (B, H/f, W/f, 2C)."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = _conv(config, config.image_channels, widths[0], 3, rngs)
        self.levels = nnx.List(
            Level(
                config,
                widths[max(i - 1, 0)],
                width,
                num_blocks=config.num_blocks,
                resample="none" if i == last else "down",
                rngs=rngs,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Mid(config, rngs=rngs)
        self.norm_out = _norm(config, widths[-1], rngs)
        self.conv_out = _conv(config, widths[-1], 2 * config.latent_channels, 3, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWD = self.conv_in(x_BHWC)
        for level in self.levels:
            x_BHWD = level(x_BHWD)
        return self.conv_out(nnx.silu(self.norm_out(self.mid(x_BHWD))))


class Decoder(nnx.Module):
    """(B, h, w, C) → (B, fh, fw, image channels). Levels stand in the order in which they run."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.conv_in = _conv(config, config.latent_channels, widths[0], 3, rngs)
        self.mid = Mid(config, rngs=rngs)
        self.levels = nnx.List(
            Level(
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


class Network(nnx.Module):
    """Encoder, the two 1×1 convolutions, decoder."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        C = config.latent_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = _conv(config, 2 * C, 2 * C, 1, rngs) if config.quant_conv else None
        self.post_quant_conv = _conv(config, C, C, 1, rngs) if config.post_quant_conv else None
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, x_BHWC: jax.Array) -> jax.Array:
        m_BHWC = self.encoder(x_BHWC)
        return m_BHWC if self.quant_conv is None else self.quant_conv(m_BHWC)

    def decode(self, z_BHWC: jax.Array) -> jax.Array:
        if self.post_quant_conv is not None:
            z_BHWC = self.post_quant_conv(z_BHWC)
        return self.decoder(z_BHWC)
