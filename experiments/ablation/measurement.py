"""Measures trained runs: held-out loss at all checkpoints, sample metrics at the last."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.ablation.run_records import Measurement
from experiments.ablation.variants import AblationPlan, AblationRun
from uvit_jax.autoencoders.encoded_dataset import open_data
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import frechet, image_metrics, image_sets
from uvit_jax.io import atomic
from uvit_jax.models.model import Model, Params, build
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.sampling.conditions import conditions_like
from uvit_jax.sampling.sampler import make_sampler
from uvit_jax.training.binding_probe import make_probe
from uvit_jax.training.check_data import check_data
from uvit_jax.training.checkpoint import load_workdir
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.validation import make_validation
from uvit_jax.training.workdir import Workdir

SAMPLES = "ablation_samples.npz"
"""The file of a run's first samples in its workdir: `image` float32 (n, H, W, C)."""


class RunMeasurer:
    """Measures runs with one data set, encoder and reference, which are opened once.

    Args:
      plan: the ablation. workdir: its folder, where the reference statistics are stored.

    Raises:
      UvitError: if the held-out split or the encoder's weights are missing, or a model has no
        image segment.
    """

    def __init__(self, plan: AblationPlan, workdir: Path):
        self._metrics, self._workdir = plan.config.metrics, workdir
        base = parse_run(plan.base)
        self._mesh = make_mesh(base.mesh)
        image_sets.check_batch_size(self._mesh, self._metrics.batch_size)
        self._data = open_data(base.data)
        held_out = dataclasses.replace(base.data, split=self._metrics.split, flip=False)
        self._held_out = open_data(held_out)
        if self._held_out.class_names != self._data.class_names:
            raise UvitError(
                f"the splits {self._metrics.split!r} and {base.data.split!r} differ in classes; "
                "choose another config.metrics.split"
            )
        data = self._data
        vocabulary = Vocabulary(data.class_names, data.tokenizer, data.features)
        for name, run in {job.name: job.run for job in plan.jobs}.items():
            model = build(run.model)
            try:
                check_data(model, self._data)
                if self._metrics.probe and model.layout.num_subjects < 2:
                    raise UvitError(
                        "config.metrics.probe needs references of several subjects; set it to False"
                    )
                if self._metrics.samples:
                    image_sets.image_segment(model, latents=base.of_latents)
                # Raises if the run could not sample.
                make_sampler(model, run.diffusion, run.sample, batch_size=1, vocabulary=vocabulary)
            except UvitError as error:
                raise UvitError(f"{name}: {error}") from None
        self._encoder = self._reference = None
        if self._metrics.samples:
            try:
                weights = self._metrics.weights or None
                self._encoder = encoder(self._metrics.encoder, weights, self._mesh)
            except UvitError as error:
                raise UvitError(
                    f"{error} (or skip samples with --config.metrics.samples=0)"
                ) from None

    def __call__(self, job: AblationRun, path: Path, known: list[Measurement]) -> list[Measurement]:
        """Measures a finished run with averaged parameters.

        Args:
          path: its workdir. known: earlier measurements.

        Returns:
          `known`, `validation_loss` and the probe's metrics at all further checkpoints, and the
          sample metrics at the last.
          The first samples are written to `SAMPLES`.
        """
        metrics, run = self._metrics, job.run
        model = build(run.model)
        validate = make_validation(
            model,
            run.diffusion,
            self._held_out,
            count=metrics.validation,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
            mesh=self._mesh,
            given=run.train.given,
        )
        probe = make_probe(run, model, self._mesh) if metrics.probe else None
        rows = list(known)
        params = None
        for step in Workdir(path).steps:
            # Other checkpoints were written when the run was stopped.
            due = step == run.train.steps or step % run.train.checkpoint_every == 0
            if not due or any(row.step == step for row in known):
                continue
            _, params = load_workdir(path, step=step, ema=True)
            found = {"validation_loss": validate(params)}
            if probe is not None:
                found |= probe(params)
            rows += [Measurement(step=step, metric=m, value=v) for m, v in found.items()]
        if metrics.samples:
            if params is None:
                _, params = load_workdir(path, step=run.train.steps, ema=True)
            for name, value in self._sample_metrics(job, path, model, params).items():
                rows.append(Measurement(step=run.train.steps, metric=name, value=value))
        return sorted(rows, key=lambda row: row.step)

    def _sample_metrics(
        self, job: AblationRun, path: Path, model: Model, params: Params
    ) -> dict[str, float]:
        metrics = self._metrics
        conditional = any(s.role != "noisy" for s in model.layout.inputs)
        conditions = conditions_like(
            model,
            self._data if conditional else None,
            Workdir(path).read_vocabulary(),
            metrics.samples,
            metrics.seed,
        )
        sample = dataclasses.replace(job.run.sample, labels=(), prompts=())
        samples = image_sets.of_model(
            model,
            params,
            job.run.diffusion,
            sample,
            conditions,
            count=metrics.samples,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
            mesh=self._mesh,
            name=job.title,
        )
        first: list[np.ndarray] = []
        replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(self._mesh, P()))

        def batches() -> Iterator[Any]:
            for batch in samples.batches():
                if sum(map(len, first)) < min(metrics.grid, metrics.samples):
                    first.append(jax.device_get(replicate(batch)))
                yield batch

        watched = dataclasses.replace(samples, batches=batches)
        features = image_metrics.encode(self._encoder, watched, keep=0)
        values = image_metrics.metrics(self._encoder, features, self._reference_features())
        if jax.process_index() == 0:
            image = np.concatenate([*first, np.zeros((0, *model_shape(model)))])[: metrics.grid]
            with atomic(path / SAMPLES) as partial, partial.open("wb") as file:
                np.savez_compressed(file, image=image.astype(np.float32))
        return values

    def _reference_features(self) -> image_metrics.ImageFeatures:
        """The reference statistics: from a given file, an earlier start, or computed and stored."""
        if self._reference is None:
            encode, metrics = self._encoder, self._metrics
            stored = self._workdir / "reference.npz"
            given = metrics.reference or (stored if stored.exists() else None)
            if given:
                statistics = frechet.read_statistics(given)
                if statistics.encoder and statistics.encoder != encode.version:
                    raise UvitError(
                        f"{given} is of the encoder {statistics.encoder}, not {encode.version}; "
                        "pass another config.metrics.reference, or remove the file"
                    )
            else:
                images = image_sets.of_dataset(
                    self._data, metrics.batch_size, self._mesh, "the reference"
                )
                statistics = image_metrics.encode(encode, images, keep=0).statistics
                if jax.process_index() == 0:
                    frechet.write_statistics(stored, statistics)
            self._reference = image_metrics.ImageFeatures(statistics)
        return self._reference


def model_shape(model: Model) -> tuple[int, ...]:
    """The shape (H, W, C) of a model's images."""
    return model.layout.by_name[image_sets.image_segment(model)].shape
