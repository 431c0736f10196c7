"""Any supported autoencoder as one of images: Stable Diffusion's, or a causal video autoencoder,
for which an image is a video of one frame.

    autoencoder, params = load_image_autoencoder("vae.safetensors")
    moments = autoencoder.encode(params, images)         # as `kl.Autoencoder` has them
"""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import safetensors

from uvit_jax.autoencoders.causal_video import VideoAutoencoder, VideoNetwork
from uvit_jax.autoencoders.causal_video_weights import (
    is_video_naming,
    load_video_autoencoder,
    naming_of,
)
from uvit_jax.autoencoders.kl import Autoencoder
from uvit_jax.autoencoders.kl_weights import load_autoencoder
from uvit_jax.errors import UvitError
from uvit_jax.interop import files
from uvit_jax.io import read_json
from uvit_jax.models.pure_network import Params, PureNetwork
from uvit_jax.paths import local_path


class FrameAutoencoder(Autoencoder):
    """A causal video autoencoder as one of images.

    Attributes:
      config: its `VideoAutoencoderConfig`. video: the `VideoAutoencoder`, of the same parameters.
    """

    def __init__(self, video: VideoAutoencoder):
        PureNetwork.__init__(self, video.config, functools.partial(VideoNetwork, video.config))
        self.video = video

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.video.latent_shape((1, *image_shape))[1:]

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        return self.video.encode(params, images[:, None])[:, 0]

    def decode(self, params: Params, latents: jax.Array, *, scale: float = 1.0) -> jax.Array:
        return self.video.decode(params, latents[:, None] / scale)[:, 0]


def load_image_autoencoder(
    path: str | os.PathLike, *, dtype: str = "float32", num_groups: int | None = None
) -> tuple[Autoencoder, Params]:
    """Loads an autoencoder: whatever `load_autoencoder` or `load_video_autoencoder` reads.

    Args:
      dtype: of the computation, float32 or bfloat16. num_groups: see `load_autoencoder`.

    Returns:
      `(autoencoder, params)`; a `FrameAutoencoder` if it is one of videos.

    Raises:
      UvitError: as these functions, or if `num_groups` is given for one of videos.
    """
    if not _is_video(local_path(path)):
        return load_autoencoder(path, dtype=dtype, num_groups=num_groups)
    if num_groups is not None:
        raise UvitError(f"{path} is a video autoencoder, without GroupNorms; drop num_groups")
    video, params = load_video_autoencoder(path, dtype=dtype)
    return frame_autoencoder(video), params


# Cached, with its compiled functions: it is pure.
frame_autoencoder = functools.lru_cache(32)(FrameAutoencoder)


def _is_video(path: Path) -> bool:
    """Whether a file or folder holds a causal video autoencoder; False if it cannot be read."""
    if path.is_dir():
        config: Any = path / "config.json"
        return config.is_file() and read_json(config).get("_class_name") == "AutoencoderKLWan"
    if path.suffix in (".pth", ".pt"):
        return path.is_file() and naming_of(files.read_tensors(path)) is not None
    if path.suffix != ".safetensors":
        return False
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            return is_video_naming(opened.keys())
    except (OSError, safetensors.SafetensorError):
        return False
