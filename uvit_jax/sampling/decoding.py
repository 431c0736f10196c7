"""From the samples of a latent model to images.

decode = decoder(model.layout, config)                  # of a SampleConfig; None if it names none
samples = decoded(model.layout, samples, decode)        # {"image": …, "image_latents": …}
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from uvit_jax.autoencoders.causal_video import (
    VideoAutoencoder,
    decode_in_chunks,
    encode_in_chunks,
)
from uvit_jax.autoencoders.image_autoencoder import FrameAutoencoder, load_image_autoencoder
from uvit_jax.autoencoders.kl import (
    Autoencoder,
    decode_in_batches,
    decode_in_parts,
    encode_in_batches,
)
from uvit_jax.autoencoders.tiles import tiled
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Params
from uvit_jax.sampling.sampler import SampleConfig
from uvit_jax.tokens.layout import Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """An autoencoder with its parameters, and the factor that latents were multiplied by.

    Latents of clips (B, t, h, w, C) need one of videos.

    Attributes:
      tile: rows and columns of latents that are decoded at once (see tiles.py); 0 for all.
    """

    autoencoder: Autoencoder
    params: Params
    scale: float
    tile: int = 0

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, h, w, C) → images float32 (B, H, W, image channels), in batches; clips
        (B, t, h, w, C) → (B, T, H, W, image channels), in chunks of their frames."""
        if latents.ndim == 5:
            parts = [latents[i : i + 1] / self.scale for i in range(len(latents))]
            options = dict(chunk=4, tile=self.tile)
            return np.concatenate(
                [decode_in_chunks(self._video, self.params, z, **options) for z in parts]
            )

        def decode(latents: np.ndarray) -> np.ndarray:
            return decode_in_batches(self.autoencoder, self.params, latents, scale=self.scale)

        return tiled(decode, latents, self.tile)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images (B, H, W, image channels) in [-1, 1] → the mean latents, in batches; clips
        (B, T, H, W, image channels) → (B, t, h, w, C), in chunks."""
        if images.ndim == 5:
            moments = encode_in_chunks(self._video, self.params, images, chunk=4)
        else:
            moments = encode_in_batches(self.autoencoder, self.params, images)
        return np.split(moments, 2, axis=-1)[0] * self.scale

    def traced(self, params: Params, latents: jax.Array, *, shards: int = 1) -> jax.Array:
        """The same inside a jitted function, with `self.params` as an argument; latents and images
        may be sharded over `shards` devices, those of clips are not."""
        if latents.ndim == 5:
            return jax.lax.map(
                lambda z: self._video.decode(params, z[None] / self.scale)[0], latents
            )
        return decode_in_parts(self.autoencoder, params, latents, scale=self.scale, shards=shards)

    @property
    def _video(self) -> VideoAutoencoder:
        return self.autoencoder.video


def decoder(layout: Layout, config: SampleConfig) -> Decoder | None:
    """The decoder that a config names, or None if it names none.

    Raises:
      UvitError: if the file is missing or not an autoencoder's, or does not fit the model's
        latents.
    """
    if not config.autoencoder:
        return None
    autoencoder, params = load_image_autoencoder(config.autoencoder)
    for segment in layout.noisy_images:
        autoencoder.check_latents(segment.shape, segment.name)
        if segment.is_video and not isinstance(autoencoder, FrameAutoencoder):
            raise UvitError(
                f"segment {segment.name!r} is a clip, and {config.autoencoder} is not a video "
                "autoencoder; pass the one of these latents"
            )
    return Decoder(autoencoder, params, config.latent_scale, config.decode_tile)


def decoded(
    layout: Layout,
    samples: Mapping[str, np.ndarray],
    decode: Decoder | None,
    *,
    latents: bool = False,
) -> dict[str, np.ndarray]:
    """Samples by segment, with images under the segment's name and latents as NAME_latents.

    Args:
      samples: by noisy segment, images as (B, h, w, C); those whose latents are there as well, as
        NAME_latents, are decoded already. decode: from `decoder`; None leaves latents
        undecoded.
      latents: whether the model was trained on latents (`RunConfig.of_latents`); those of other
        than 1 and 3 channels are recognised without.

    Returns:
      Images float32 (B, H, W, 1 or 3), about in [-1, 1]; latents and other segments unchanged.
    """
    images = dict(samples)
    for segment in layout.noisy_images:
        name = segment.name
        if name not in samples or f"{name}_latents" in samples:
            continue
        if decode is not None:
            images[f"{name}_latents"], images[name] = samples[name], decode(samples[name])
        elif latents or segment.is_latent:
            images[f"{name}_latents"] = images.pop(name)
    return images
