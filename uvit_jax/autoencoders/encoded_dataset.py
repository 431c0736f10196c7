"""Data sets in the latents of a frozen autoencoder, encoded as batches are read.

    data = open_data(config)      # of a `DataConfig`; encodes if it names an autoencoder

For data that are rendered or augmented, and so have no end that could be encoded ahead. A data set
of files is better encoded once, by `experiments.encode_latents`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from uvit_jax.autoencoders.causal_video import VideoAutoencoder, encode_in_chunks
from uvit_jax.autoencoders.image_autoencoder import FrameAutoencoder, load_image_autoencoder
from uvit_jax.autoencoders.kl import Autoencoder, encode_in_batches
from uvit_jax.data import pipeline
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.video_frames import frame_shapes, frame_slices, joined_frames
from uvit_jax.errors import UvitError
from uvit_jax.models import cost
from uvit_jax.models.pure_network import Params


def open_data(config: DataConfig) -> Dataset:
    """A data set as a model takes it: `pipeline.dataset`, in latents if the config names an
    autoencoder.

    Raises:
      UvitError: as these, see `EncodedDataset`.
    """
    data = pipeline.dataset(config)
    if not config.autoencoder:
        return data
    try:
        return EncodedDataset(data, *load_image_autoencoder(config.autoencoder))
    except UvitError as error:
        raise UvitError(f"config.data.autoencoder: {error}") from None


class EncodedDataset(Dataset):
    """A data set whose images, references and clips are the means of their latents, times
    `config.latent_scale`.

    A clip of 1 + f·k frames is 1 + k latent frames, of which `first` has those of its
    `first_frames`, and `camera` the path at the last frame of each.

    Args:
      data: of pixels. autoencoder, params: of images, or of videos (`FrameAutoencoder`).

    Raises:
      UvitError: if images or clips do not fit the autoencoder, or are latents already.
    """

    def __init__(self, data: Dataset, autoencoder: Autoencoder, params: Params):
        config = data.config
        if config.name == "latents":
            raise UvitError("name='latents' is encoded already; set autoencoder to ''")
        if config.stills:
            raise UvitError(
                "stills among clips are not encoded as batches are read: set stills=False"
            )
        if config.processes:
            raise UvitError(
                f"encoding as batches are read needs processes=0, got {config.processes}; raise "
                "workers instead"
            )
        self._pixels, self._autoencoder = data, autoencoder
        self._params = jax.device_put(params)
        self.features = data.features
        shapes = [autoencoder.latent_shape((*size, config.channels)) for size in data.sizes]
        self.image_shape = shapes[0]
        self._latent_config = config
        if config.frames:
            self._latent_config = _latent_frames(config, self._video)
            self.segment_shapes = frame_shapes(self._latent_config, self.image_shape)
        super().__init__(config, data.source, data.tokenizer)
        self.sizes = tuple(shape[:2] for shape in shapes)

    @property
    def _video(self) -> VideoAutoencoder:
        if not isinstance(self._autoencoder, FrameAutoencoder):
            raise UvitError("clips are encoded by a causal video autoencoder, and this is not one")
        return self._autoencoder.video

    @property
    def macs(self) -> int:
        """Multiply-accumulates of encoding one example's images and clips."""
        total = 0
        batch = self._pixels.batch([0])
        for name in _images(batch):
            total += self._cost(self._autoencoder, batch[name].shape[1:])
        if self.config.frames:
            total += self._cost(self._video, joined_frames(batch).shape[1:])
        return total

    def _cost(self, autoencoder: Autoencoder | VideoAutoencoder, shape: tuple[int, ...]) -> int:
        example = jax.ShapeDtypeStruct((1, *shape), np.float32)
        program = jax.make_jaxpr(autoencoder.encode)(autoencoder.abstract_params, example)
        return cost.count(program.jaxpr).total

    def one_size(self, size: tuple[int, int]) -> "EncodedDataset":
        if self.buckets is None:
            return self
        pixels = self._pixels.one_size(self._pixels.sizes[self.sizes.index(size)])
        return EncodedDataset(pixels, self._autoencoder, self._params)

    def shapes_at(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        shape = (*size, self.image_shape[-1])
        return frame_shapes(self._latent_config, shape) if self.config.frames else {"image": shape}

    def with_tokenizer(self, tokenizer: Tokenizer | None) -> "EncodedDataset":
        pixels = self._pixels.with_tokenizer(tokenizer)
        return EncodedDataset(pixels, self._autoencoder, self._params)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        row = {name: np.asarray(value)[None] for name, value in self._pixels.decode(record).items()}
        return {name: value[0] for name, value in self._encoded(row).items()}

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        return self._encoded(self._pixels.batch(indices, bits))

    def _encoded(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = dict(batch)
        if images := _images(batch):
            latents = self._means(np.concatenate([batch[name] for name in images]))
            batch |= zip(images, np.split(latents, len(images)), strict=True)
        if self.config.frames:
            clips = joined_frames(batch)
            # In two chunks: the first frame, and the others.
            moments = encode_in_chunks(self._video, self._params, clips, chunk=clips.shape[1])
            slices = frame_slices(self._latent_config)
            batch |= {name: self._scaled(moments[:, part]) for name, part in slices.items()}
            if "camera" in batch:
                batch["camera"] = batch["camera"][:, :: self._video.config.frame_factor]
        return batch

    def _means(self, images: np.ndarray) -> np.ndarray:
        return self._scaled(encode_in_batches(self._autoencoder, self._params, images))

    def _scaled(self, moments: np.ndarray) -> np.ndarray:
        return moments[..., : self._autoencoder.config.latent_channels] * np.float32(
            self.config.latent_scale
        )


def _images(batch: Mapping[str, np.ndarray]) -> list[str]:
    """The inputs that are images, (B, H, W, C)."""
    return [name for name, value in batch.items() if value.ndim == 4]


def _latent_frames(config: DataConfig, video: VideoAutoencoder) -> DataConfig:
    """The config whose frames are those of the clips' latents."""
    if config.last_frames:
        raise UvitError(
            "the latents of a clip's last frames depend on the frames before them, so that they "
            "cannot be given: set last_frames to 0"
        )
    f = video.config.frame_factor
    side = video.config.factor
    frames = video.latent_shape((config.frames, side, side, video.config.image_channels))[0]
    first = config.first_frames
    if first and (first - 1) % f:
        raise UvitError(f"first_frames={first} must be 0 or 1 + {f}k, whole latent frames")
    first = 1 + (first - 1) // f if first else 0
    return dataclasses.replace(config, frames=frames, first_frames=first)
