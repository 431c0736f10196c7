"""The training objective on held-out data, with noise and times that never change.

What a run learns from is noisy: other pictures, other noise and other times at every step. Here all
three are fixed, so that two sets of parameters are compared on exactly the same questions.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.data import pipeline
from uvit_jax.diffusion import objective
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.encoders.image_encoder import spread
from uvit_jax.evaluation.image_sets import check_batch_size
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.sharding import shardings


def make_validation(
    model: Model,
    diffusion: ObjectiveConfig,
    dataset: pipeline.Dataset,
    *,
    count: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
) -> Callable[[Params], float]:
    """A function from parameters to their mean loss on held-out data.

    Args:
      dataset: the held-out split. Its pictures come in turn, without augmentation, and with all
        their conditions.
      count: of noised pictures, rounded up to whole batches. Beyond one pass over the data, each
        comes again with other noise at another time.
      batch_size: over all devices. seed: of noise and times. They depend on `count`, `batch_size`
        and the names of the model's noisy segments, and on nothing else of the model.

    Raises:
      UvitError: if the mesh does not divide the batch.
    """
    check_batch_size(mesh, batch_size)
    layout = model.layout
    noisy = [s.name for s in layout.noisy]
    learned_range = [s.name for s in layout.noisy if s.learned_range]

    def loss(params: Params, key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        clean = {name: batch[name] for name in noisy}
        corrupted = objective.corrupt(
            key,
            clean,
            diffusion,
            time_keys={s.name: s.time_key for s in layout.noisy},
            learned_range=learned_range,
        )
        conditions = {k: v for k, v in batch.items() if k not in clean}
        times = {name: corrupted.network_times[name] for name in layout.time_keys}
        outputs = model.apply(params, {**conditions, **corrupted.noisy}, times)
        return objective.loss(outputs, corrupted)[0]

    run = jax.jit(loss, out_shardings=NamedSharding(mesh, P()))

    def validate(params: Params) -> float:
        losses = []
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
        for start in range(0, count, batch_size):
            rows = dataset.batch([i % len(dataset) for i in range(start, start + batch_size)])
            batch = {name: spread(rows[name], mesh) for name in layout.inputs_in(rows)}
            with jax.set_mesh(mesh):
                key = jax.random.fold_in(jax.random.key(seed), start)
                losses.append(run(placed, key, batch))
        return float(np.mean(jax.device_get(losses), dtype=np.float64))

    return validate
