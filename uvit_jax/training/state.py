"""The state of a run: one pytree with everything that a step changes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uvit_jax.models.model import Model
from uvit_jax.parallel.sharding import shardings


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


def init_state(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """A fresh state, born sharded over `mesh`, so that no device ever holds the whole of it.

    Args:
      optimizer: as `optimizer.make_optimizer` makes it.
      key: a typed PRNG key, split into that of the parameters and that of the run.

    Returns:
      (state, its shardings).
    """
    _, where = abstract_state(model, optimizer, mesh)
    init = functools.partial(initial_state, model.init, optimizer)
    return jax.jit(init, out_shardings=where)(key), where


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """What `init_state` returns, with shapes in place of arrays; nothing runs."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(functools.partial(initial_state, model.init, optimizer), key)
    return shapes, shardings(shapes, mesh)


def initial_state(
    init: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """The state before the first step, with the parameters `init(key)`, which are its average."""
    init_key, run_key = jax.random.split(key)
    params = init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=run_key,
    )
