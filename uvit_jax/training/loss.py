"""The loss of a model on a batch, for training, fine-tuning and validation alike.

conditions, corrupted = corrupt(key, model, batch, diffusion)
losses_B, metrics = diffusion_loss(model, params, conditions, corrupted)
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from uvit_jax.diffusion import objective, process
from uvit_jax.diffusion.mean_flow import mean_velocity
from uvit_jax.diffusion.objective import Corrupted, ObjectiveConfig
from uvit_jax.diffusion.schedule import TINY, make
from uvit_jax.models.model import Model, Params

Batch = Mapping[str, jax.Array]
Arrays = dict[str, jax.Array]
Apply = Callable[[Arrays, Arrays], Arrays]
"""`apply(inputs, times)`, a network with its parameters."""


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
    names = {s.name for s in layout.noisy}
    given = {name: share for name, share in (given or {}).items() if name in names}
    if names <= given.keys():  # an image among clips: its only frame is always generated
        given = {}
    corrupted = objective.corrupt(
        key,
        {s.name: _repeated(s.encoded(batch[s.name]), draws) for s in layout.noisy},
        diffusion,
        time_keys={s.name: s.time_key for s in layout.noisy},
        learned_range=[s.name for s in layout.noisy if s.learned_range],
        given=given,
        dropped=dropped,
        t=t,
        vary_guidance=layout.setting("guidance") is not None,
    )
    return {name: batch[name] for name in layout.conditions_in(batch)}, corrupted


def network_inputs(
    model: Model, conditions: Batch, corrupted: Corrupted
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The inputs and times of `Model.apply`."""
    times = {s.time_key: corrupted.network_times[s.name] for s in model.layout.noisy}
    settings = {
        segment.name: value_B[:, None]
        for sets, value_B in (("interval", corrupted.interval), ("guidance", corrupted.guidance))
        if value_B is not None and (segment := model.layout.setting(sets)) is not None
    }
    return {**conditions, **corrupted.noisy, **settings}, times


def diffusion_loss(
    model: Model,
    params: Params,
    conditions: Batch,
    corrupted: Corrupted,
    *,
    draws: int = 1,
    nulls: Mapping[str, Any] | None = None,
    prediction: str = "velocity",
    guided: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each example's loss, (B · draws,) float32, and the metrics of `objective.example_losses`.

    Several draws of an example share its references' keys and values, which cost as much as for
    one: references that never see the target are the same for every noise.

    Args:
      nulls: of `nulls_of`, for mean velocities with guidance; None is without those of features.
      prediction: of a network of mean velocities, `velocity` or `x0`.
      guided: of mean velocities, whether the targets have their guidance (`guided_targets`).

    Raises:
      UvitError: as `Model.apply`, and with several draws as `Model.cache`.
    """
    if corrupted.interval is not None:
        velocities, apply = corrupted.targets, _velocities(model, params, corrupted, prediction)
        if corrupted.guidance is not None and not guided:
            nulls = nulls_of(model) if nulls is None else nulls
            bare = _velocities(model.without_references(), params, corrupted, prediction)
            _, times = network_inputs(model, conditions, corrupted)
            nothing = _unconditional(bare, corrupted.noisy, times, nulls)
            velocities = _guided(velocities, jax.lax.stop_gradient(nothing), corrupted.guidance)
        outputs, targets = _mean_velocity(model, apply, conditions, corrupted, velocities)
        return objective.example_losses(outputs, corrupted._replace(targets=targets))
    cache = None
    if draws > 1:
        if model.layout.references:
            cache = model.cache(params, conditions).repeat(draws)
        names = model.layout.without_references.conditions_in(conditions)
        conditions = {name: _repeated(conditions[name], draws) for name in names}
    outputs = model.apply(params, *network_inputs(model, conditions, corrupted), cache=cache)
    return objective.example_losses(outputs, corrupted)


def nulls_of(model: Model, features_null: Any = None) -> dict[str, Any]:
    """The null values of all conditions but references, leaves (1, …); see `Layout.null`."""
    layout = model.layout.without_references
    return {name: layout.null(name, 1, features_null) for name in layout.condition_shapes}


def guided_targets(
    teacher: Model,
    params: Params,
    theirs: ObjectiveConfig,
    conditions: Batch,
    corrupted: Corrupted,
    nulls: Mapping[str, Any],
    target: str = "",
) -> Corrupted:
    """A batch whose targets are a teacher's predictions with its guidance, o + s (o - o_0).

    Args:
      teacher, params, theirs: the network to distill, and its objective.
      nulls: of `nulls_of`.
      target: in what prediction; "" is the teacher's.
    """
    schedule = make(theirs.schedule)
    network_times = {n: schedule.network_time(t) for n, t in corrupted.times.items()}
    given = corrupted._replace(network_times=network_times)
    inputs, times = network_inputs(teacher, conditions, given)
    outputs = teacher.apply(params, inputs, times)
    if corrupted.guidance is not None:
        bare = partial(teacher.without_references().apply, params)
        nothing = _unconditional(bare, corrupted.noisy, times, nulls)
        outputs = _guided(outputs, nothing, corrupted.guidance)
    if target:
        noisy, t = corrupted.noisy, corrupted.times
        outputs = process.convert(outputs, noisy, t, schedule, theirs.prediction, target)
    return corrupted._replace(targets=jax.lax.stop_gradient(outputs))


def _velocities(model: Model, params: Params, corrupted: Corrupted, prediction: str) -> Apply:
    """`apply(inputs, times)`, the velocities that a network predicts: (x_t - x0) / t."""

    def apply(inputs: Arrays, times: Arrays) -> Arrays:
        outputs = model.apply(params, inputs, times)
        if prediction == "velocity":
            return outputs
        velocities = {}
        for segment in model.layout.noisy:
            x, x0 = inputs[segment.name], outputs[segment.name]
            t_B = jnp.maximum(times[segment.time_key] / corrupted.time_rate, TINY)
            velocities[segment.name] = (x - x0) / t_B.reshape((-1,) + (1,) * (x.ndim - 1))
        return velocities

    return apply


def _mean_velocity(
    model: Model, apply: Apply, conditions: Batch, corrupted: Corrupted, velocities: Arrays
) -> tuple[Arrays, Arrays]:
    """The model's mean velocities and their targets."""
    inputs, times = network_inputs(model, conditions, corrupted)
    name = model.layout.setting("interval").name

    def network(noisy: Arrays, times: Arrays, interval_B: jax.Array) -> Arrays:
        return apply({**inputs, **noisy, name: interval_B[:, None]}, times)

    x, interval_B, rate_B = corrupted.noisy, corrupted.interval, corrupted.time_rate
    return mean_velocity(network, x, times, interval_B, velocities, rate_B)


def _unconditional(apply: Apply, noisy: Arrays, times: Arrays, nulls: Mapping[str, Any]) -> Arrays:
    """The prediction of a network without references, without conditions and settings."""
    B = next(iter(times.values())).shape[0]
    nulls = {name: jnp.broadcast_to(value, (B, *value.shape[1:])) for name, value in nulls.items()}
    return apply({**nulls, **noisy}, times)


def _guided(values: Arrays, nothing: Arrays, scale_B: jax.Array) -> Arrays:
    """o + s (o - o_0) by segment, of each example's s."""
    return {n: _extrapolated(value, nothing[n], scale_B) for n, value in values.items()}


def _extrapolated(value: jax.Array, base: jax.Array, scale_B: jax.Array) -> jax.Array:
    return value + scale_B.reshape((-1,) + (1,) * (value.ndim - 1)) * (value - base)


def _repeated(value: jax.Array, draws: int) -> jax.Array:
    return value if draws == 1 else jnp.repeat(value, draws, axis=0)
