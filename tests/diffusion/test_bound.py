"""The variational bound's terms against the papers' formulas, and against the exact bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from uvit_jax.config import parse
from uvit_jax.diffusion import bound
from uvit_jax.diffusion.objective import ObjectiveConfig, corrupt, loss
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError

BETA = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETA)
BEFORE = np.concatenate([[1.0], BAR[:-1]])


def at_step(n, prediction="eps", count=6, seed=0):
    """A batch at step n, float64: x0, x_t, and a poor network's x0, prediction, target, range."""
    rng = np.random.default_rng(seed)
    x0, eps, error = rng.normal(size=(3, count, 5))
    x0 = np.clip(x0 * 0.7, -1, 1)
    x0[0, :2] = [-1, 1]
    alpha, sigma = BAR[n - 1] ** 0.5, (1 - BAR[n - 1]) ** 0.5
    x_t = alpha * x0 + sigma * eps
    wrong = eps + 0.1 * error
    wrong_x0 = (x_t - sigma * wrong) / alpha
    said = {"eps": wrong, "x0": wrong_x0, "v": alpha * wrong - sigma * wrong_x0}[prediction]
    truth = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
    return x0, x_t, wrong_x0, said, truth, rng.uniform(-1, 1, size=x0.shape)


@functools.partial(jax.jit, static_argnums=1)
def terms(n, prediction, x0, said, truth, raw):
    schedule = make(ScheduleConfig(name="ddpm_linear"))
    step = bound.reverse_step(schedule, prediction, x0, jnp.full(len(x0), n / 1000))
    return bound.bits(said, raw, truth, step)


def ours(n, prediction, *arrays):
    return terms(n, prediction, *(np.asarray(a, np.float32) for a in arrays))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_terms_match_the_paper(prediction):
    """Ho et al. 2020, eqs. 5, 7 and 13, in their own symbols, float64."""
    for n in (2, 3, 40, 700, 1000):
        x0, x_t, wrong_x0, said, truth, raw = at_step(n, prediction)
        b, bar, before = BETA[n - 1], BAR[n - 1], BEFORE[n - 1]
        tilde = (1 - before) / (1 - bar) * b
        variance = np.exp((raw + 1) / 2 * np.log(b) + (1 - raw) / 2 * np.log(tilde))

        def mean(x, x_t=x_t, b=b, bar=bar, before=before):
            now = np.sqrt(1 - b) * (1 - before) / (1 - bar) * x_t
            return now + np.sqrt(before) * b / (1 - bar) * x

        kl = (tilde + (mean(x0) - mean(wrong_x0)) ** 2) / (2 * variance) - 0.5
        kl = (kl + 0.5 * np.log(variance / tilde)).mean(1) / np.log(2)
        np.testing.assert_allclose(ours(n, prediction, x0, said, truth, raw), kl, rtol=2e-3)

    x0, x_t, wrong_x0, said, truth, raw = at_step(1, prediction)
    tilde = (1 - BAR[0]) / (1 - BAR[1]) * BETA[1]  # that of the second step
    std = np.exp((raw + 1) / 4 * np.log(BETA[0]) + (1 - raw) / 4 * np.log(tilde))
    normal = scipy.stats.norm(wrong_x0, std)
    upper = np.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
    lower = np.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255))
    nll = -np.log2(upper - lower).mean(1)
    np.testing.assert_allclose(ours(1, prediction, x0, said, truth, raw), nll, rtol=1e-3)


def test_the_likelihood_is_a_distribution_also_far_out():
    likelihood, levels = jax.jit(bound.log_likelihood), np.linspace(-1, 1, 256, dtype=np.float32)
    for mean in (-1.3, 0.0, 0.4, 2.0):
        for log_variance in (-9.0, -4.0, 0.0):
            masses = likelihood(levels, mean, log_variance)
            np.testing.assert_allclose(np.exp(masses, dtype=np.float64).sum(), 1, atol=2e-4)
    far = jax.jit(jax.value_and_grad(bound.log_likelihood, argnums=1))
    for x0 in (-0.5, 0.5):  # 150 standard deviations on either side
        value, slope = far(x0, 2 * x0 + np.sign(x0) / 255, -11.5)
        expected = scipy.stats.norm.logpdf(0.5 * np.exp(5.75)) - np.log(0.5 * np.exp(5.75))
        assert np.isfinite(slope) and abs(value / expected - 1) < 1e-2


def test_terms_vanish_for_the_true_reverse_step():
    """With the true noise and the posterior variance, every term but the last is 0."""
    for n in (2, 10, 500, 1000):
        x0, _, _, _, truth, raw = at_step(n)
        assert np.abs(ours(n, "eps", x0, truth, truth, -np.ones_like(raw))).max() < 1e-6
        # Far from the data the two ends of the range are one, and the range says nothing.
        assert n > 10 or ours(n, "eps", x0, truth, truth, raw).min() > 1e-5


def learned(**kwargs):
    return parse(ObjectiveConfig, {"schedule": {"name": "ddpm_linear"}} | kwargs)


def test_the_bound_teaches_the_variance_and_the_simple_loss_the_mean():
    config, key = learned(), jax.random.key(0)
    clean = {"image": jnp.clip(0.5 * jax.random.normal(key, (64, 2, 2, 3)), -1, 1)}
    both = corrupt(key, clean, config, learned_range=["image"])
    plain = corrupt(key, clean, config)
    assert plain.steps == {} and both.steps["image"].gain.shape == (64,)
    np.testing.assert_array_equal(both.noisy["image"], plain.noisy["image"])
    value = 0.9 * both.targets["image"] + 0.1
    raw = jnp.sin(7 * value)

    def hybrid(value, raw):
        return loss({"image": jnp.concatenate([value, raw], -1)}, both)

    both_slopes = jax.jit(jax.value_and_grad(hybrid, (0, 1), has_aux=True))
    (total, metrics), slopes = both_slopes(value, raw)
    simple, slope = jax.jit(jax.value_and_grad(lambda v: loss({"image": v}, plain)[0]))(value)
    np.testing.assert_allclose(total, simple + metrics["vb/image"], rtol=1e-6)
    np.testing.assert_allclose(metrics["mse/image"], simple, rtol=1e-6)
    np.testing.assert_allclose(slopes[0], slope, rtol=1e-6)
    assert not jax.jit(jax.grad(lambda v: hybrid(v, raw)[1]["vb/image"]))(value).any()
    near = both.times["image"] < 0.3
    assert np.isfinite(slopes[1]).all() and near.any() and (slopes[1][near] != 0).all()

    # Whatever the batch is cut into.
    parts = [jax.tree.map(lambda a, i=i: a[i::4], (value, raw, both)) for i in range(4)]
    losses = [loss({"image": jnp.concatenate([v, r], -1)}, c)[0] for v, r, c in parts]
    np.testing.assert_allclose(np.mean(losses), total, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 10, 40])
def test_the_best_variance_is_that_of_the_true_reverse_step(n):
    """For Gaussian data p(x_s | x_t) is Gaussian; the bound is least at its very variance."""
    scale = 0.5
    rng = np.random.default_rng(0)
    x0, eps = scale * rng.normal(size=(1, 400_000)), rng.normal(size=(1, 400_000))
    bar, before, b = BAR[n - 1], BEFORE[n - 1], BETA[n - 1]
    x_t = bar**0.5 * x0 + (1 - bar) ** 0.5 * eps
    exact = (1 - bar) ** 0.5 / (bar * scale**2 + 1 - bar) * x_t  # E[eps | x_t]
    # Var[x_s | x_t] = V_s (1 - corr^2), V the variance of x_s.
    v_s, v_t = before * scale**2 + 1 - before, bar * scale**2 + 1 - bar
    best = v_s - (1 - b) * v_s**2 / v_t
    tilde = (1 - before) / (1 - bar) * b
    v = (np.log(best) - np.log(tilde)) / (np.log(b) - np.log(tilde))

    def term(v):
        return ours(n, "eps", x0, exact, eps, np.full(x0.shape, 2 * v - 1))[0]

    assert 0 < v < 1
    assert term(v) < min(term(v - 0.1), term(v + 0.1))
    # The least mean KL of two Gaussians: half the log of the ratio of their variances.
    np.testing.assert_allclose(term(v), 0.5 * np.log2(best / tilde), rtol=0.02)


@pytest.mark.parametrize(
    "config",
    [{}, {"schedule": {"name": "sd"}, "time_sampling": "uniform"}],
)
def test_without_steps_there_is_no_bound(config):
    clean, config = {"a": jnp.zeros((2, 3))}, parse(ObjectiveConfig, config)
    with pytest.raises(UvitError, match=r"learned_range=True.*'ddpm_linear' or 'sd'.*discrete"):
        corrupt(jax.random.key(0), clean, config, learned_range=["a"])


def test_an_output_without_its_second_half_is_refused():
    clean = {"image": jnp.zeros((2, 3))}
    c = corrupt(jax.random.key(0), clean, learned(), learned_range=["image"])
    with pytest.raises(UvitError, match=r"segment 'image'.*\(2, 3\), not \(2, 6\)"):
        loss({"image": jnp.zeros((2, 3))}, c)


def test_a_network_far_off_gets_finite_gradients():
    """The likelihood, which only the last step uses, leaves other gradients finite."""
    schedule = make(ScheduleConfig(name="ddpm_linear"))
    x0 = jnp.linspace(-1, 1, 4).reshape(2, 2)
    step = bound.reverse_step(schedule, "eps", x0, jnp.array([2, 1000]) / 1000)

    def loss(raw, value):
        return bound.bits(value, raw, jnp.zeros_like(x0), step).sum()

    for raw, value in ((300.0, 0.0), (3.0, 1e9), (-3.0, 1e9)):
        gradient = jax.grad(loss)(jnp.full_like(x0, raw), jnp.full_like(x0, value))
        assert np.isfinite(gradient).all(), (raw, value)
