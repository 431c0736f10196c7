"""What is measured of a trained run: the held-out loss at its checkpoints, samples at its end."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.ablation.records import Row
from experiments.ablation.variants import Job, Plan
from uvit_jax.data import pipeline
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import frechet, image_metrics, image_sets
from uvit_jax.models.model import Model, Params, build
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.sampling.conditions import conditions_like
from uvit_jax.training.check_data import check_data
from uvit_jax.training.checkpoint import load_workdir
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.validation import make_validation
from uvit_jax.training.workdir import Workdir

SAMPLES = "ablation_samples.npz"
"""In a run's folder: the first of the measured samples, `image` float32 (n, H, W, C)."""


class Measure:
    """Everything that runs are measured against, opened once.

    Args:
      plan: the ablation. workdir: its folder, where the reference's statistics are kept.

    Raises:
      UvitError: if the data lack the held-out split, the encoder its weights, or the model draws no
        pictures to be measured.
    """

    def __init__(self, plan: Plan, workdir: Path):
        self._metrics, self._workdir = plan.config.metrics, workdir
        base = parse_run(plan.base)
        self._mesh = make_mesh(base.mesh)
        image_sets.check_batch_size(self._mesh, self._metrics.batch_size)
        self._data = pipeline.dataset(base.data)
        held_out = dataclasses.replace(base.data, split=self._metrics.split, flip=False)
        self._held_out = pipeline.dataset(held_out)
        if self._held_out.class_names != self._data.class_names:
            raise UvitError(
                f"the classes of the split {self._metrics.split!r} are not those of "
                f"{base.data.split!r}; choose another config.metrics.split"
            )
        for name, run in {job.name: job.run for job in plan.jobs}.items():
            model = build(run.model)
            try:
                check_data(model, self._data)
                if self._metrics.samples:
                    image_sets.picture_segment(model)
            except UvitError as error:
                raise UvitError(f"{name}: {error}") from None
        self._encoder = self._reference = None
        if self._metrics.samples:
            try:
                weights = self._metrics.weights or None
                self._encoder = encoder(self._metrics.encoder, weights, self._mesh)
            except UvitError as error:
                raise UvitError(
                    f"{error} (or do without samples: --config.metrics.samples=0)"
                ) from None

    def __call__(self, job: Job, path: Path, known: list[Row]) -> list[Row]:
        """Measures a finished run's averaged parameters.

        Args:
          path: its workdir. known: what was measured of it before, at earlier steps.

        Returns:
          `known`, and `validation_loss` at every checkpoint that it lacks, and the figures of
          samples at the last. The first samples are written beside them.
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
        )
        rows = list(known)
        params = None
        for step in Workdir(path).steps:
            # Others than these were saved because a run was told to stop.
            due = step == run.train.steps or step % run.train.checkpoint_every == 0
            if not due or any(row.step == step for row in known):
                continue
            _, params = load_workdir(path, step=step, ema=True)
            rows.append(Row(step=step, metric="validation_loss", value=validate(params)))
        if metrics.samples:
            if params is None:
                _, params = load_workdir(path, step=run.train.steps, ema=True)
            figures = self._figures(job, path, model, params)
            rows += [Row(step=run.train.steps, metric=k, value=v) for k, v in figures.items()]
        return sorted(rows, key=lambda row: row.step)

    def _figures(self, job: Job, path: Path, model: Model, params: Params) -> dict[str, float]:
        metrics = self._metrics
        conditional = any(s.role != "noisy" for s in model.layout.inputs)
        conditions = conditions_like(
            model,
            self._data if conditional else None,
            Workdir(path).read_vocabulary(),
            metrics.samples,
            metrics.seed,
        )
        sample = dataclasses.replace(job.run.sample, count=metrics.samples, labels=(), prompts=())
        drawn = image_sets.drawn(
            model,
            params,
            job.run.diffusion,
            sample,
            conditions,
            batch_size=metrics.batch_size,
            seed=metrics.seed,
            mesh=self._mesh,
            name=job.title,
        )
        kept: list[np.ndarray] = []
        whole = jax.jit(lambda x: x, out_shardings=NamedSharding(self._mesh, P()))

        def batches() -> Iterator[Any]:
            for batch in drawn.batches():
                if sum(map(len, kept)) < min(metrics.grid, metrics.samples):
                    kept.append(jax.device_get(whole(batch)))
                yield batch

        watched = dataclasses.replace(drawn, batches=batches)
        features = image_metrics.encode(self._encoder, watched, keep=0)
        found = image_metrics.figures(self._encoder, features, self._reference_features())
        if jax.process_index() == 0:
            image = np.concatenate([*kept, np.zeros((0, *model_shape(model)))])[: metrics.grid]
            np.savez_compressed(path / SAMPLES, image=image.astype(np.float32))
        return found

    def _reference_features(self) -> image_metrics.Features:
        """The reference's: given, kept from an earlier start, or computed and kept."""
        if self._reference is None:
            encode, metrics = self._encoder, self._metrics
            kept = self._workdir / "reference.npz"
            given = metrics.reference or (kept if kept.exists() else None)
            if given:
                statistics = frechet.read_statistics(given)
                if statistics.encoder and statistics.encoder != encode.version:
                    raise UvitError(
                        f"{given} was made with the encoder {statistics.encoder}, not "
                        f"{encode.version}; give another file or remove it"
                    )
            else:
                found = image_sets.of_dataset(
                    self._data, metrics.batch_size, self._mesh, "the reference"
                )
                statistics = image_metrics.encode(encode, found, keep=0).statistics
                if jax.process_index() == 0:
                    frechet.write_statistics(kept, statistics)
            self._reference = image_metrics.Features(statistics)
        return self._reference


def model_shape(model: Model) -> tuple[int, ...]:
    """(H, W, C) of the pictures that a model draws."""
    return model.layout.by_name[image_sets.picture_segment(model)].shape
