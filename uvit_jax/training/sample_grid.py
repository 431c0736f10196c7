"""The grids of samples that a run saves during training: images, or latents without a decoder."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uvit_jax import io
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import jit_replicated
from uvit_jax.sampling import decoding
from uvit_jax.sampling.conditions import (
    NAMED,
    conditions_for,
    conditions_like,
    text_encoder_of,
)
from uvit_jax.sampling.sampler import make_sampler
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.workdir import Workdir


class SampleGrid:
    """Writes the run's grid of samples into `samples/`, with the same noise every time.

    Attributes:
      last, last_step: path and step of the last grid.
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
        self._layout = model.layout
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

    def __call__(self, params: Any, step: int) -> None:
        key = jax.random.fold_in(jax.random.key(self._run.seed), 1)
        samples = jax.device_get(self._sample(params, (key, self._conditions)))
        samples = decoding.decoded(
            self._layout, samples, self._decode, latents=self._run.of_latents
        )
        self.last_step = step
        if jax.process_index() != 0:
            return
        names = [s.name for s in self._layout.noisy_images]
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
            io.save_png(io.grid(images, captions=self._captions), self.last)


def _check_scale(run: RunConfig, dataset: Any, decode: decoding.Decoder | None) -> None:
    """Raises UvitError if samples would be decoded with another scale, mean or standard deviation
    than those of the data."""
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
    model: Model, dataset: Any, count: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions of the data's first examples, and their captions."""
    rows = [i % len(dataset) for i in range(count)]
    batch = dataset.batch(rows)
    captions = [(*dataset.source[i].get("captions", ()), "")[0] for i in rows]
    return {name: batch[name] for name in model.layout.conditions_in(batch)}, captions
