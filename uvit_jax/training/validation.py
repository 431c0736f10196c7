"""The training objective on held-out data, with fixed noise and times.

The training loss is noisy, since each step has other images, noise and times. Here all three are
fixed, so that two sets of parameters are compared on exactly the same examples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.data.dataset import Dataset
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.encoders.image_encoder import spread
from uvit_jax.evaluation.image_sets import check_batch_size
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.sharding import shardings
from uvit_jax.training.loss import corrupt, diffusion_loss


def make_validation(
    model: Model,
    diffusion: ObjectiveConfig,
    dataset: Dataset,
    *,
    count: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
) -> Callable[[Params], float]:
    """A function from parameters to their mean loss on held-out data.

    Args:
      dataset: the held-out split. Its images are used in order, without augmentation, with all
        their conditions.
      count: number of noisy images, rounded up to a multiple of `batch_size`. Further passes over
        the data have other noise and times.
      batch_size: over all devices.
      seed: of noise and times, which depend on it, on `count`, `batch_size` and the names of the
        model's noisy segments only.

    Raises:
      UvitError: if the mesh does not divide the batch.
    """
    check_batch_size(mesh, batch_size)

    def loss(params: Params, key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        losses_B, _ = diffusion_loss(model, params, *corrupt(key, model, batch, diffusion))
        return jnp.mean(losses_B)

    run = jax.jit(loss, out_shardings=NamedSharding(mesh, P()))

    def validate(params: Params) -> float:
        losses = []
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
        for start in range(0, count, batch_size):
            rows = dataset.batch([i % len(dataset) for i in range(start, start + batch_size)])
            model.layout.check_ids(rows)
            batch = {name: spread(rows[name], mesh) for name in model.layout.inputs_in(rows)}
            with jax.set_mesh(mesh):
                key = jax.random.fold_in(jax.random.key(seed), start)
                losses.append(run(placed, key, batch))
        return float(np.mean(jax.device_get(losses), dtype=np.float64))

    return validate
