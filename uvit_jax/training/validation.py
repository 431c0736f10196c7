"""The training objective on held-out data, with fixed noise and times.

The training loss is noisy, since each step has other images, noise and times. Here all three are
fixed, so that two sets of parameters are compared on exactly the same examples.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.autoencoders.encoded_dataset import open_data
from uvit_jax.data.dataset import Dataset
from uvit_jax.diffusion.objective import ObjectiveConfig, of_data
from uvit_jax.encoders.image_encoder import spread
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.image_sets import check_batch_size
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.sharding import shardings
from uvit_jax.training.check_data import sized_models
from uvit_jax.training.loss import corrupt, diffusion_loss, nulls_of
from uvit_jax.training.run_config import RunConfig


def make_validation(
    model: Model,
    diffusion: ObjectiveConfig,
    dataset: Dataset,
    *,
    count: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    given: Mapping[str, float] | None = None,
) -> Callable[..., float]:
    """A function from parameters, and optionally a time, to their mean loss on held-out data.

    Args:
      dataset: the held-out split. Its images are used in order, without augmentation, with all
        their conditions.
      count: number of noisy images, rounded up to a multiple of `batch_size`. Further passes over
        the data have other noise and times.
      batch_size: over all devices.
      seed: of noise and times, which depend on it, on `count`, `batch_size`, the names of the
        model's noisy segments, and the objective's times and shared noise only.
      given: of a video model, as in its training, see `objective.corrupt`.

    Raises:
      UvitError: if the mesh does not divide the batch.
    """
    check_batch_size(mesh, batch_size)
    diffusion = of_data(diffusion)
    null = dataset.features.null if dataset.features else None
    nulls = nulls_of(model, null) if diffusion.guidance else None

    def loss(
        params: Params, key: jax.Array, batch: dict[str, jax.Array], t: jax.Array | None
    ) -> jax.Array:
        corrupted = corrupt(key, model, batch, diffusion, given=given, t=t)
        losses_B, _ = diffusion_loss(
            model, params, *corrupted, nulls=nulls, prediction=diffusion.prediction
        )
        return jnp.mean(losses_B)

    run = jax.jit(loss, out_shardings=NamedSharding(mesh, P()))

    def validate(params: Params, t: float | None = None) -> float:
        time = None if t is None else jnp.float32(t)
        losses = []
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
        for start in range(0, count, batch_size):
            rows = dataset.batch([i % len(dataset) for i in range(start, start + batch_size)])
            model.layout.check_ids(rows)
            batch = {name: spread(rows[name], mesh) for name in model.layout.inputs_in(rows)}
            with jax.set_mesh(mesh):
                key = jax.random.fold_in(jax.random.key(seed), start)
                losses.append(run(placed, key, batch, time))
        return float(np.mean(jax.device_get(losses), dtype=np.float64))

    return validate


def make_validations(
    run: RunConfig, model: Model, trained: Dataset, mesh: Mesh
) -> Callable[[Params], dict[str, float]]:
    """A function from parameters to the metrics of `run.validation`.

    Args:
      trained: the training data, whose classes and words the model knows.

    Raises:
      UvitError: if the data have no such split, or do not fit the model or the run's data.
    """
    config, functions = run.validation, {}
    for split in config.splits:
        changes = dict(split=split, flip=False)
        if config.path:
            changes = dict(path=config.path, flip=False)
        try:
            dataset = open_data(dataclasses.replace(run.data, **changes))
            if dataset.class_names != trained.class_names:
                raise UvitError(
                    f"its classes are {dataset.class_names} and those of training "
                    f"{trained.class_names}; they must be equal"
                )
            dataset = dataset.with_tokenizer(trained.tokenizer)
            models = sized_models(model, dataset)
        except UvitError as error:
            raise UvitError(f"config.validation: {error}") from None
        parts = []
        for size, data in dataset.by_size().items():
            share = len(data) / len(dataset)
            validate = make_validation(
                models[size],
                run.diffusion,
                data,
                count=math.ceil(config.count * share),
                batch_size=run.train.batch_size,
                seed=run.seed,
                mesh=mesh,
                given=run.train.given,
            )
            parts.append((share, validate))
        functions[split] = parts

    def measure(params: Params) -> dict[str, float]:
        metrics = {}
        for split, parts in functions.items():
            for t in (None, *config.times):
                name = f"validation/{split}/loss" + ("" if t is None else f"_{t:g}")
                metrics[name] = sum(share * validate(params, t) for share, validate in parts)
        return metrics

    return measure
