"""The train step: a pure function of a state and a batch.

    state, metrics = step(state, batch)

Noise, times, dropped conditions and slots of references are sampled for the whole batch from
`fold_in(state.key, state.step)`: they do not depend on sharding, gradient accumulation or restarts.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.models.model import Model, Params
from uvit_jax.parallel.sharding import BATCH
from uvit_jax.training.dropping import drop_conditions, slot_words
from uvit_jax.training.loss import corrupt, diffusion_loss, guided_targets, nulls_of
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_step(
    model: Model,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    vocabulary: Vocabulary | None = None,
    teacher: tuple[Model, Params, ObjectiveConfig] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of a model, to be jitted.

    Args:
      config: of the run: its objective, and what is dropped, accumulated and averaged.
      optimizer, learning_rate: from `optimizer.make_optimizer`.
      vocabulary: of the run: the null value of features, and the token ids of subjects' names.
      teacher: the frozen network of `config.train.teacher`, and its objective.

    Returns:
      `step(state, batch) → (state, metrics)`. A batch holds every input of the model by name,
      leaves (B, …), noisy segments as clean data. The metrics are float32 scalars: loss, gradient
      norm, learning rate, and each noisy segment's part of the loss.
    """
    vocabulary = vocabulary or Vocabulary()
    words = slot_words(model.layout, vocabulary.tokenizer) if config.train.permute_slots else {}

    frozen, draws = _frozen(config), config.train.draws
    noisy = {s.name for s in model.layout.noisy}
    dropped = {name: share for name, share in config.train.drop.items() if name in noisy}
    nulls = nulls_of(model, vocabulary.null_features) if config.diffusion.guidance else None

    def loss(params, conditions, corrupted):
        params = frozen(jax.lax.stop_gradient, params)
        if teacher is not None:
            target = config.diffusion.target
            corrupted = guided_targets(*teacher, conditions, corrupted, nulls or {}, target)
        losses_B, metrics = diffusion_loss(
            model,
            params,
            conditions,
            corrupted,
            draws=draws,
            nulls=nulls,
            prediction=config.diffusion.prediction,
            guided=teacher is not None,
        )
        return jnp.mean(losses_B), metrics

    gradient = _accumulated(jax.value_and_grad(loss, has_aux=True), config.train.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        noise_key, drop_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        options = dict(given=config.train.given, dropped=dropped, draws=draws)
        conditions, corrupted = corrupt(noise_key, model, batch, config.diffusion, **options)
        conditions = drop_conditions(
            drop_key, model.layout, conditions, config.train, vocabulary.null_features, words
        )
        (value, metrics), grads = gradient(state.params, conditions, corrupted)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # Gradients of 0 do not stop weight decay.
        params = optax.apply_updates(state.params, frozen(jnp.zeros_like, updates))
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


def _frozen(config: RunConfig) -> Callable:
    """`frozen(function, tree)`: the parameters, or their updates, with `function` of those that a
    run does not train."""
    if not (config.text_pretraining.steps and config.text_pretraining.freeze):
        return lambda function, tree: tree

    def frozen(function, tree):
        def one(path, leaf):
            return function(leaf) if config.text_pretraining.is_encoder(path) else leaf

        return jax.tree_util.tree_map_with_path(one, tree)

    return frozen


def _accumulated(gradient: Callable, accumulate: int) -> Callable:
    """`gradient(params, *examples)` as the mean over `accumulate` microbatches."""
    if accumulate == 1:
        return gradient

    # Microbatch i has every accumulate-th example, so that each device uses its own.
    def cut(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0)

    def accumulated(params, *examples):
        def body(total, micro):
            return jax.tree.map(jnp.add, total, gradient(params, *micro)), None

        shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda a: a[:1], examples))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        total, _ = jax.lax.scan(body, zeros, jax.tree.map(cut, examples))
        return jax.tree.map(lambda a: a / accumulate, total)

    return accumulated


def jit_step(step: Callable, state_shardings: TrainState, mesh: Mesh) -> jax.stages.Wrapped:
    """`step` as a program over a mesh: the state sharded, the batch sharded, buffers donated.

    The trainer and the ahead-of-time compiler both use it, so what is compiled is what runs.
    """
    return jax.jit(
        step,
        in_shardings=(state_shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )
