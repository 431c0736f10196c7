"""Properties of the pure step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from experiments.cli import read_config
from tests.helpers.running import ROOT, TINY
from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.state import init_state
from uvit_jax.training.step import make_step

# What several tests learn with: nothing is dropped, and the average moves.
LEARNING = {"train.drop.label": 0.0, "train.ema_decay": 0.9, "optimizer.learning_rate": 1e-2}


@functools.cache
def fresh(model):
    """A state of the model, the same whatever the rates."""
    run = parse_run(read_config(str(ROOT / TINY), {}))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer, _ = make_optimizer(run.optimizer, run.train)
    return init_state(model, optimizer, jax.random.key(0), mesh)[0]


def setup(**overrides):
    """(run, model, state, batch, step); the same overrides give the same compiled step."""
    return _setup(tuple(overrides.items()))


@functools.cache
def _setup(overrides):
    run = parse_run(read_config(str(ROOT / TINY), dict(overrides)))
    model = uvit_jax.build(run.model)
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    state = fresh(model)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (16, 16, 16, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 128, 16)),
    }
    return run, model, state, batch, jax.jit(make_step(model, run, optimizer, rate))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_microbatches_equal_the_full_batch():
    *_, state, batch, whole = setup()
    *_, parts = setup(**{"train.accumulate": 4})
    state = dataclasses.replace(state, step=jnp.int32(9))  # past the warm-up: something is learned
    one, metrics = whole(state, batch)
    other, metrics_in_parts = parts(state, batch)
    close(metrics, metrics_in_parts, rtol=1e-5)
    # Adam divides by the gradient's size, which enlarges rounding where the gradient is tiny.
    close(one.params, other.params, atol=1e-5)


def test_a_learned_range_is_trained_with_the_bound():
    learned = {
        "model.segments.image.learned_range": True,
        "diffusion.schedule.name": "ddpm_linear",
    }
    *_, state, batch, whole = setup(**learned)
    *_, parts = setup(**learned, **{"train.accumulate": 4})
    _, metrics = whole(state, batch)
    assert jnp.allclose(metrics["loss"], metrics["mse/image"] + metrics["vb/image"])
    assert metrics["vb/image"] > 0
    close(metrics, parts(state, batch)[1], rtol=1e-4)
    with pytest.raises(UvitError, match=r"learned_range=True .* not 'vp_linear'"):
        setup(**{"model.segments.image.learned_range": True})


def test_the_step_is_a_function_of_state_and_batch_alone():
    *_, state, batch, step = setup()
    first, again = step(state, batch), step(state, batch)
    key = jax.tree.map(lambda x: x, first[0].key)
    assert jnp.array_equal(jax.random.key_data(key), jax.random.key_data(state.key))
    for a, b in zip(jax.tree.leaves(first[1]), jax.tree.leaves(again[1]), strict=True):
        assert a == b


def test_dropped_conditions_are_the_null_class():
    """With all labels dropped, which labels there were makes no difference; with none, it does."""
    for overrides, same in (({"train.drop.label": 1.0}, True), (LEARNING, False)):
        *_, state, batch, step = setup(**overrides)
        one = step(state, batch)[1]["loss"]
        other = step(state, {**batch, "label": jnp.flip(batch["label"])})[1]["loss"]
        assert bool(one == other) == same


def test_ema_follows_its_recursion():
    *_, state, batch, step = setup(**LEARNING)
    expected = state.ema
    for _ in range(3):
        decay = min(0.9, (1 + int(state.step)) / (10 + int(state.step)))
        state, _ = step(state, batch)
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
    close(state.ema, expected, rtol=1e-5, atol=1e-7)


def test_the_learning_rate_warms_up_and_decays():
    run = parse_run(read_config(str(ROOT / TINY), {"optimizer.schedule": "cosine"}))
    _, rate = make_optimizer(run.optimizer, run.train)
    values = np.array([float(rate(s)) for s in range(21)])
    assert values[0] == 0 and np.isclose(values[5], 1e-3) and np.isclose(values[20], 0, atol=1e-9)
    assert (np.diff(values[:6]) > 0).all() and (np.diff(values[5:]) < 0).all()


def test_training_lowers_the_loss_of_a_fixed_problem():
    *_, state, batch, step = setup(**LEARNING)
    batch = jax.tree.map(lambda a: a[:1].repeat(16, axis=0), batch)
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
