import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion import guidance
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError

B = 3
KEYS = jax.random.split(jax.random.key(0), 4)
X = {"image": jax.random.normal(KEYS[0], (B, 2, 2, 4)), "text": jax.random.normal(KEYS[1], (B, 5))}
CONDITIONS = {"label": jnp.arange(B), "context": jax.random.normal(KEYS[2], (B, 6))}
NULL = {"label": jnp.full((1,), 10), "context": jax.random.normal(KEYS[3], (1, 6))}
T = jnp.array([100.0, 500.0, 900.0])


class Network:
    """A function of everything it is given, different for each example, that counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, conditions):
        self.batches.append(t.shape[0])
        context = jnp.sin(conditions["context"]).sum(1) * (1 + conditions["label"])
        image = jnp.tanh(x["image"] * context[:, None, None, None] + t[:, None, None, None] / 1000)
        return {"image": image, "text": jnp.tanh(x["text"] * context[:, None]), "unasked": t}


def null():
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (B, *leaf.shape[1:])), NULL)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def two_calls(scale):
    network = Network()
    cond, uncond = network(X, T, CONDITIONS), network(X, T, null())
    return {n: cond[n] + scale * (cond[n] - uncond[n]) for n in X}


def test_one_doubled_batch_equals_two_calls():
    network = Network()
    ours = guidance.guided(network, CONDITIONS, NULL, 1.5)(X, T)
    assert network.batches == [2 * B]
    assert_close(ours, two_calls(1.5))
    assert_close(guidance.guided(network, CONDITIONS, null(), jnp.float32(1.5))(X, T), ours)


def test_scale_zero_is_the_conditional_at_the_price_of_the_conditional():
    network = Network()
    ours = guidance.guided(network, CONDITIONS, NULL, 0.0)(X, T)
    assert network.batches == [B]
    assert_close({n: ours[n] for n in X}, two_calls(0.0))
    traced = guidance.guided(network, CONDITIONS, NULL, jnp.float32(0.0))(X, T)
    assert_close(traced, two_calls(0.0))


@pytest.mark.parametrize("name", ["vp_linear", "ddpm_linear", "rectified_flow"])
def test_interval_switches_guidance_off_outside(name):
    schedule = make(ScheduleConfig(name=name))
    times = schedule.network_time(jnp.array([0.2, 0.3, 0.71]))
    network = Network()
    cond = network(X, times, CONDITIONS)
    always = guidance.guided(network, CONDITIONS, NULL, 2.0)(X, times)
    limited = guidance.guided(
        network, CONDITIONS, NULL, 2.0, schedule=schedule, interval=(0.3, 0.7)
    )
    ours = limited(X, times)
    for n in X:
        np.testing.assert_allclose(ours[n][0], cond[n][0], rtol=1e-6)
        np.testing.assert_allclose(ours[n][1], always[n][1], rtol=1e-6)
        np.testing.assert_allclose(ours[n][2], cond[n][2], rtol=1e-6)
        assert not np.allclose(always[n], cond[n])


def test_channels_limit_guidance_to_the_first():
    network = Network()
    ours = guidance.guided(network, CONDITIONS, NULL, 1.5, channels=3)(X, T)["image"]
    np.testing.assert_allclose(ours[..., :3], two_calls(1.5)["image"][..., :3], rtol=1e-5)
    np.testing.assert_array_equal(ours[..., 3:], network(X, T, CONDITIONS)["image"][..., 3:])


def test_any_number_of_alternatives():
    network = Network()
    third = {"label": jnp.full((B,), 4), "context": CONDITIONS["context"]}
    outputs = guidance.evaluate(network, X, T, [CONDITIONS, NULL, third])
    for ours, conditions in zip(outputs, [CONDITIONS, null(), third], strict=True):
        expected = network(X, T, conditions)
        assert_close(ours, {n: expected[n] for n in X})


def test_misuse_is_told():
    with pytest.raises(UvitError, match="needs the schedule"):
        guidance.guided(Network(), CONDITIONS, NULL, 1.0, interval=(0.2, 0.8))
    with pytest.raises(UvitError, match="ordered"):
        guidance.guided(Network(), CONDITIONS, NULL, 1.0, interval=(0.8, 0.2))
    with pytest.raises(UvitError, match="does not fit a batch of 3"):
        guidance.guided(Network(), CONDITIONS, jax.tree.map(lambda c: c[:2], null()), 1.0)(X, T)
    with pytest.raises(UvitError, match="structure"):
        guidance.guided(Network(), CONDITIONS, {"label": NULL["label"]}, 1.0)(X, T)


def test_levels_are_guided_each_by_its_own_scale():
    """v_0 + s_r (v_ref - v_0) + s_t (v_ref,text - v_ref), two levels in one batch and the third
    by a network of its own; what only a Python 0 asks for is not evaluated."""
    network, bare = Network(), Network()
    references = {"label": CONDITIONS["label"], "context": NULL["context"]}
    levels = [(network, CONDITIONS), (network, references), (bare, NULL)]
    all_, some, none = (
        network(X, T, c) for c in (CONDITIONS, null() | {"label": CONDITIONS["label"]}, null())
    )
    for s_t, s_r, batches in (
        (1.5, 2.5, ([2 * B], [B])),
        (1.5, 0.0, ([2 * B], [])),
        (0.0, 2.5, ([2 * B], [B])),
        (0.0, 0.0, ([B], [])),
    ):
        network.batches, bare.batches = [], []
        ours = guidance.guided_by_levels(levels, [s_t, s_r])(X, T)
        assert (network.batches, bare.batches) == batches
        for n in X:
            text, ref, nothing = all_[n], some[n], none[n]
            expected = nothing + (1 + s_r) * (ref - nothing) + (1 + s_t) * (text - ref)
            np.testing.assert_allclose(ours[n], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UvitError, match="2 scales go with 3 levels, got 2"):
        guidance.guided_by_levels(levels[:2], [1.0, 1.0])
