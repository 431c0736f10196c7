"""Guidance is a weighted sum of branches; branches of one network are one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.guidance import Branch, guided
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError

B = 3
KEYS = jax.random.split(jax.random.key(0), 4)
X = {"image": jax.random.normal(KEYS[0], (B, 2, 2, 4)), "text": jax.random.normal(KEYS[1], (B, 5))}
CONDITIONS = {"label": jnp.arange(B), "context": jax.random.normal(KEYS[2], (B, 6))}
NULL = {"label": jnp.full((1,), 10), "context": jax.random.normal(KEYS[3], (1, 6))}
T = jnp.array([100.0, 500.0, 900.0])
FLOW = make(ScheduleConfig(name="rectified_flow"))


class Network:
    """A function of all its inputs, different for each example, that records its batch sizes."""

    def __init__(self):
        self.batches = []

    def __call__(self, inputs, times):
        t = times["image"]
        self.batches.append(t.shape[0])
        context = jnp.sin(inputs["context"]).sum(1) * (1 + inputs["label"])
        context = context + times.get("other", 0.0) / 1000
        image = inputs["image"] * context[:, None, None, None] + t[:, None, None, None] / 1000
        text = jnp.tanh(inputs["text"] * context[:, None])
        return {"image": jnp.tanh(image), "text": text, "unused": t}


def null():
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, *leaf.shape[1:])), NULL)


def run(branches, t=T, **options):
    return guided(branches, schedule=FLOW, time_keys=["image"], **options)(X, t)


def classifier_free(network, scale, conditions=CONDITIONS, nulls=NULL):
    return [Branch(1 + scale, network, conditions), Branch(-scale, network, nulls)]


def one(conditions, t=T, **times):
    outputs = Network()({**X, **conditions}, {"image": t, **times})
    return {name: outputs[name] for name in X}


def two_calls(scale):
    conditional, unconditional = one(CONDITIONS), one(null())
    return {n: conditional[n] + scale * (conditional[n] - unconditional[n]) for n in X}


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_one_doubled_batch_equals_two_calls():
    network = Network()
    ours = run(classifier_free(network, 1.5))
    assert network.batches == [2 * B]
    assert_close(ours, two_calls(1.5))
    assert_close(run(classifier_free(network, jnp.float32(1.5), nulls=null())), ours)


def test_scale_zero_costs_one_evaluation():
    network = Network()
    ours = run(classifier_free(network, 0.0))
    assert network.batches == [B]
    assert_close(ours, two_calls(0.0))
    assert_close(run(classifier_free(network, jnp.float32(0.0))), two_calls(0.0))


@pytest.mark.parametrize("name", ["vp_linear", "ddpm_linear", "rectified_flow"])
def test_interval_switches_guidance_off_outside(name):
    schedule = make(ScheduleConfig(name=name))
    times = schedule.network_time(jnp.array([0.2, 0.3, 0.71]))
    branches = classifier_free(Network(), 2.0)
    always, limited = (
        guided(branches, schedule=schedule, time_keys=["image"], interval=i)(X, times)
        for i in ((0.0, 1.0), (0.3, 0.7))
    )
    conditional = one(CONDITIONS, times)
    for n in X:
        np.testing.assert_allclose(limited[n][0], conditional[n][0], rtol=1e-6)
        np.testing.assert_allclose(limited[n][1], always[n][1], rtol=1e-6)
        np.testing.assert_allclose(limited[n][2], conditional[n][2], rtol=1e-6)
        assert not np.allclose(always[n], conditional[n])


def test_channels_limit_guidance_to_the_first():
    ours = run(classifier_free(Network(), 1.5), channels={"image": 3})
    expected = two_calls(1.5)
    np.testing.assert_allclose(ours["image"][..., :3], expected["image"][..., :3], rtol=1e-5)
    np.testing.assert_array_equal(ours["image"][..., 3:], one(CONDITIONS)["image"][..., 3:])
    np.testing.assert_allclose(ours["text"], expected["text"], rtol=1e-5)


def test_any_number_of_branches_is_their_weighted_sum():
    """Two networks, three branches of one, weights by example, and a time of another segment."""
    network, other = Network(), Network()
    third = {"label": jnp.full((B,), 4), "context": CONDITIONS["context"]}
    weights = jnp.array([0.5, 1.0, 2.0])
    branches = [
        Branch(2.0, network, CONDITIONS, {"other": 0.0}),
        Branch(weights, network, third, {"other": 1.0}),
        Branch(-1.5, network, NULL, {"other": 0.5}),
        Branch(0.5 - weights, other, CONDITIONS, {"other": 0.25}),
    ]
    ours = run(branches)
    assert (network.batches, other.batches) == ([3 * B], [B])
    terms = [
        (2.0 * jnp.ones(B), one(CONDITIONS, other=jnp.zeros(B))),
        (weights, one(third, other=jnp.full(B, 1000.0))),
        (-1.5 * jnp.ones(B), one(null(), other=jnp.full(B, 500.0))),
        (0.5 - weights, one(CONDITIONS, other=jnp.full(B, 250.0))),
    ]
    for n in X:
        shape = (B,) + (1,) * (X[n].ndim - 1)
        expected = sum(w.reshape(shape) * o[n] for w, o in terms)
        np.testing.assert_allclose(ours[n], expected, rtol=1e-4, atol=1e-5)


def test_text_and_references_have_scales_of_their_own():
    """v_0 + s_r (v_ref - v_0) + s_t (v_ref,text - v_ref); a branch of weight 0 is not evaluated."""
    network, bare = Network(), Network()
    references = {"label": CONDITIONS["label"], "context": NULL["context"]}
    both, some, none = one(CONDITIONS), one(null() | {"label": CONDITIONS["label"]}), one(null())
    for s_t, s_r, batches in (
        (1.5, 2.5, ([2 * B], [B])),
        (1.5, 0.0, ([2 * B], [])),
        (0.0, 2.5, ([2 * B], [B])),
        (2.5, 2.5, ([B], [B])),
        (0.0, 0.0, ([B], [])),
    ):
        network.batches, bare.batches = [], []
        branches = [
            Branch(1 + s_t, network, CONDITIONS),
            Branch(s_r - s_t, network, references),
            Branch(-s_r, bare, NULL),
        ]
        ours = run(branches)
        assert (network.batches, bare.batches) == batches
        for n in X:
            expected = none[n] + (1 + s_r) * (some[n] - none[n]) + (1 + s_t) * (both[n] - some[n])
            np.testing.assert_allclose(ours[n], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("branches", "options", "message"),
    [
        ([], {}, "at least one branch"),
        (classifier_free(Network(), 1.0), dict(interval=(0.8, 0.2)), "interval.*ordered"),
        (classifier_free(Network(), 1.0), dict(channels={"image": 0}), "channels"),
        ([Branch(2.0, Network(), CONDITIONS)], {}, "sum to 1"),
        (
            classifier_free(Network(), 1.0, nulls=jax.tree.map(lambda c: c[:2], null())),
            {},
            "does not fit a batch of 3",
        ),
        (
            classifier_free(network := Network(), 1.0, nulls={"label": NULL["label"]}),
            {},
            "same inputs",
        ),
    ],
)
def test_impossible_branches_name_what_is_wrong(branches, options, message):
    with pytest.raises(UvitError, match=message):
        run(branches, **options)
