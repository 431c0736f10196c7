"""The loss of a model on a batch, for training, fine-tuning and validation alike.

conditions, corrupted = corrupt(key, model, batch, diffusion)
losses_B, metrics = diffusion_loss(model, params, conditions, corrupted)
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvit_jax.diffusion import objective
from uvit_jax.diffusion.objective import Corrupted, ObjectiveConfig
from uvit_jax.models.model import Model, Params

Batch = Mapping[str, jax.Array]


def corrupt(
    key: jax.Array,
    model: Model,
    batch: Batch,
    diffusion: ObjectiveConfig,
    *,
    given: Mapping[str, float] | None = None,
    dropped: Mapping[str, float] | None = None,
    draws: int = 1,
    t: jax.Array | float | None = None,
) -> tuple[dict[str, jax.Array], Corrupted]:
    """A batch's conditions, and its noisy segments at sampled times.

    Args:
      key: one PRNG key for the batch.
      batch: the model's inputs, leaves (B, …), noisy segments as clean data.
      given, dropped: see `objective.corrupt`.
      draws: how many times and noises are sampled for each example: leaves of the noisy segments
        are (B · draws, …), those of one example in a row.
      t: one time in [0, 1] for all, instead of sampled ones.
    """
    layout = model.layout
    corrupted = objective.corrupt(
        key,
        {s.name: _repeated(s.encoded(batch[s.name]), draws) for s in layout.noisy},
        diffusion,
        time_keys={s.name: s.time_key for s in layout.noisy},
        learned_range=[s.name for s in layout.noisy if s.learned_range],
        given=given,
        dropped=dropped,
        t=t,
    )
    return {name: batch[name] for name in layout.conditions_in(batch)}, corrupted


def network_inputs(
    model: Model, conditions: Batch, corrupted: Corrupted
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The inputs and times of `Model.apply`."""
    times = {s.time_key: corrupted.network_times[s.name] for s in model.layout.noisy}
    return {**conditions, **corrupted.noisy}, times


def diffusion_loss(
    model: Model, params: Params, conditions: Batch, corrupted: Corrupted, *, draws: int = 1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each example's loss, (B · draws,) float32, and the metrics of `objective.example_losses`.

    Several draws of an example share its references' keys and values, which cost as much as for
    one: references that never see the target are the same for every noise.

    Raises:
      UvitError: as `Model.apply`, and with several draws as `Model.cache`.
    """
    cache = None
    if draws > 1:
        if model.layout.references:
            cache = model.cache(params, conditions).repeat(draws)
        names = model.layout.without_references.conditions_in(conditions)
        conditions = {name: _repeated(conditions[name], draws) for name in names}
    outputs = model.apply(params, *network_inputs(model, conditions, corrupted), cache=cache)
    return objective.example_losses(outputs, corrupted)


def _repeated(value: jax.Array, draws: int) -> jax.Array:
    return value if draws == 1 else jnp.repeat(value, draws, axis=0)
