"""Latents of images or clips as a data source: stored moments, of which a step draws new samples.

    config.data = dict(name="latents", path="latents/imagenet256", labels="label", flip=True)

`experiments.encode_latents` writes the folder; `latent_shards.py` defines its format. The noise of
a row's sample follows from the same 64 random bits that decide on its mirroring.
"""

from collections.abc import Sequence

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.image_feature_shards import open_image_features
from uvit_jax.data.latent_shards import LatentIndex, LatentReader
from uvit_jax.data.shards import open_index
from uvit_jax.data.sources.source import Source
from uvit_jax.data.text_shards import open_text
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.video_frames import frame_shapes, frame_slices, split_frames
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path

LOGVAR_RANGE = (-30.0, 20.0)
"""Log-variances are clamped to this range before they are used, as in Stable Diffusion."""


class LatentDataset(Dataset):
    """A folder of latents, opened.

    Attributes:
      index: the folder's `LatentIndex`.
      image_shape: (h, w, C) of a latent.

    Raises:
      UvitError: if `config.features` or `image_features` is set and the folder has none.
    """

    def __init__(self, config: DataConfig, source: "LatentSource", tokenizer: Tokenizer | None):
        self.index, self.image_shape = source.index, source.index.shape[-3:]
        self._clips = self._clip_config(config)
        if self._clips is not None:
            self.segment_shapes = frame_shapes(self._clips, self.image_shape)
        self._texts = open_text(source.folder, source.index) if config.features else None
        self._images = (
            open_image_features(source.folder, source.index) if config.image_features else None
        )
        self.features = None if self._texts is None else self._texts.null
        super().__init__(config, source, tokenizer)

    def _clip_config(self, config: DataConfig) -> DataConfig | None:
        """The config with the number of latent frames; None for images.

        Raises:
          UvitError: if no frames are left beside the first ones.
        """
        frames = 0 if len(self.index.shape) == 3 else self.index.shape[0]
        if config.first_frames >= max(frames, 1):
            what = f"clips of {frames} latent frames" if frames else "images"
            raise UvitError(
                f"the latents in {config.path} are of {what}, and config.data.first_frames is "
                f"{config.first_frames}; set it to fewer"
            )
        if not frames:
            return None
        return DataConfig(name="clips", path="-", frames=frames, first_frames=config.first_frames)

    def feature(self, example: int, number: int = 0) -> np.ndarray:
        """The features of one of an example's captions, float32 (N, F).

        Args:
          number: of the caption, modulo their count; the empty text's features if there are none.
        """
        return self._texts.features(example, number)

    def caption(self, example: int, number: int = 0) -> str:
        """The caption that `feature` returns the features of."""
        captions = self.source.captions_of(example)
        return captions[number % len(captions)] if captions else ""

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """A record as inputs of a model, without augmentation: the scaled mean of its latent.

        Returns:
          `image` float32 (h, w, C), or of clips `first` and `video` (t, h, w, C); `label` int32 ()
          and `text`, int32 (T,) or with features float32 (N, F), and `clip_image` float32 (1, E),
          if they are on.
        """
        C = self.image_shape[-1]
        mean = record["moments"][..., :C] * np.float32(self.index.scale)
        row = split_frames(self._clips, mean) if self._clips else {"image": mean}
        if self.config.labels:
            row["label"] = np.int32(self.label(record))
        if self.tokenizer is not None:
            row["text"] = self._encode_caption((record["captions"] or ("",))[0])
        if self._texts is not None:
            row["text"] = self.feature(record["example"])
        if self._images is not None:
            row["clip_image"] = self._images.features(record["example"])[None]
        return row

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The records of these indices as a batch of inputs, with samples of their latents.

        Args:
          indices: B of them.
          bits: 64 random bits per row, which decide on its noise, its mirroring (if `config.flip`)
            and its caption; None for the unmirrored means and first captions.

        Returns:
          `image` float32 (B, h, w, C), or of clips `first` and `video` (B, t, h, w, C):
          (mean + exp(logvar / 2) eps) · scale with log-variances clamped to `LOGVAR_RANGE`; `label`
          int32 (B,) and `text`, int32 (B, T) or with features float32 (B, N, F), and `clip_image`
          float32 (B, 1, E), if they are on.
        """
        B, size = len(indices), int(np.prod(self.index.shape))
        moments = np.empty((B, 2, size), np.float32)
        labels, texts, images = np.empty((B,), np.int32), [], []
        for row, example in enumerate(indices):
            row_bits = 0 if bits is None else bits[row]
            mirrored = self.config.flip and row_bits >> 63 == 1
            record = self.source.read(example, mirrored)
            labels[row], captions = self.source.unpack(record, moments[row])
            number = row_bits % 2**32
            if self.tokenizer is not None:
                known = self.source.parse_captions(captions, example) or ("",)
                texts.append(self._encode_caption(known[number % len(known)]))
            elif self._texts is not None:
                texts.append(self.feature(example, number))
            if self._images is not None:
                images.append(self._images.features(example, mirrored))
        samples = moments[:, 0] if bits is None else sample_moments(moments, bits)
        samples *= np.float32(self.index.scale)
        samples = samples.reshape(B, *self.index.shape)
        batch = {"image": samples}
        if self._clips:
            parts = frame_slices(self._clips).items()
            batch = {name: samples[:, frames] for name, frames in parts}
        if self.config.labels:
            for example in np.asarray(indices)[(labels < 0) | (labels >= self.num_classes)]:
                self.label(self.source[int(example)])  # raises
            batch["label"] = labels
        if texts:
            batch["text"] = np.stack(texts)
        if images:
            batch["clip_image"] = np.stack(images)[:, None]
        return batch


class LatentSource(LatentReader, Source):
    """The records of a folder of latents, see `LatentReader`.

    Raises:
      UvitError: if the folder is missing, incomplete or damaged, naming the command that writes it;
        or if it lacks what the config asks for.
    """

    label_names = ("label",)

    dataset_class = LatentDataset

    def __init__(self, config: DataConfig):
        folder = local_path(config.path)
        index = open_index(LatentIndex, folder)
        for missing, remedy in (
            (config.labels and not index.labels, "have no labels; leave labels empty"),
            (config.text and not index.captions, "have no captions; set text to False"),
            (config.flip and not index.mirrored, "lack mirrored copies (--mirror); set flip=False"),
        ):
            if missing:
                raise UvitError(f"the latents in {folder} {remedy}")
        super().__init__(folder, index)
        self.read(0)  # raises if records are smaller than the index says
        self.class_names = index.class_names if config.labels else ()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the images' captions, whose words the folder has stored."""
        return Tokenizer(self.index.words or ())


def sample_moments(moments: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """mean + exp(logvar / 2) eps, float32 (B, n); the noise eps of a row follows from its bits.

    Args:
      moments: float32 (B, 2, n), means and log-variances. The latter are overwritten.
      bits: 64 random bits per row.
    """
    mean, std = moments[:, 0], moments[:, 1]
    np.clip(std, *LOGVAR_RANGE, out=std)
    std *= np.float32(0.5)
    np.exp(std, out=std)
    eps = np.empty_like(mean)
    bit_generator = np.random.SFC64(0)
    generator = np.random.Generator(bit_generator)
    words = np.empty(4, np.uint64)
    state = {"bit_generator": "SFC64", "state": {"state": words}, "has_uint32": 0, "uinteger": 0}
    for row, row_bits in enumerate(bits):
        # Seeded as SFC64's author does, discarding the first twelve numbers. It is numpy's fastest
        # generator, and setting its state takes a tenth of the time of creating a new one.
        words[:3], words[3] = row_bits, 1
        bit_generator.state = state
        bit_generator.random_raw(12, output=False)
        generator.standard_normal(dtype=np.float32, out=eps[row])
    eps *= std
    eps += mean
    return eps
