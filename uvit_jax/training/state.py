"""The state of a run: one pytree with everything that a step changes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import shardings
from uvit_jax.training.config import OptimizerConfig, TrainConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """step: int32 (), optimizer steps done. params, ema: parameters and their average.
    opt_state: optax's. key: the PRNG key that every step's randomness is folded from."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    key: jax.Array


def make_optimizer(
    config: OptimizerConfig, train: TrainConfig
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with clipping, and its learning rate as a function of the step.

    All is computed in float32; only the first moment may be kept in another dtype between steps.
    """
    rate = config.learning_rate
    after = optax.constant_schedule(rate)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(1, train.steps - config.warmup_steps))
    warmup = optax.linear_schedule(0.0, rate, config.warmup_steps)
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps])
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=jnp.dtype(config.mu_dtype),
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, adamw), schedule


def init_state(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """A fresh state, born sharded over `mesh`, so that no device ever holds the whole of it.

    Args:
      optimizer: as `make_optimizer` makes it.
      key: a typed PRNG key, split into that of the parameters and that of the run.

    Returns:
      (state, its shardings).
    """
    _, where = abstract_state(model, optimizer, mesh)
    init = functools.partial(_init, model, optimizer)
    return jax.jit(init, out_shardings=where)(key), where


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """What `init_state` returns, with shapes in place of arrays; nothing runs."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(functools.partial(_init, model, optimizer), key)
    return shapes, shardings(shapes, mesh)


def _init(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    init_key, run_key = jax.random.split(key)
    params = model.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=run_key,
    )
