"""References that are added to a trained model: their gates start closed, and open in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import uvit_jax
from tests.helpers import unidiffusers
from tests.helpers.weights import random_params
from uvit_jax.errors import UvitError
from uvit_jax.models.layers import CLOSED
from uvit_jax.models.presets import unified
from uvit_jax.tokens.layout import PRESENT

TIMES = {"image": jnp.array([500.0, 20.0]), "text": jnp.array([0.0, 300.0])}


@pytest.fixture(scope="module")
def trained():
    model = uvit_jax.build(unidiffusers.config("v1"))
    return model, random_params(model)


def added(config, **changes):
    """The model with references of 2 subjects, and its inputs."""
    model = uvit_jax.build(unified.add_references(config, 2) | changes)
    inputs = unidiffusers.inputs(model)
    inputs[PRESENT] = np.array([[[True], [True]], [[True], [False]]])
    return model, inputs


def grafted(model, trained_params, gate):
    """Random parameters with the trained ones, and gates of one value."""
    flat = traverse_util.flatten_dict(random_params(model, seed=1))
    flat |= traverse_util.flatten_dict(trained_params)
    for path in flat:
        if path[-1] == "gate":
            flat[path] = np.full_like(flat[path], gate)
    return traverse_util.unflatten_dict(flat)


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


@pytest.mark.parametrize("gate", [CLOSED, 0.0])
def test_closed_gates_leave_the_outputs_unchanged(trained, gate):
    plain, trained_params = trained
    model, inputs = added(unidiffusers.config("v1"))
    outputs = jitted(model)(grafted(model, trained_params, gate), inputs, TIMES)
    own = {name: inputs[name] for name in plain.layout.input_shapes}
    for name, value in jitted(plain)(trained_params, own, TIMES).items():
        np.testing.assert_allclose(outputs[name], value, atol=2e-5)


@pytest.mark.parametrize("gate", [1.0, -1.0])
def test_open_gates_are_plain_attention(trained, gate):
    _, trained_params = trained
    model, inputs = added(unidiffusers.config("v1"))
    config = unified.add_references(unidiffusers.config("v1"), 2)
    for name, segment in config["segments"].items():
        config["segments"][name] = dict(segment) | dict(gated=False)
    plain = uvit_jax.build(config)
    params = grafted(model, trained_params, gate)
    flat = traverse_util.flatten_dict(params)
    own = traverse_util.unflatten_dict({p: v for p, v in flat.items() if p[-1] != "gate"})
    outputs, wanted = jitted(model)(params, inputs, TIMES), jitted(plain)(own, inputs, TIMES)
    for name, value in wanted.items():
        np.testing.assert_allclose(outputs[name], value, atol=2e-5)
    # References are the same at every step, and are cached.
    cache = model.cache(params, inputs)
    given = {name: inputs[name] for name in model.layout.without_references.input_shapes}
    cached = model.apply(params, given, TIMES, cache=cache)
    np.testing.assert_allclose(cached["image"], outputs["image"], atol=2e-5)


def test_closed_gates_learn(trained):
    """Their gradient is that of gates just open."""
    _, trained_params = trained
    model, inputs = added(unidiffusers.config("v1"))

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.square(model.apply(p, inputs, TIMES)["image"]).mean())(params)

    closed, ajar = (
        traverse_util.flatten_dict(gradient(grafted(model, trained_params, gate)))
        for gate in (CLOSED, 1e-5)
    )
    for path, value in closed.items():
        assert np.isfinite(value).all(), path
        if path[-1] == "gate":
            assert np.abs(value).min() > 0, path
            np.testing.assert_allclose(value, ajar[path], rtol=0.02, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(subjects=0), "at least 1, got 0"),
        (dict(visibility="none"), "visibility='none'"),
        (dict(image="text"), "'text' is not a segment of patches"),
    ],
)
def test_impossible_references_are_refused(changes, message):
    config = unidiffusers.config("v1")
    with pytest.raises(UvitError, match=message):
        unified.add_references(config, **dict(subjects=1) | changes)
    again = unified.add_references(config, 1)
    with pytest.raises(UvitError, match="has references already"):
        unified.add_references(again, 1)
