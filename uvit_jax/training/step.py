"""The train step: a pure function of a state and a batch.

    state, metrics = step(state, batch)

Noise, times, dropped conditions and slots of references are drawn for the whole batch from
`fold_in(state.key, state.step)`: neither sharding nor gradient accumulation nor a restart changes
them.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from uvit_jax.diffusion import objective
from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import BATCH
from uvit_jax.sampling.conditions import null
from uvit_jax.training import dropping
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_step(
    model: Model,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    nulls: Mapping[str, np.ndarray] | None = None,
    slot_words: Mapping[str, tuple[int, ...]] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step for a model, to be jitted.

    Args:
      config: of the run: its objective, and what is dropped, accumulated and averaged.
      optimizer, learning_rate: as `optimizer.make_optimizer` makes them.
      nulls: those that the layout cannot know (see `conditions.nulls_of`).
      slot_words: the ids by which captions name subjects (see `dropping.slot_words`).

    Returns:
      `step(state, batch) → (state, metrics)`. A batch holds every input of the model by name,
      leaves (B, …), with noisy segments' clean data. The metrics are float32 scalars: loss, the
      gradient's norm, the learning rate, and each noisy segment's part of the loss.
    """
    layout = model.layout
    noisy = [s.name for s in layout.noisy]
    learned = [s.name for s in layout.noisy if s.learned_range]
    accumulate = config.train.accumulate

    def drop(key: jax.Array, batch: Batch) -> Batch:
        conditions = {name: batch[name] for name in layout.inputs_in(batch) if name not in noisy}
        for i, (name, share) in enumerate(sorted(config.train.drop.items())):
            value = conditions[name]
            dropped_B = jax.random.bernoulli(jax.random.fold_in(key, i), share, value.shape[:1])
            dropped = dropped_B.reshape(-1, *[1] * (value.ndim - 1))
            conditions[name] = jnp.where(dropped, null(layout, name, 1, nulls), value)
        key = jax.random.fold_in(key, len(config.train.drop))
        return dropping.in_training(key, layout, conditions, config.train, slot_words or {})

    def loss(params, conditions: Batch, corrupted: objective.Corrupted):
        times = {key: corrupted.network_times[key] for key in layout.time_keys}
        outputs = model.apply(params, {**conditions, **corrupted.noisy}, times)
        return objective.loss(outputs, corrupted)

    gradient = jax.value_and_grad(loss, has_aux=True)

    def mean_gradient(params, *examples):
        if accumulate == 1:
            return gradient(params, *examples)

        # Microbatch i takes every accumulate-th example, so each device keeps to its own.
        def cut(a: jax.Array) -> jax.Array:
            return jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0)

        def body(total, micro):
            return jax.tree.map(jnp.add, total, gradient(params, *micro)), None

        shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda a: a[:1], examples))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        total, _ = jax.lax.scan(body, zeros, jax.tree.map(cut, examples))
        return jax.tree.map(lambda a: a / accumulate, total)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        noise_key, drop_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        corrupted = objective.corrupt(
            noise_key,
            {name: batch[name] for name in noisy},
            config.diffusion,
            time_keys={s.name: s.time_key for s in layout.noisy},
            learned_range=learned,
        )
        (value, metrics), grads = mean_gradient(state.params, drop(drop_key, batch), corrupted)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = config.train.ema_decay
        if config.train.ema_warmup:
            decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            ema=optax.incremental_update(params, state.ema, 1 - decay),
            opt_state=opt_state,
        )
        metrics |= {
            "loss": value,
            "grad_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
        }
        return new, metrics

    return step


def jit_step(step: Callable, where: TrainState, mesh: Mesh) -> jax.stages.Wrapped:
    """`step` as a program over a mesh: the state in its place, the batch spread, memory reused.

    Trainer and ahead-of-time compiler both call this one, so what is compiled is what is run.
    """
    return jax.jit(
        step,
        in_shardings=(where, NamedSharding(mesh, BATCH)),
        out_shardings=(where, None),
        donate_argnums=0,
    )
