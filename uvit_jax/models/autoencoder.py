"""Stable Diffusion's KL autoencoder: pictures to latents and back, as pure functions.

    autoencoder, params = load_autoencoder("vae.safetensors")  # of interop.autoencoder
    moments = autoencoder.encode(params, images)         # (B, H/8, W/8, 2C): means, log-variances
    latents = sample_moments(key, moments, scale=SCALE)  # (B, H/8, W/8, C), what is denoised
    images = decode_in_batches(autoencoder, params, latents, scale=SCALE)

Source: Esser et al., "Taming Transformers" (2021); Rombach et al., "High-Resolution Image Synthesis
with Latent Diffusion Models" (2022). The default is the network of Stable Diffusion 1 and 2, 83.65M
parameters, in whose latents U-ViT, DiT and UniDiffuser work.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.config import parse
from uvit_jax.errors import UvitError
from uvit_jax.models.autoencoder_layers import AutoencoderConfig, Network
from uvit_jax.models.model import Params
from uvit_jax.parallel.sharding import constrain_batch

SCALE = 0.18215
"""About one over the latents' standard deviation; the published COCO models have 0.23010."""

LOGVAR_RANGE = (-30.0, 20.0)
"""What log-variances are clamped to before they are used."""


class Autoencoder:
    """An autoencoder as pure functions: `init`, `encode`, `decode`.

    Attributes:
      config: the `AutoencoderConfig` it was built from.
      abstract_params: the parameters' shapes and dtypes, with no arrays behind them.
    """

    def __init__(self, config: AutoencoderConfig):
        self.config = config
        abstract = nnx.eval_shape(lambda: Network(config, rngs=nnx.Rngs(0)))
        self._graph, state = nnx.split(abstract)
        self.abstract_params: Params = nnx.to_pure_dict(state)

    def __repr__(self) -> str:
        return f"Autoencoder({self.config}, {self.num_params / 1e6:.2f}M parameters)"

    @property
    def num_params(self) -> int:
        """How many trained numbers it has."""
        return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(self.abstract_params))

    @functools.partial(jax.jit, static_argnums=0)
    def _init(self, key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(Network(self.config, rngs=nnx.Rngs(key)))[1])

    def init(self, key: jax.Array) -> Params:
        """Random parameters, a nested dict of float32 arrays. `key`: a typed PRNG key."""
        return self._init(key)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(H, W, image channels) → (h, w, C).

        Raises:
          UvitError: if pictures of this shape cannot be encoded.
        """
        height, width, channels = image_shape
        f = self.config.factor
        if channels != self.config.image_channels:
            raise UvitError(
                f"the autoencoder takes pictures of {self.config.image_channels} channels, "
                f"not {channels}"
            )
        if height % f or width % f:
            raise UvitError(f"the autoencoder takes sides that {f} divides, not {height}×{width}")
        return height // f, width // f, self.config.latent_channels

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """Pictures to the moments of their latents. Pure.

        Args:
          params: as `init` gives them.
          images: (B, H, W, image channels) in [-1, 1], H and W multiples of `config.factor`.

        Returns:
          float32 (B, H/f, W/f, 2C): means, then log-variances as the network gives them, neither
          clamped nor scaled.

        Raises:
          UvitError: on another shape.
        """
        self.latent_shape(images.shape[1:])
        x_BHWC = images.astype(jnp.dtype(self.config.dtype))
        return nnx.merge(self._graph, params).encode(x_BHWC).astype(jnp.float32)

    def decode(self, params: Params, latents: jax.Array, *, scale: float = 1.0) -> jax.Array:
        """Latents to pictures. Pure.

        Args:
          params: as `init` gives them.
          latents: (B, h, w, C), a sample of the moments times `scale`.
          scale: what the latents were multiplied by.

        Returns:
          float32 (B, fh, fw, image channels), about in [-1, 1] and not clipped.

        Raises:
          UvitError: on another number of channels.
        """
        if latents.shape[-1] != self.config.latent_channels:
            raise UvitError(
                f"the autoencoder's latents have {self.config.latent_channels} channels, "
                f"these have {latents.shape[-1]}"
            )
        z_BHWC = (latents / scale).astype(jnp.dtype(self.config.dtype))
        return nnx.merge(self._graph, params).decode(z_BHWC).astype(jnp.float32)

    def check_latents(self, shape: tuple[int, ...], name: str) -> None:
        """Raises UvitError if a model's latents (h, w, C), the segment `name`, are not its own."""
        if shape[-1] != self.config.latent_channels:
            raise UvitError(
                f"the autoencoder's latents have {self.config.latent_channels} channels, and the "
                f"model's segment {name!r} is {shape}; give the one that its latents are of"
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
      UvitError: on an unknown key or an autoencoder that cannot be, naming the key.
    """
    if not isinstance(config, AutoencoderConfig):
        config = parse(AutoencoderConfig, config or {}, "autoencoder")
    return _built(config)


# It is pure: who asks for the same one again gets it, with all that was compiled for it.
_built = functools.lru_cache(32)(Autoencoder)


def sample_moments(key: jax.Array, moments: jax.Array, *, scale: float = SCALE) -> jax.Array:
    """A fresh sample (mean + exp(logvar / 2) eps) · scale of the latents.

    Args:
      key: a typed PRNG key. moments: (B, h, w, 2C), as `encode` gives them.

    Returns:
      float32 (B, h, w, C), log-variances clamped to `LOGVAR_RANGE`.
    """
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    eps = jax.random.normal(key, mean.shape)
    return (mean + jnp.exp(jnp.clip(logvar, *LOGVAR_RANGE) / 2) * eps) * scale


def encode_in_batches(
    autoencoder: Autoencoder, params: Params, images: np.ndarray, *, batch_size: int = 8
) -> np.ndarray:
    """`encode`, `batch_size` pictures at a time, compiled once.

    Args:
      images: float (B, H, W, image channels) in [-1, 1].

    Returns:
      numpy float32 (B, h, w, 2C), the moments: means and log-variances.

    Raises:
      UvitError: if there are no images, or batch_size is below 1.
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
    """`decode`, `batch_size` pictures at a time, so that memory suffices for any number of them.

    Args:
      latents: (B, h, w, C). scale: what they were multiplied by.

    Returns:
      numpy float32 (B, fh, fw, image channels), about in [-1, 1].

    Raises:
      UvitError: if there are no latents, they have another number of channels, or batch_size is
        below 1.
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
    """`decode`, to be traced, some pictures at a time, so that memory suffices.

    Args:
      latents: (B, h, w, C), which may be spread over `shards` devices; the pictures then are, too.
      at_once: the most pictures a device decodes at once.
    """
    rows = len(latents) // shards if len(latents) % shards == 0 else len(latents)
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows <= n * at_once)
    # Part i takes every so-many-th row, so each device keeps to its own.
    cut = latents.reshape(-1, parts, *latents.shape[1:]).swapaxes(0, 1)
    pictures = jax.lax.map(
        lambda z: constrain_batch(autoencoder.decode(params, constrain_batch(z), scale=scale)), cut
    )
    return pictures.swapaxes(0, 1).reshape(len(latents), *pictures.shape[2:])


def _in_batches(function, inputs, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise UvitError(f"batch_size must be at least 1, got {batch_size}")
    if not len(inputs):
        raise UvitError("there is nothing to encode or decode")
    inputs = np.asarray(inputs)
    outputs = []
    for start in range(0, len(inputs), batch_size):
        # The last batch is filled up, so that there is one shape to compile for.
        rows = np.arange(start, start + batch_size) % len(inputs)
        outputs.append(jax.device_get(function(inputs[rows])))
    return np.concatenate(outputs)[: len(inputs)]
