"""Optimizers by name: AdamW, and Muon for the matrices of the blocks."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from uvit_jax.errors import UvitError
from uvit_jax.parallel.sharding import path_string
from uvit_jax.training.run_config import OptimizerConfig, TrainConfig

MATRICES = (
    # Path; axes of a matrix's inputs and outputs. Queries, keys and values are three.
    (r"(attention/qkv|cross/kv)/kernel$", -4, (-2, -1)),
    (r"cross/q/kernel$", -3, (-2, -1)),
    (r"(attention|cross)/out/kernel$", (-3, -2), -1),
    (r"(mlp/fc1|mlp/fc2|skip)/kernel$", -2, -1),
)
UPDATE_RMS = 0.2  # of AdamW's updates, so that both take the same rates (Liu et al. 2025, §2.2)


def make_optimizer(
    config: OptimizerConfig, train: TrainConfig
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer with clipping, and its learning rate as a function of the step.

    All is kept in float32, but for the first moment where `mu_dtype` says otherwise.
    """
    rate = config.learning_rate
    after = optax.constant_schedule(rate)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(1, train.steps - config.warmup_steps))
    warmup = optax.linear_schedule(0.0, rate, config.warmup_steps)
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps])
    shared = dict(
        eps=config.eps, weight_decay=config.weight_decay, mu_dtype=jnp.dtype(config.mu_dtype)
    )
    if config.name == "muon":
        update = muon(
            schedule,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=UPDATE_RMS,
            **shared,
        )
    else:
        update = optax.adamw(schedule, b1=config.b1, b2=config.b2, **shared)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, update), schedule


def matrices(params: Any) -> Any:
    """Which axes of each parameter are a matrix that Muon is to move, None where AdamW is: all
    outside the backbone, adaLN's modulations, biases, scales. Axes not named are so many matrices,
    such as a stack's layers.

    Raises:
      UvitError: if none is.
    """

    def one(path, leaf):
        name = path_string(path)
        for pattern, inputs, outputs in MATRICES:
            if name.startswith("backbone/") and re.search(pattern, name):
                return MuonDimensionNumbers(inputs, outputs)
        return None

    found = jax.tree_util.tree_map_with_path(one, params)
    if jax.tree.leaves(params) and not jax.tree.leaves(found):
        raise UvitError(
            "config.optimizer.name='muon' finds no matrix of the blocks in this model; take "
            "'adamw', or name its kernels in MATRICES of training/optimizer.py"
        )
    return found
