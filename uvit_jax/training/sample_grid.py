"""The grids of samples that a run saves during training: images, or latents without a decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uvit_jax import io
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.video_frames import joined_frames
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import jit_replicated
from uvit_jax.sampling import decoding, modes
from uvit_jax.sampling.conditions import (
    NAMED,
    conditions_for,
    conditions_like,
    text_encoder_of,
)
from uvit_jax.sampling.given_data import captions_of
from uvit_jax.sampling.sampler import make_sampler
from uvit_jax.sampling.video_tasks import is_clip
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.workdir import Workdir


class SampleGrid:
    """Writes the run's grid of samples into `samples/`, with the same noise every time.

    Attributes:
      last, last_step: path and step of the last grid.
      files: the last grids of images, by segment; on process 0.
    """

    def __init__(
        self,
        model: Model,
        run: RunConfig,
        dataset: Dataset,
        vocabulary: Vocabulary,
        mesh: Mesh,
        folder: Workdir,
    ):
        self._run, self._mesh, self._folder = run, mesh, folder
        self._layout, self._tokenizer = model.layout, vocabulary.tokenizer
        decode = decoding.decoder(model.layout, run.sample)
        _check_scale(run, dataset, decode)
        self._conditions, self._captions = _conditions(model, run, dataset, vocabulary)
        size = run.sample.count
        sampler = make_sampler(
            model, run.diffusion, run.sample, batch_size=size, vocabulary=vocabulary
        )
        self._sample = jit_replicated(sampler, mesh)
        self._decode = None
        if decode is not None:
            traced = jit_replicated(decode.traced, mesh)
            # Its parameters are on the devices only while it decodes.
            self._decode = lambda latents: jax.device_get(traced(decode.params, (latents,)))
        self.last, self.last_step = None, -1
        self.files: dict[str, Path] = {}

    def __call__(self, params: Any, step: int) -> None:
        key = jax.random.fold_in(jax.random.key(self._run.seed), 1)
        samples = jax.device_get(self._sample(params, (key, self._conditions)))
        captions = captions_of(self._layout, samples, self._tokenizer) or self._captions
        clip = is_clip(self._layout, samples)
        if clip:  # decoded as one, as it was encoded
            samples = {"video": joined_frames(samples)}
        samples = decoding.decoded(
            self._layout, samples, self._decode, latents=self._run.of_latents
        )
        self.last_step = step
        if jax.process_index() != 0:
            return
        names = ["video"] if clip else [s.name for s in self._layout.noisy_images]
        for name in names:
            if name not in samples:
                if f"{name}_latents" in samples:
                    file = self._folder.samples / f"{step:08d}_{name}.npy"
                    with io.atomic(file) as partial, partial.open("wb") as opened:
                        np.save(opened, samples[f"{name}_latents"])
                continue
            images = io.frames_as_images(samples[name])
            suffix = "" if len(names) == 1 else f"_{name}"
            self.last = self._folder.samples / f"{step:08d}{suffix}.png"
            io.save_png(io.grid(images, captions=captions), self.last)
            self.files[name] = self.last


def _check_scale(run: RunConfig, dataset: Any, decode: decoding.Decoder | None) -> None:
    """Raises UvitError if samples would be decoded with another scale, mean or standard deviation
    than those of the data."""
    if run.data.autoencoder:
        for key in ("autoencoder", "latent_scale"):
            encoded, decoded = getattr(run.data, key), getattr(run.sample, key)
            if encoded != decoded and (key == "latent_scale" or decoded):
                raise UvitError(
                    f"config.data.{key} is {encoded}, and config.sample.{key} is {decoded}; images "
                    "are decoded as they are encoded: make them equal"
                )
    index = getattr(dataset, "index", None)
    if index is not None and index.scale != run.sample.latent_scale:
        raise UvitError(
            f"the latents in {run.data.path} are scaled by {index.scale}, and "
            f"config.sample.latent_scale is {run.sample.latent_scale}; set it to {index.scale}"
        )
    for key in ("latent_mean", "latent_std") if index is not None and decode is not None else ():
        encoded = tuple(index.autoencoder["config"].get(key, ()))
        decoded = getattr(decode.autoencoder.config, key)
        if encoded != decoded:
            raise UvitError(
                f"the latents in {run.data.path} have {key}={encoded}, and those of "
                f"config.sample.autoencoder {decoded}; name the folder of diffusers that "
                f"{index.autoencoder['file']} is in, with its config.json"
            )


def _conditions(
    model: Model, run: RunConfig, dataset: Any, vocabulary: Vocabulary
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions of the grid's samples, and a caption of each.

    They come from the config, or from the data if the config cannot express them or names no text
    encoder.
    """
    config = run.sample
    if given := modes.GIVEN.get(config.mode):
        names = modes.modalities(model.layout, config.mode)[given][1]
        return _first_examples(model, dataset, config.count, names)
    if not all(s.kind in NAMED for s in model.layout.conditions):
        return _first_examples(model, dataset, config.count)
    features = [s.name for s in model.layout.conditions if s.kind == "features"]
    if vocabulary.features is None or not features or config.prompts:
        vocabulary, encode_text = text_encoder_of(model.layout, vocabulary, config)
        return conditions_for(model, vocabulary, config, encode_text)
    rows = np.arange(config.count)
    conditions = conditions_like(model, dataset, vocabulary, config.count, run.seed)
    captions = conditions[features[0]].captions()
    return {name: value[rows] for name, value in conditions.items()}, captions


def _first_examples(
    model: Model, dataset: Any, count: int, names: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions of the data's first examples, or other inputs, and their captions."""
    rows = [i % len(dataset) for i in range(count)]
    batch = dataset.batch(rows)
    captions = [(*dataset.source[i].get("captions", ()), "")[0] for i in rows]
    by_name = model.layout.by_name
    names = names or model.layout.conditions_in(batch)
    inputs = {n: by_name[n].encoded(batch[n]) if n in by_name else batch[n] for n in names}
    return inputs, captions
