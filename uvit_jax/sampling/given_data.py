"""Prompts and image files as the given data of a mode, and generated texts as captions.

given = GivenData(model.layout, config, vocabulary, decode)  # of a SampleConfig with a mode
inputs, captions = given.inputs(files)                       # with the config's prompts
captions = given.captions(samples)                           # None without a decoder
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.data import image_decoding
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path
from uvit_jax.sampling.decoding import Decoder
from uvit_jax.sampling.modes import GIVEN, modalities
from uvit_jax.sampling.sampler import SampleConfig
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.segment import Segment


class GivenData:
    """The data that the mode of a config is given, from prompts and image files.

    Frozen encoders are loaded when they are needed: `config.text_encoder`, `image_encoder` and
    `caption_decoder`.

    Args:
      vocabulary: of the run: the tokenizer of a model whose texts are words.
      decode: of a model of latents, whose autoencoder also encodes images.

    Attributes:
      pixels: the images of `inputs` by segment, float32 (B, H, W, C), if there were any.

    Raises:
      UvitError: if the model does not support the mode, or a named encoder has no use in it.
    """

    def __init__(
        self,
        layout: Layout,
        config: SampleConfig,
        vocabulary: Vocabulary,
        decode: Decoder | None = None,
    ):
        self._layout, self._config, self._decode = layout, config, decode
        self._vocabulary = vocabulary
        self.pixels: dict[str, np.ndarray] = {}
        by_modality = modalities(layout, config.mode)
        self._segments = {
            name: [layout.by_name[segment] for segment in segments]
            for name, (_, segments) in by_modality.items()
        }
        self._check_encoders()

    @property
    def modality(self) -> str:
        """What the mode is given: `image`, `text`, or "" for nothing."""
        return GIVEN.get(self._config.mode, "")

    @property
    def generates_text(self) -> bool:
        """Whether the mode generates texts."""
        return self._config.mode not in ("text_to_image", "image")

    @property
    def of_words(self) -> bool:
        """Whether the model's texts are words of its vocabulary, not features of an encoder."""
        return self._segments["text"][0].kind == "codes"

    def inputs(self, files: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], list[str]]:
        """The given data of `config.count` samples by segment, and a caption of each: prompts or
        images in turn.

        Args:
          files: image files, or folders of them.

        Raises:
          UvitError: if the mode needs images or prompts and there are none, or takes none and there
            are some; or one of them cannot be read or encoded.
        """
        mode, count, prompts = self._config.mode, self._config.count, self._config.prompts
        if labels := self._config.labels:
            raise UvitError(f"mode={mode!r} is given no label; leave out --label={labels[0]}")
        for what, flag, given in (("text", "prompt", prompts), ("image", "image", files)):
            if given and self.modality != what:
                takes = f"an {self.modality}" if self.modality == "image" else self.modality
                other = next(name for name, modality in GIVEN.items() if modality == what)
                raise UvitError(
                    f"mode={mode!r} is given {takes or 'nothing'}; leave out --{flag}={given[0]}, "
                    f"or choose another --mode, such as {other}"
                )
            if not given and self.modality == what:
                raise UvitError(f"mode={mode!r} needs --{flag}; it may be repeated")
        if not self.modality:
            return {}, [""] * count
        if self.modality == "text":
            data, names = self.of_texts(prompts), list(prompts)
        else:
            paths = image_files(files)
            images, names = np.stack([self.read(p) for p in paths]), [p.stem for p in paths]
            data = self.of_images(images)
        rows = np.arange(count) % len(names)
        if self.modality == "image":
            (segment,) = (s for s in self._segments["image"] if s.kind == "patches")
            self.pixels = {segment.name: image_decoding.to_float(images)[rows]}
        return {name: value[rows] for name, value in data.items()}, [names[i] for i in rows]

    def of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as data of the text's segment, float32 (B, T, F).

        Raises:
          UvitError: if a text is too long, or no encoder is named, or another model's.
        """
        (segment,) = self._segments["text"]
        if self.of_words:
            ids = [self._vocabulary.encode(text, segment.shape[0]) for text in texts]
            return {segment.name: np.asarray(segment.encoded(np.stack(ids)))}
        encode = self._text_encoder
        lengths = encode.lengths(texts)
        for text, length in zip(texts, lengths, strict=True):
            if length > segment.shape[0]:
                raise UvitError(
                    f"the caption {text[:60]!r} has {length} tokens, the model takes "
                    f"{segment.shape[0]}; shorten it"
                )
        features = encode(texts)
        if self._config.caption_decoder:
            decoder, params = self._caption_decoder
            features = np.asarray(decoder.reduce(params, features))
        if features.shape[1:] != segment.shape:
            raise UvitError(
                f"the text encoder returns features {features.shape[1:]}, and segment "
                f"{segment.name!r} takes {segment.shape}; name the caption decoder that reduces "
                "them with --caption_decoder=FOLDER"
            )
        return {segment.name: features}

    def of_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Images uint8 (B, H, W, C) of the size of `read` as data of the image's segments.

        Raises:
          UvitError: if an encoder is needed and not named, or another model's.
        """
        data = {}
        for segment in self._segments["image"]:
            if segment.kind == "patches":
                values = image_decoding.to_float(pixels)
                data[segment.name] = self._decode.encode(values) if segment.is_latent else values
                continue
            features = self._image_encoder(pixels)[:, None]
            if features.shape[1:] != segment.shape:
                raise UvitError(
                    f"the image encoder returns features {features.shape[1:]}, and segment "
                    f"{segment.name!r} takes {segment.shape}; name that of the model with "
                    "--image_encoder=FILE"
                )
            data[segment.name] = features
        return data

    def read(self, file: Path) -> np.ndarray:
        """An image file, resized and cropped for the model: uint8 (H, W, C).

        Raises:
          UvitError: if it is broken, or the model's images are videos, or latents
            without an autoencoder.
        """
        segment = next(s for s in self._segments["image"] if s.kind == "patches")
        size, channels = self._pixels(segment)
        return image_decoding.decode(
            image_decoding.read_file(file),
            str(file),
            sizes=(size,),
            channels=channels,
            background=(255, 255, 255),
        )

    def captions(self, samples: Mapping[str, np.ndarray]) -> list[str] | None:
        """The captions of generated texts; None if there are no texts or no caption decoder."""
        if captions := captions_of(self._layout, samples, self._vocabulary.tokenizer):
            return captions
        (segment,) = self._segments["text"]
        if segment.name not in samples or not self._config.caption_decoder:
            return None
        return self._captioner(samples[segment.name])

    def _check_encoders(self) -> None:
        """Raises UvitError if the config names an encoder of what the model does not have."""
        unused = ["text_encoder", "caption_decoder"] if self.of_words else []
        if all(s.kind == "patches" for s in self._segments["image"]):
            unused.append("image_encoder")
        for name in unused:
            if given := getattr(self._config, name):
                raise UvitError(
                    f"the model has no features of a frozen encoder that --{name} could give; "
                    f"leave out --{name}={given}"
                )

    def _pixels(self, segment: Segment) -> tuple[tuple[int, int], int]:
        """The height and width, and the channels, of the images of a segment."""
        if len(segment.shape) != 3:
            raise UvitError(
                f"segment {segment.name!r} has shape={segment.shape}; images are given by file "
                "only to models of images"
            )
        height, width, channels = segment.shape
        if not segment.is_latent:
            return (height, width), channels
        if self._decode is None:
            raise UvitError(
                "the model's images are latents; name the autoencoder that encodes them with "
                "--autoencoder=FILE"
            )
        config = self._decode.autoencoder.config
        return (height * config.factor, width * config.factor), config.image_channels

    @functools.cached_property
    def _text_encoder(self) -> Any:
        if not self._config.text_encoder:
            raise UvitError(
                "the model's texts are features of CLIP's text tower; name its folder (tokenizer "
                "and weights) with --text_encoder=FOLDER"
            )
        from uvit_jax.encoders.clip_weights import load_text_encoder

        return load_text_encoder(self._config.text_encoder)

    @functools.cached_property
    def _image_encoder(self) -> Any:
        if not self._config.image_encoder:
            raise UvitError(
                "the model takes a feature of CLIP's vision tower beside an image; name its file "
                "with --image_encoder=FILE"
            )
        from uvit_jax.encoders.clip_weights import load_image_encoder

        return load_image_encoder(self._config.image_encoder)

    @functools.cached_property
    def _caption_decoder(self) -> tuple[Any, Any]:
        if self.generates_text:
            return self._captioner.decoder, self._captioner.params
        from uvit_jax.encoders.caption_weights import load_caption_decoder

        return load_caption_decoder(self._config.caption_decoder)

    @functools.cached_property
    def _captioner(self) -> Any:
        from uvit_jax.encoders.caption_weights import load_captioner

        return load_captioner(self._config.caption_decoder)


def captions_of(
    layout: Layout, samples: Mapping[str, np.ndarray], tokenizer: Tokenizer | None
) -> list[str] | None:
    """The captions of generated codes; None if there are none."""
    for segment in layout.noisy:
        if segment.kind == "codes" and segment.name in samples and tokenizer is not None:
            ids_BT = segment.decoded(samples[segment.name])
            known_BT = np.where(ids_BT < tokenizer.vocab_size, ids_BT, 0)
            return [tokenizer.decode(ids) for ids in known_BT]
    return None


def image_files(paths: Sequence[str]) -> list[Path]:
    """Image files, and those in folders, sorted by name.

    Raises:
      UvitError: if there is no such file, or a folder has no images.
    """
    files: list[Path] = []
    for path in map(local_path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        inside = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
        if not inside:
            raise UvitError(f"{path} has no images")
        files += inside
    return files
