import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.config import parse
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError

NAMES = ["vp_linear", "sd", "ddpm_linear", "cosine", "rectified_flow"]
VP = NAMES[:4]
# Not on the steps of the discrete schedules, whose log alpha has kinks there.
TIMES = np.array([0.00123, 0.01234, 0.10056, 0.35041, 0.50012, 0.77777, 0.95003, 0.99042])


def schedule(name, **kwargs):
    return make(ScheduleConfig(name=name, **kwargs))


@pytest.mark.parametrize("name", VP)
def test_variance_is_preserved(name):
    s = schedule(name)
    t = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(s.alpha(t) ** 2 + s.sigma(t) ** 2, 1, rtol=1e-12)
    t = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(s.alpha(t) ** 2 + s.sigma(t) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_decreases_and_its_inverse_inverts(name):
    s = schedule(name)
    t = np.linspace(*s.log_snr_range[::-1], 2003)
    assert (np.diff(s.log_snr(t)) > 0).all()
    np.testing.assert_allclose(s.inverse_log_snr(s.log_snr(t)), t, rtol=1e-10)
    np.testing.assert_allclose(s.half_log_snr(t), np.log(s.alpha(t) / s.sigma(t)), rtol=1e-9)
    t = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(s.inverse_log_snr(s.log_snr(t)), t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name):
    s = schedule(name)
    t = np.float32(np.concatenate([[1e-7, 1e-6, 1e-5, 1e-4, 1e-3], TIMES]))
    for method in ("alpha", "sigma", "half_log_snr", "f", "g2", "d_alpha_dt", "d_sigma_dt"):
        exact = getattr(s, method)(np.float64(t))
        ours = getattr(s, method)(jnp.asarray(t))
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, rtol=3e-4, atol=1e-6, err_msg=method)
    assert (s.sigma(jnp.float32([1e-12, 1e-8])) > 0).all()
    assert s.alpha(jnp.bfloat16(0.5)).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name):
    s, h = schedule(name), 1e-6

    def difference(f):
        return (f(TIMES + h) - f(TIMES - h)) / (2 * h)

    np.testing.assert_allclose(s.d_alpha_dt(TIMES), difference(s.alpha), rtol=1e-5)
    np.testing.assert_allclose(s.d_sigma_dt(TIMES), difference(s.sigma), rtol=1e-5)
    np.testing.assert_allclose(s.f(TIMES), difference(lambda t: np.log(s.alpha(t))), rtol=1e-5)
    g2 = difference(lambda t: s.sigma(t) ** 2) - 2 * s.f(TIMES) * s.sigma(TIMES) ** 2
    np.testing.assert_allclose(s.g2(TIMES), g2, rtol=1e-5)
    autodiff = jax.vmap(jax.grad(s.sigma))(jnp.float32(TIMES))
    np.testing.assert_allclose(autodiff, s.d_sigma_dt(TIMES), rtol=1e-3)


def test_vp_linear_integrates_its_beta():
    s = schedule("vp_linear", beta_min=0.2, beta_max=15.0)
    grid = np.linspace(0, 1, 100_001)
    beta = 0.2 + grid * (15.0 - 0.2)
    integral = np.concatenate([[0], np.cumsum((beta[1:] + beta[:-1]) / 2 * np.diff(grid))])
    np.testing.assert_allclose(s.alpha(grid), np.exp(-integral / 2), rtol=1e-10)
    np.testing.assert_allclose(s.g2(grid), beta, rtol=1e-12)
    assert s.network_time(0.5) == 499.5


@pytest.mark.parametrize(
    ("name", "betas", "first"),
    [
        ("sd", np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 1),
        ("ddpm_linear", np.linspace(1e-4, 0.02, 1000), 0),
    ],
)
def test_discrete_schedules_are_the_published_ones(name, betas, first):
    s, n = schedule(name), np.arange(1, 1001)
    product = np.cumprod(1 - betas)
    np.testing.assert_allclose(s.alpha(n / 1000) ** 2, product, rtol=1e-11)
    np.testing.assert_allclose(s.alpha(jnp.float32(n / 1000)) ** 2, product, rtol=1e-5)
    # The network's times are whole numbers, however n / 1000 * 1000 is rounded in float32.
    np.testing.assert_array_equal(s.network_time(jnp.float32(n) / 1000), n - 1 + first)
    # The step's own beta is the slope that ends there.
    np.testing.assert_allclose(s.g2(n / 1000), -1000 * np.log1p(-betas), rtol=1e-9)
    np.testing.assert_allclose(s.g2(jnp.float32(n) / 1000), s.g2(n / 1000), rtol=1e-6)
    # log alpha is linear in between, and nothing happens before time begins.
    np.testing.assert_allclose(
        s.log_alpha((n[:-1] + 0.25) / 1000),
        0.75 * s.log_alpha(n[:-1] / 1000) + 0.25 * s.log_alpha(n[1:] / 1000),
        rtol=1e-10,
    )
    assert s.alpha(0.0) == 1 and s.discrete_steps == 1000 and s.t_min == 1e-3


def test_cosine_is_the_published_one():
    s, t = schedule("cosine"), np.linspace(0, 0.99, 100)

    def square(t):
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    np.testing.assert_allclose(s.alpha(t) ** 2, square(t) / square(0), rtol=1e-2)
    np.testing.assert_allclose(s.alpha(t[:90]) ** 2, square(t[:90]) / square(0), rtol=1e-3)
    # beta of the last of 1000 steps, clipped at 0.999
    np.testing.assert_allclose(s.alpha(1.0) ** 2, 0.001 * square(0.999) / square(0), rtol=1e-6)


def test_rectified_flow_and_its_shift():
    s, plain = schedule("rectified_flow", shift=3.0), schedule("rectified_flow")
    u = np.linspace(0, 1, 11)
    np.testing.assert_array_equal(plain.warp(u), u)
    np.testing.assert_allclose(s.unwarp(s.warp(u)), u, atol=1e-12)
    # Esser et al. 2024, section 5.3.2: the shift subtracts 2 log(shift) from log-SNR.
    inner = u[1:-1]
    np.testing.assert_allclose(
        s.log_snr(s.warp(inner)), plain.log_snr(inner) - 2 * np.log(3.0), atol=1e-12
    )
    assert s.network_time(0.5) == 500
    assert schedule("rectified_flow", time_scale=1.0).network_time(0.5) == 0.5


def test_equal_configs_make_one_schedule():
    assert make(ScheduleConfig(name="sd")) is make(parse(ScheduleConfig, {"name": "sd"}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": "cosine", "beta_min": 0.1}, "beta_min.*drop"),
        ({"name": "sd", "time_scale": 1.0}, "fixed"),
        ({"name": "vp_linear", "shift": 3.0}, "rectified_flow"),
        ({"name": "rectified_flow", "shift": 0.0}, "positive"),
        ({"name": "sd", "beta_max": 2.0}, "0 < min <= max"),
    ],
)
def test_bad_configs_are_refused(bad, message):
    with pytest.raises(UvitError, match=message):
        parse(ScheduleConfig, bad)
