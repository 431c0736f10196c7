"""Samplers keep a network's errors small, or refuse: orders of convergence say nothing of them."""

import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from tests.helpers import mixture
from uvit_jax.diffusion import process
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.process import Prediction
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.diffusion.solvers.solve import SamplerConfig, sample, table_of
from uvit_jax.diffusion.solvers.stability import LIMIT
from uvit_jax.diffusion.solvers.table import Sampler
from uvit_jax.errors import UvitError
from uvit_jax.models.presets.uvit import preset
from uvit_jax.sampling.sampler import SampleConfig, make_sampler

SCHEDULES = ["vp_linear", "sd", "ddpm_linear", "cosine", "rectified_flow"]
VARIANTS = {name: dict(name=name) for name in get_args(Sampler) if name != "mean_flow"}
VARIANTS |= {
    f"{name} {method}": dict(name=name, method=method)
    for name, method in [
        ("dpm_solver", "singlestep"),
        ("dpm_solver_pp", "singlestep"),
        ("dpm_solver_pp", "multistep"),
    ]
}
VARIANTS |= {
    f"{name} {spacing}": dict(name=name, spacing=spacing)
    for name, spacing in [
        ("ddim", "time"),
        ("ddim", "log_snr"),
        ("euler", "log_snr"),
        ("heun", "time_quadratic"),
        ("dpm_solver", "time"),
        ("dpm_solver_pp", "log_snr"),
    ]
}
VARIANTS["ddim of eta 1"] = dict(name="ddim", eta=1.0)
VARIANTS["ddpm of the large variance"] = dict(name="ddpm", variance="large")

X = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
EXACT_X0, EXACT_EPS = jax.jit(mixture.expected_x0), jax.jit(mixture.expected_eps)


def largest(rows, schedule, prediction, error=0.01):
    """The largest number in samples of the mixture, of a network that errs by 1%: the table in
    numpy, by its documentation."""
    t = jnp.asarray(np.array([row.t for row in rows]), jnp.float32)
    a, b = process.coefficients(prediction, schedule, t)
    d = process.determinant(prediction, schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b, d, alpha, sigma = (np.asarray(v) for v in (a, b, d, alpha, sigma))
    form = "eps" if any(row.eps for row in rows) else "x0"
    rng = np.random.default_rng(2)
    x = y = X.astype(np.float64)
    past = [np.zeros_like(x)] * 2
    for i, row in enumerate(rows):
        clean, noise = EXACT_X0(y, alpha[i], sigma[i]), EXACT_EPS(y, alpha[i], sigma[i])
        p = a[i] * np.asarray(clean) + b[i] * np.asarray(noise)
        p = p + error * np.hypot(a[i], b[i]) * np.sign(np.sin(37 * y[:, ::-1]))
        out = {"x0": (b[i] * y - sigma[i] * p) / d[i], "eps": (alpha[i] * p - a[i] * y) / d[i]}
        y = row.x * x + row.y * y + row.x0 * out["x0"] + row.eps * out["eps"]
        y = y + row.past1 * past[0] + row.past2 * past[1] + row.noise * rng.normal(size=x.shape)
        past = [out[form], past[0]]
        x = y if row.ends_step else x
    return np.abs(x).max()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_errors_of_a_network_stay_small_or_are_refused(variant, name):
    """Data are within about 2, as are the samples of an exact network."""
    schedule, refused = make(ScheduleConfig(name=name)), []
    for prediction, steps in itertools.product(get_args(Prediction), (1, 2, 3, 25)):
        config = SamplerConfig(steps=steps, **VARIANTS[variant])
        try:
            rows = table_of(config, schedule, prediction)
        except UvitError as error:
            assert "sampler.name" in str(error) and "sampler.steps" in str(error)
            refused.append(steps)
            continue
        size = largest(rows, schedule, prediction)
        assert size < 3 * LIMIT, (prediction, steps, size)
        if steps == 25:
            assert size < 4, (prediction, size)
    # Refusal is for long steps of noise, or of an order above 1 in eps that the config demands.
    long = {"euler_maruyama": 3, "dpm_solver singlestep": 2}.get(variant, 0)
    assert max(refused, default=0) <= long, refused


@pytest.mark.parametrize("prediction", get_args(Prediction))
@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_pp"])
def test_sample_runs_that_table(name, prediction):
    schedule = make(ScheduleConfig(name="rectified_flow"))

    def predict(x, network_time):
        t = network_time[0] / 1000
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        a, b = process.coefficients(prediction, schedule, t)
        exact = a * mixture.expected_x0(x, alpha, sigma) + b * mixture.expected_eps(x, alpha, sigma)
        return exact + 0.01 * jnp.hypot(a, b) * jnp.sign(jnp.sin(37 * x[:, ::-1]))

    denoise = process.denoiser(predict, schedule, prediction)
    config = SamplerConfig(name=name, steps=2)
    assert np.abs(sample(config, denoise, schedule, X, prediction=prediction)).max() < 4


RECIPES = [
    ("vp_linear", "eps", dict(name="dpm_solver", steps=50)),
    ("vp_linear", "eps", dict(name="euler_maruyama", steps=1000)),
    ("sd", "eps", dict(name="dpm_solver_pp", steps=50)),
    ("ddpm_linear", "eps", dict(name="ddpm", steps=250, variance="learned")),
    ("ddpm_linear", "eps", dict(name="ddim", steps=50)),
    ("rectified_flow", "velocity", dict(name="heun", steps=125)),
    ("rectified_flow", "velocity", dict(name="euler_maruyama", steps=250)),
    ("rectified_flow", "x0", dict(name="dpm_solver_pp", method="multistep", order=2, steps=20)),
]


@pytest.mark.parametrize(("name", "prediction", "config"), RECIPES)
def test_published_tables_are_not_changed(name, prediction, config):
    schedule, config = make(ScheduleConfig(name=name)), SamplerConfig(**config)
    assert table_of(config, schedule, prediction) == table_of(config, schedule)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_predictions_of_noise_start_where_there_is_signal(prediction, shift):
    schedule = make(ScheduleConfig(name="rectified_flow", shift=shift))
    for name in ("euler", "ddim", "dpm_solver_pp", "heun"):
        first = table_of(SamplerConfig(name=name, steps=4), schedule, prediction)[0]
        assert abs(schedule.sigma(first.t) / schedule.alpha(first.t) - 100) < 1e-6
        other = table_of(SamplerConfig(name=name, steps=4), schedule, "x0")[0]
        assert other.t == table_of(SamplerConfig(name=name, steps=4), schedule)[0].t > first.t
        given = SamplerConfig(name=name, steps=4, t_start=0.9)
        assert table_of(given, schedule, prediction)[0].t == 0.9
        late = SamplerConfig(name=name, steps=4, t_end=0.5)
        assert table_of(late, schedule, prediction)[-1].t_next == 0.5
    with pytest.raises(UvitError, match=r"leave out sampler\.t_start"):
        table_of(SamplerConfig(name="euler", steps=4, t_start=1.0), schedule, prediction)


def test_sampling_that_would_diverge_is_refused_before_it_is_compiled():
    model = uvit_jax.build(
        preset("S", (8, 8, 3), patch_size=4, width=16, depth=2, num_heads=2, num_classes=0)
    )
    sampler = dict(name="euler_maruyama", steps=2)
    diffusion = ObjectiveConfig(schedule=ScheduleConfig(name="cosine"), prediction="v")
    config = SampleConfig(sampler=SamplerConfig(**sampler))
    with pytest.raises(UvitError, match=r"sampler\.name='euler_maruyama'.*sampler\.steps=2.*'v'"):
        make_sampler(model, diffusion, config, batch_size=1)
    more = SampleConfig(sampler=SamplerConfig(**sampler | dict(steps=50)))
    make_sampler(model, diffusion, more, batch_size=1)
