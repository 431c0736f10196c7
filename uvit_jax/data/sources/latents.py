"""Encoded pictures as a data set: stored moments, and a fresh sample of them at every step.

    config.data = dict(name="latents", path="latents/imagenet256", labels="label", flip=True)

`experiments.encode_latents` makes the folder; `latent_shards.py` knows its files. As with pictures,
row r of the global batch k is a function of (seed, k * batch_size + r): the noise of its sample
comes from the same 64 bits that decide on mirroring.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.latent_shards import (
    PLAN,
    LatentIndex,
    Shards,
    command,
    missing_shards,
    read_index,
)
from uvit_jax.data.text_shards import open_text
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError

LOGVAR_RANGE = (-30.0, 20.0)
"""What log-variances are clamped to before they are used."""


class LatentData:
    """A folder of latents, opened: the same face as `pipeline.Dataset`, which makes it.

    Attributes: config, source (a `Shards`), class_names, num_classes, tokenizer, as there;
      image_shape: (h, w, C) of a latent. index: the folder's `LatentIndex`.
      features: `TextFeatures` of the captions' encoder, None if they are off.

    Raises:
      UvitError: if the folder is missing, unfinished or damaged, naming the command that makes it;
        or if it lacks what the config asks for.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None):
        folder = Path(config.path).expanduser()
        self.config, self.index = config, _finished(folder)
        index = self.index
        if config.labels and not index.labels:
            raise UvitError(f"the latents in {folder} have no labels; leave labels empty")
        if config.text and not index.captions:
            raise UvitError(f"the latents in {folder} have no captions; set text to False")
        if config.flip and not index.mirrored:
            raise UvitError(
                f"the latents in {folder} were made without --mirror; set flip to False"
            )
        self.source = Shards(folder, index)
        self.class_names = index.class_names if config.labels else ()
        self.tokenizer = (tokenizer or Tokenizer(index.words or ())) if config.text else None
        self.image_shape = index.shape
        self._texts = open_text(folder, index) if config.features else None
        self.features = None if self._texts is None else self._texts.null
        self._start()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def feature(self, example: int, number: int = 0) -> np.ndarray:
        """float32 (N, F): the features of an example's caption of this number, modulo their count;
        of the empty text if it has none."""
        return self._texts.features(example, number)

    def caption(self, example: int, number: int = 0) -> str:
        """The caption whose features these are."""
        captions = self.source.captions(example)
        return captions[number % len(captions)] if captions else ""

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """What the network sees of a record without augmentation: the mean of its latent, scaled.

        Returns:
          `image` float32 (h, w, C); `label` and `text` as of pictures, the latter float32 (N, F)
          with features.
        """
        C = self.image_shape[-1]
        row = {"image": record["moments"][..., :C] * np.float32(self.index.scale)}
        if self.config.labels:
            row["label"] = np.int32(record["label"])
        if self.tokenizer is not None:
            row["text"] = self._encode((record["captions"] or ("",))[0])
        if self._texts is not None:
            row["text"] = self.feature(record["example"])
        return row

    def batch(
        self, indices: Sequence[int], chances: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The records `indices` as a batch: samples of their latents.

        Args:
          indices: B of them. chances: 64 random bits a row, from which its noise, its mirroring
            (if `config.flip`) and its caption come; None for the unmirrored means.

        Returns:
          `image` float32 (B, h, w, C), (mean + exp(logvar / 2) eps) · scale with log-variances
          clamped to `LOGVAR_RANGE`; `label` int32 (B,) and `text`, int32 (B, T) or with features
          float32 (B, N, F), where they are on.
        """
        B, size = len(indices), int(np.prod(self.image_shape))
        moments = np.empty((B, 2, size), np.float32)
        labels, texts = np.empty((B,), np.int32), []
        if self._texts is not None:
            texts = np.empty((B, *self._texts.index.shape), np.float32)
        for row, example in enumerate(indices):
            chance = chances[row] if chances is not None else 0
            mirrored = self.config.flip and chance >> 63 == 1
            record = self.source.read(example, mirrored)
            labels[row], captions = self.source.unpack(record, moments[row])
            if self.tokenizer is not None:
                given = json.loads(bytes(captions)) or [""]
                texts.append(self._encode(given[chance % 2**32 % len(given)]))
            if self._texts is not None:
                texts[row] = self.feature(example, chance % 2**32)
        samples = moments[:, 0] if chances is None else _sample(moments, chances)
        samples *= np.float32(self.index.scale)
        batch = {"image": samples.reshape(B, *self.image_shape)}
        if self.config.labels:
            batch["label"] = labels
        if len(texts):
            batch["text"] = np.stack(texts) if self._texts is None else texts
        return batch

    def _start(self) -> None:
        if self.tokenizer is not None:
            length = self.config.text_length
            encode = functools.partial(self.tokenizer.encode, length=length, truncate=True)
            self._encode = functools.lru_cache(2**16)(encode)

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "_encode"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()


def _sample(moments: np.ndarray, chances: Sequence[int]) -> np.ndarray:
    """mean + exp(logvar / 2) eps of (B, 2, n), eps of a row from its 64 bits alone: (B, n)."""
    mean, std = moments[:, 0], moments[:, 1]
    np.clip(std, *LOGVAR_RANGE, out=std)
    std *= np.float32(0.5)
    np.exp(std, out=std)
    eps = np.empty_like(mean)
    bits = np.random.SFC64(0)
    generator = np.random.Generator(bits)
    words = np.empty(4, np.uint64)
    state = {"bit_generator": "SFC64", "state": {"state": words}, "has_uint32": 0, "uinteger": 0}
    for row, chance in enumerate(chances):
        # SFC64 as its author seeds it, with twelve numbers thrown away. It is the fastest there is,
        # and setting its state takes a tenth of the time of making a new one.
        words[:3], words[3] = chance, 1
        bits.state = state
        bits.random_raw(12, output=False)
        generator.standard_normal(dtype=np.float32, out=eps[row])
    eps *= std
    eps += mean
    return eps


def _finished(folder: Path) -> LatentIndex:
    index = read_index(folder)
    if index is not None:
        return index
    plan = read_index(folder, PLAN)
    if plan is None:
        raise UvitError(f"there are no latents in {folder}; make them with `{command(folder)}`")
    done = plan.num_shards - len(missing_shards(folder, plan))
    raise UvitError(
        f"the latents in {folder} are unfinished, {done} of {plan.num_shards} shards; go on with "
        f"`{command(folder, plan)}`"
    )
