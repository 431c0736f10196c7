"""From the samples of a latent model to pictures.

decode = decoder(model.layout, config)                  # of a SampleConfig; None if it has none
samples = pictures(model.layout, samples, decode)       # {"image": …, "image_latents": …}
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from uvit_jax.autoencoders.kl import (
    Autoencoder,
    decode_in_batches,
    decode_in_parts,
    encode_in_batches,
)
from uvit_jax.autoencoders.kl_weights import load_autoencoder
from uvit_jax.models.model import Params
from uvit_jax.sampling.sampler import SampleConfig
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.segment import Segment


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """An autoencoder with its parameters, and what the latents were multiplied by."""

    autoencoder: Autoencoder
    params: Params
    scale: float

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, h, w, C) to pictures float32 (B, H, W, image channels), in batches."""
        return decode_in_batches(self.autoencoder, self.params, latents, scale=self.scale)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Pictures (B, H, W, image channels) in [-1, 1] to their mean latents, in batches."""
        moments = encode_in_batches(self.autoencoder, self.params, images)
        return np.split(moments, 2, axis=-1)[0] * self.scale

    def traced(self, params: Params, latents: jax.Array, *, shards: int = 1) -> jax.Array:
        """The same inside a jitted function, to which `self.params` are given as an argument: the
        latents and the pictures may be spread over `shards` devices."""
        return decode_in_parts(self.autoencoder, params, latents, scale=self.scale, shards=shards)


def decoder(layout: Layout, config: SampleConfig) -> Decoder | None:
    """The decoder that a config names, or None if it names none.

    Raises:
      UvitError: if the file is missing or no autoencoder, or does not fit the model's latents.
    """
    if not config.autoencoder:
        return None
    autoencoder, params = load_autoencoder(config.autoencoder)
    for segment in _images(layout):
        autoencoder.check_latents(segment.shape, segment.name)
    return Decoder(autoencoder, params, config.latent_scale)


def is_latent(segment: Segment) -> bool:
    """Whether an image segment can be no picture as it is: neither colour nor grey."""
    return segment.shape[-1] not in (1, 3)


def pictures(
    layout: Layout, samples: Mapping[str, np.ndarray], decode: Decoder | None
) -> dict[str, np.ndarray]:
    """Samples by segment, with pictures under the segment's name and latents as NAME_latents.

    Args:
      samples: by noisy segment, (B, h, w, C) of images. decode: as `decoder` makes it; None leaves
        latents undecoded.

    Returns:
      Pictures float32 (B, H, W, 1 or 3), about in [-1, 1]; latents and other segments as they are.
    """
    found = dict(samples)
    for segment in _images(layout):
        name = segment.name
        if decode is not None:
            found[f"{name}_latents"], found[name] = samples[name], decode(samples[name])
        elif is_latent(segment):
            found[f"{name}_latents"] = found.pop(name)
    return found


def _images(layout: Layout) -> list[Segment]:
    return [s for s in layout.noisy if s.modality == "image"]
