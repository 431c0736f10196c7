import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import mixture
from uvit_jax.diffusion import process
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError

PREDICTIONS = get_args(process.Prediction)
NAMES = ["vp_linear", "sd", "ddpm_linear", "cosine", "rectified_flow"]
TIMES = jnp.array([0.011, 0.2, 0.5, 0.8])


def pair(key=0, dtype=jnp.float32):
    """Clean data and noise of two segments of different rank, and each segment's times."""
    keys = jax.random.split(jax.random.key(key), 4)
    shapes = {"image": (4, 3, 3, 2), "text": (4, 5)}
    x0 = {
        n: jax.random.normal(k, s, dtype) for (n, s), k in zip(shapes.items(), keys, strict=False)
    }
    eps = {
        n: jax.random.normal(k, s, dtype)
        for (n, s), k in zip(shapes.items(), keys[2:], strict=True)
    }
    return x0, eps, {"image": TIMES, "text": TIMES[::-1]}


def assert_close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


@pytest.mark.parametrize("name", NAMES)
def test_every_conversion_is_exact(name):
    s = make(ScheduleConfig(name=name))
    x0, eps, t = pair()
    x_t = process.add_noise(s, x0, eps, t)
    known = {p: process.combine(p, s, x0, eps, t) for p in PREDICTIONS}
    assert_close(known["x0"], x0)
    assert_close(known["eps"], eps)
    for source, target in itertools.product(PREDICTIONS, repeat=2):
        ours = process.convert(known[source], x_t, t, s, source, target)
        assert_close(ours, known[target], rtol=2e-3, atol=5e-3, err_msg=f"{source} to {target}")


def test_each_segment_has_its_own_time():
    s = make(ScheduleConfig())
    x0, eps, t = pair()
    x_t = process.add_noise(s, x0, eps, t)
    for name in x0:
        alone = process.add_noise(s, x0[name], eps[name], t[name])
        np.testing.assert_array_equal(x_t[name], alone)
        first = s.alpha(t[name][1]) * x0[name][1] + s.sigma(t[name][1]) * eps[name][1]
        np.testing.assert_allclose(alone[1], first, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_velocity_is_the_derivative_of_the_path(name):
    s = make(ScheduleConfig(name=name))
    t = np.array([0.0123, 0.3004, 0.9006])
    x0, eps, h = np.array([1.3, -0.4, 0.2]), np.array([0.5, 0.9, -1.1]), 1e-6

    def path(t):
        return s.alpha(t) * x0 + s.sigma(t) * eps

    velocity = process.combine("velocity", s, jnp.float32(x0), jnp.float32(eps), jnp.float32(t))
    np.testing.assert_allclose(velocity, (path(t + h) - path(t - h)) / (2 * h), rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_gradient_of_the_log_density(name):
    s = make(ScheduleConfig(name=name))
    x = jax.random.normal(jax.random.key(0), (32, 2))
    for time in (0.05, 0.4, 0.9):
        t = jnp.float32(time)
        alpha, sigma = s.alpha(t), s.sigma(t)
        exact = jax.vmap(jax.grad(lambda x: mixture.log_density(x, alpha, sigma)))(x)  # noqa: B023
        for source, value in [
            ("eps", mixture.expected_eps(x, alpha, sigma)),
            ("x0", mixture.expected_x0(x, alpha, sigma)),
        ]:
            ours = process.convert(value, x, t, s, source, "score")
            np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_conversions_are_finite_at_both_ends(name):
    s = make(ScheduleConfig(name=name))
    x0, eps, _ = pair()
    for t in (jnp.float32(0.0), jnp.float32(1.0)):
        x_t = process.add_noise(s, x0, eps, t)
        for source, target in itertools.product(PREDICTIONS, repeat=2):
            value = process.combine(source, s, x0, eps, t)
            out = process.convert(value, x_t, t, s, source, target)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)), (source, target)


def test_rectified_flow_velocity_is_exact_at_both_ends():
    s = make(ScheduleConfig(name="rectified_flow"))
    x0, eps, _ = pair()
    for t in (jnp.float32(0.0), jnp.float32(1.0)):
        x_t = process.add_noise(s, x0, eps, t)
        velocity = process.combine("velocity", s, x0, eps, t)
        assert_close(velocity, jax.tree.map(lambda a, b: b - a, x0, eps), rtol=1e-6)
        for target, exact in (("x0", x0), ("eps", eps)):
            ours = process.convert(velocity, x_t, t, s, "velocity", target)
            assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def test_half_precision_is_promoted():
    s = make(ScheduleConfig())
    x0, eps, t = pair(dtype=jnp.bfloat16)
    noisy = process.add_noise(s, x0, eps, t)
    assert {leaf.dtype for leaf in jax.tree.leaves(noisy)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoiser_recovers_data_and_noise(prediction):
    s = make(ScheduleConfig(name="cosine"))
    x0, eps, _ = pair()
    t = jnp.float32(0.4)
    seen = []

    def predict(x, network_time):
        seen.append(network_time)
        return process.combine(prediction, s, x0, eps, t) | {"other": jnp.zeros(3)}

    denoised = process.denoiser(predict, s, prediction)(process.add_noise(s, x0, eps, t), t)
    assert_close(denoised.x0, x0, rtol=1e-3, atol=1e-4)
    assert_close(denoised.eps, eps, rtol=1e-3, atol=1e-4)
    assert denoised.log_variance_mix is None
    np.testing.assert_array_equal(seen[0], np.full(4, s.network_time(t)))


def test_clipping_keeps_x_t():
    s = make(ScheduleConfig())
    x0, eps, _ = pair()
    t = jnp.float32(0.4)
    x_t = process.add_noise(s, x0, eps, t)
    for quantile in (None, 0.8):
        denoise = process.denoiser(lambda *_: eps, s, "eps", clip=0.5, quantile=quantile)
        denoised = denoise(x_t, t)
        assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(denoised.x0)) <= 0.5
        assert_close(process.add_noise(s, *denoised[:2], t), x_t, rtol=1e-4, atol=1e-5)
    plain = process.denoiser(lambda *_: eps, s, "eps", clip=0.5)(x_t, t).x0
    assert_close(plain, jax.tree.map(lambda x: jnp.clip(x, -0.5, 0.5), x0), atol=1e-4)
    # Dynamic: the values below the threshold are all scaled by one factor.
    inside = jnp.abs(x0["text"]) <= jnp.quantile(jnp.abs(x0["text"]), 0.8, axis=1)[:, None]
    ratio = jnp.where(inside, denoised.x0["text"] / x0["text"], jnp.nan)
    np.testing.assert_allclose(np.nanmin(ratio, axis=1), np.nanmax(ratio, axis=1), rtol=1e-3)


def test_learned_range_is_split_off():
    s = make(ScheduleConfig(name="ddpm_linear"))
    x0, eps, _ = pair()
    t = jnp.float32(0.4)
    x_t = process.add_noise(s, x0, eps, t)

    def predict(x, _):
        return {n: jnp.concatenate([eps[n], jnp.full_like(eps[n], 0.5)], -1) for n in x}

    denoised = process.denoiser(predict, s, "eps", learned_range=True)(x_t, t)
    assert_close(denoised.eps, eps)
    assert_close(denoised.log_variance_mix, jax.tree.map(lambda e: np.full(e.shape, 0.75), eps))


def test_misuse_is_refused():
    s = make(ScheduleConfig())
    x0, eps, t = pair()
    with pytest.raises(UvitError, match="did you mean 'eps'"):
        process.denoiser(lambda x, t: x, s, "epsilon")(x0, jnp.float32(0.5))
    with pytest.raises(UvitError, match="'text'"):
        process.add_noise(s, x0, eps, {"image": t["image"]})
    with pytest.raises(UvitError, match=r"times of shape \(3,\)"):
        process.add_noise(s, x0, eps, jnp.zeros(3))
    with pytest.raises(UvitError, match="must return the shapes"):
        process.denoiser(lambda *_: {"image": eps["image"]}, s, "eps")(x0, jnp.float32(0.5))
    with pytest.raises(UvitError, match="needs clip"):
        process.denoiser(lambda x, t: x, s, "eps", quantile=0.9)
