"""The loss of a model on a batch, for training, fine-tuning and validation alike.

conditions, corrupted = corrupt(key, model, batch, diffusion)
losses_B, metrics = diffusion_loss(model, params, conditions, corrupted)
"""

from collections.abc import Mapping

import jax

from uvit_jax.diffusion import objective
from uvit_jax.diffusion.objective import Corrupted, ObjectiveConfig
from uvit_jax.models.model import Model, Params

Batch = Mapping[str, jax.Array]


def corrupt(
    key: jax.Array,
    model: Model,
    batch: Batch,
    diffusion: ObjectiveConfig,
    given: Mapping[str, float] | None = None,
) -> tuple[dict[str, jax.Array], Corrupted]:
    """A batch's conditions, and its noisy segments at sampled times.

    Args:
      key: one PRNG key for the batch.
      batch: the model's inputs, leaves (B, …), noisy segments as clean data.
      given: see `objective.corrupt`.
    """
    layout = model.layout
    corrupted = objective.corrupt(
        key,
        {s.name: batch[s.name] for s in layout.noisy},
        diffusion,
        time_keys={s.name: s.time_key for s in layout.noisy},
        learned_range=[s.name for s in layout.noisy if s.learned_range],
        given=given,
    )
    return {name: batch[name] for name in layout.conditions_in(batch)}, corrupted


def network_inputs(
    model: Model, conditions: Batch, corrupted: Corrupted
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The inputs and times of `Model.apply`."""
    times = {s.time_key: corrupted.network_times[s.name] for s in model.layout.noisy}
    return {**conditions, **corrupted.noisy}, times


def diffusion_loss(
    model: Model, params: Params, conditions: Batch, corrupted: Corrupted
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each example's loss, (B,) float32, and the metrics of `objective.example_losses`."""
    outputs = model.apply(params, *network_inputs(model, conditions, corrupted))
    return objective.example_losses(outputs, corrupted)
