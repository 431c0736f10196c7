"""Properties of samplers besides accuracy, which test_convergence.py measures."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import mixture
from uvit_jax.config import parse
from uvit_jax.diffusion import process
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.diffusion.solvers import dpm_solver, simple, solve
from uvit_jax.diffusion.solvers.dpm_solver import fast_orders
from uvit_jax.diffusion.solvers.solve import SamplerConfig, num_evaluations, sample
from uvit_jax.diffusion.solvers.table import Sampler, time_grid
from uvit_jax.errors import UvitError

SAMPLERS = [name for name in get_args(Sampler) if name != "mean_flow"]  # test_mean_flow.py
KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (16, 2))


def run(config, schedule, x=X, key=KEY, **kwargs):
    return sample(config, mixture.denoiser(schedule), schedule, x, key, **kwargs)


def test_ddim_with_eta_one_is_ddpm_step_by_step():
    for name in ("ddpm_linear", "rectified_flow"):
        schedule = make(ScheduleConfig(name=name))
        _, ddpm = run(SamplerConfig(name="ddpm", steps=20), schedule, keep_trajectory=True)
        _, ddim = run(SamplerConfig(name="ddim", steps=20, eta=1.0), schedule, keep_trajectory=True)
        assert ddpm.states.shape == (21, 16, 2)
        np.testing.assert_array_equal(ddpm.times, ddim.times)
        np.testing.assert_allclose(ddpm.states, ddim.states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp"])
def test_first_order_is_ddim(name):
    schedule = make(ScheduleConfig(name="cosine"))
    shared = {"steps": 10, "spacing": "log_snr"}
    solver = SamplerConfig(name=name, method="singlestep", order=1, **shared)
    ddim = SamplerConfig(name="ddim", **shared)
    np.testing.assert_allclose(run(solver, schedule), run(ddim, schedule), rtol=1e-4, atol=1e-5)


def test_euler_on_a_rectified_flow_is_ddim():
    schedule = make(ScheduleConfig(name="rectified_flow", shift=3.0))
    euler, ddim = (SamplerConfig(name=n, steps=10) for n in ("euler", "ddim"))
    np.testing.assert_allclose(run(euler, schedule), run(ddim, schedule), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_segments_are_sampled_independently(name):
    schedule, config = make(ScheduleConfig()), SamplerConfig(name=name, steps=6)
    x = {"image": X, "text": jax.random.normal(jax.random.key(2), (16, 7, 2))}
    both = run(config, schedule, x)
    alone = run(config, schedule, {"text": x["text"]})
    np.testing.assert_allclose(both["text"], alone["text"], rtol=1e-5, atol=1e-5)
    assert not np.allclose(both["image"], both["text"][:, 0])


METHODS = [(name, "fast") for name in SAMPLERS]
METHODS += [("dpm_solver", "singlestep"), ("dpm_solver_pp", "singlestep")]
METHODS += [("dpm_solver_pp", "multistep")]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_network_is_traced_once_and_evaluated_num_evaluations_times(name, method):
    schedule = make(ScheduleConfig())
    config = SamplerConfig(name=name, method=method, steps=5, order=2)
    exact, traces, times = mixture.denoiser(schedule), [], []

    def denoise(x, t):
        traces.append(None)
        jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
        return exact(x, t)

    _, kept = sample(config, denoise, schedule, X, KEY, keep_trajectory=True)
    jax.effects_barrier()
    assert len(traces) == 1
    assert len(times) == num_evaluations(config)
    np.testing.assert_allclose(times[0], kept.times[0], rtol=1e-6)
    assert (np.diff(times) <= 0).all() and (np.diff(kept.times) < 0).all()
    assert jax.tree.leaves(kept.states)[0].shape[0] == len(kept.times)
    assert set(np.float32(kept.times[:-1])) <= set(np.float32(times))


def test_trajectory_runs_from_noise_to_the_sample():
    schedule = make(ScheduleConfig())
    config = SamplerConfig(steps=11)
    x_0, kept = run(config, schedule, {"image": X}, keep_trajectory=True)
    np.testing.assert_array_equal(kept.states["image"][0], X)
    np.testing.assert_array_equal(kept.states["image"][-1], x_0["image"])
    assert kept.times[0] == schedule.t_max and kept.times[-1] == schedule.t_min
    np.testing.assert_allclose(run(config, schedule, {"image": X})["image"], x_0["image"])


def test_fast_uses_the_given_number_of_evaluations():
    """DPM-Solver, section 3.4; 50 evaluations are 16 steps of order 3 and one of order 2."""
    assert fast_orders(50) == [3] * 16 + [2]
    assert fast_orders(15) == [3] * 4 + [2, 1]
    assert fast_orders(10) == [3] * 3 + [1]
    for n in range(1, 30):
        assert sum(fast_orders(n)) == n and max(fast_orders(n)) <= 3


def test_fast_uniform_in_time_evaluates_at_uniform_times():
    """UniDiffuser's setting: 50 evaluations at n = 1000, 980.02, ... of 1000."""
    schedule, config = make(ScheduleConfig(name="sd")), SamplerConfig(name="dpm_solver_pp", steps=8)
    exact, times = mixture.denoiser(schedule), []

    def denoise(x, t):
        jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
        return exact(x, t)

    sample(config, denoise, schedule, X)
    jax.effects_barrier()
    np.testing.assert_allclose(times, np.linspace(1, 1e-3, 9)[:-1], rtol=1e-6)


def test_respacing_is_that_of_adm():
    """250 of 1000 steps: both ends, and strides of 999/249 rounded on the way."""
    schedule = make(ScheduleConfig(name="ddpm_linear"))
    grid = time_grid(SamplerConfig(name="ddpm", steps=250), schedule)
    position, chosen = 0.0, []
    for _ in range(250):
        chosen.append(round(position))
        position += 999 / 249
    np.testing.assert_array_equal(np.round(grid[:-1] * 1000)[::-1] - 1, chosen)
    assert grid[-1] == 0 and grid[0] == 1
    full = time_grid(SamplerConfig(name="ddpm", steps=1000), schedule)
    np.testing.assert_allclose(full, np.arange(1000, -1, -1) / 1000)


def test_ddpm_matches_the_paper():
    """One step of 1000 against Ho et al. 2020, eqs. 7 and 11, in their own symbols."""
    schedule = make(ScheduleConfig(name="ddpm_linear"))
    beta = np.linspace(1e-4, 0.02, 1000)
    bar, n = np.cumprod(1 - beta), 700
    config = SamplerConfig(name="ddpm", steps=1000)
    row = simple.ddpm(config, schedule, time_grid(config, schedule))[1000 - n]
    b, now, before = beta[n - 1], bar[n - 1], bar[n - 2]
    np.testing.assert_allclose(row.t, n / 1000)
    np.testing.assert_allclose(row.x, np.sqrt(1 - b) * (1 - before) / (1 - now), rtol=1e-8)
    np.testing.assert_allclose(row.x0, np.sqrt(before) * b / (1 - now), rtol=1e-8)
    np.testing.assert_allclose(row.noise**2, (1 - before) / (1 - now) * b, rtol=1e-8)
    np.testing.assert_allclose(np.exp(row.log_large), b, rtol=1e-8)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp"])
def test_singlestep_combinations_are_the_published_ones(name, order):
    """Lu et al. 2022a, algorithms 1 and 2 (eps); 2022b, algorithm 1 (x0, order 2)."""
    schedule = make(ScheduleConfig())
    config = SamplerConfig(name=name, method="singlestep", order=order, steps=3)
    rows = dpm_solver.rows(config, schedule)[order : 2 * order]
    times = np.array([row.t for row in rows] + [rows[-1].t_next])
    h = np.diff(schedule.half_log_snr(times)[[0, -1]])[0]
    lam = (schedule.half_log_snr(times) - schedule.half_log_snr(times[0])) / h
    np.testing.assert_allclose(lam, np.arange(order + 1) / order, atol=1e-9)
    r, end = 2 / 3 if order == 3 else 1 / 2, rows[-1]
    if name == "dpm_solver":
        base, phi = -schedule.sigma(times[-1]) * np.expm1(h), np.expm1(h) / h - 1
        slope = base / (2 * r) if order == 2 else -schedule.sigma(times[-1]) / r * phi
        carry, now = schedule.alpha(times[-1]) / schedule.alpha(times[0]), end.eps
    else:
        base, phi = -schedule.alpha(times[-1]) * np.expm1(-h), np.expm1(-h) / h + 1
        slope = base / (2 * r) if order == 2 else schedule.alpha(times[-1]) / r * phi
        carry, now = schedule.sigma(times[-1]) / schedule.sigma(times[0]), end.x0
    np.testing.assert_allclose([end.x, now], [carry, slope], rtol=1e-8)
    first = (end.past1, end.past2) if order == 2 else (end.past2, end.past1)
    np.testing.assert_allclose(first, (base - slope, 0), rtol=1e-8, atol=1e-12)


def test_two_m_is_the_published_one():
    """Lu et al. 2022b, algorithm 2."""
    schedule = make(ScheduleConfig())
    config = SamplerConfig(name="dpm_solver_pp", method="multistep", order=2, steps=5)
    row, before = dpm_solver.rows(config, schedule)[2:0:-1]
    lam = schedule.half_log_snr(np.array([before.t, row.t, row.t_next]))
    h0, h = np.diff(lam)
    r, weight = h0 / h, -schedule.alpha(row.t_next) * np.expm1(-h)
    expected = [weight * (1 + 1 / (2 * r)), -weight / (2 * r)]
    np.testing.assert_allclose([row.x0, row.past1], expected, rtol=1e-8)
    np.testing.assert_allclose(row.x, schedule.sigma(row.t_next) / schedule.sigma(row.t))


@pytest.mark.parametrize(("mix", "variance"), [(0.0, "small"), (1.0, "large")])
def test_learned_variance_spans_small_to_large(mix, variance):
    schedule = make(ScheduleConfig(name="ddpm_linear"))
    exact = mixture.denoiser(schedule)

    def denoise(x, t):
        return exact(x, t)._replace(log_variance_mix=jnp.full_like(x, mix))

    config = SamplerConfig(name="ddpm", steps=10, variance="learned")
    ours = sample(config, denoise, schedule, X, KEY)
    fixed = run(SamplerConfig(name="ddpm", steps=10, variance=variance), schedule)
    np.testing.assert_allclose(ours, fixed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["time", "time_quadratic", "log_snr"])
@pytest.mark.parametrize("name", ["vp_linear", "sd", "cosine", "rectified_flow"])
def test_grids_descend_from_start_to_end(name, spacing):
    schedule = make(ScheduleConfig(name=name))
    config = SamplerConfig(name="dpm_solver_pp", steps=7, spacing=spacing, t_start=0.9, t_end=0.01)
    grid = time_grid(config, schedule)
    assert grid.shape == (8,) and grid[0] == 0.9 and grid[-1] == 0.01
    even = {"time": grid, "time_quadratic": grid**0.5, "log_snr": schedule.log_snr(grid)}[spacing]
    np.testing.assert_allclose(np.diff(even), (even[-1] - even[0]) / 7, rtol=1e-6)


def test_published_ends():
    ends = {
        ("dpm_solver", "vp_linear"): (1, 1e-4),
        ("dpm_solver_pp", "sd"): (1, 1e-3),
        ("euler_maruyama", "vp_linear"): (1, 1e-3),
        ("ddpm", "ddpm_linear"): (1, 0),
        ("euler", "rectified_flow"): (1, 0),
        ("dpm_solver", "cosine"): (0.9946, 1e-4),
    }
    for (sampler, name), (start, end) in ends.items():
        grid = time_grid(SamplerConfig(name=sampler, steps=4), make(ScheduleConfig(name=name)))
        assert (grid[0], grid[-1]) == (start, end)


@pytest.mark.parametrize("schedule", ["vp_linear", "sd", "cosine", "rectified_flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_on_every_schedule_is_finite(name, schedule):
    """Even with an untrained network, whose prediction is the usual one of the schedule."""
    schedule = make(ScheduleConfig(name=schedule))
    prediction = "velocity" if schedule.config.name == "rectified_flow" else "eps"
    denoise = process.denoiser(lambda x, t: 0.5 * x, schedule, prediction)
    x_0 = sample(SamplerConfig(name=name, steps=4), denoise, schedule, X, KEY)
    assert x_0.dtype == jnp.float32 and np.isfinite(x_0).all()
    assert jnp.abs(x_0).max() < 1e4


def test_same_key_same_sample():
    schedule, config = make(ScheduleConfig()), SamplerConfig(name="euler_maruyama", steps=10)
    draw = jax.jit(lambda key: run(config, schedule, key=key))
    np.testing.assert_array_equal(draw(KEY), draw(KEY))
    assert not np.allclose(draw(KEY), draw(jax.random.key(6)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "dpm-solver"}, "did you mean 'dpm_solver'"),
        ({"name": "dpm_solver", "method": "multistep"}, "method"),
        ({"name": "euler", "eta": 1.0}, "eta"),
        ({"name": "ddim", "variance": "large"}, "variance"),
        ({"steps": 0}, "steps"),
        ({"order": 4}, "order=4.*1, 2, 3"),
        ({"name": "ddim", "method": "singlestep"}, "method.*DPM"),
        ({"spacing": "logsnr"}, "did you mean 'log_snr'"),
        ({"name": "heun", "spacing": "respaced"}, "cannot reach"),
        ({"name": "ddpm", "spacing": "respaced", "t_end": 0.1}, "drop"),
    ],
)
def test_bad_configs_are_refused(bad, message):
    with pytest.raises(UvitError, match=message):
        parse(SamplerConfig, bad)


@pytest.mark.parametrize(
    ("config", "schedule", "message"),
    [
        ({"name": "ddpm", "steps": 1001}, "sd", "at most 1000"),
        ({"name": "ddpm", "spacing": "respaced"}, "cosine", "discrete steps"),
        ({"name": "dpm_solver", "t_end": 0.0}, "vp_linear", "finite log-SNR"),
        ({"name": "dpm_solver_pp", "t_start": 1.0}, "rectified_flow", "finite log-SNR"),
        ({"name": "heun", "t_end": 0.0}, "vp_linear", "t_end > 0"),
        ({"name": "heun", "t_start": 0.1, "t_end": 0.2}, "vp_linear", r"t_start=0\.1 .*t_end=0\.2"),
        ({"name": "ddpm"}, "vp_linear", "needs a key"),
        ({"name": "ddpm", "variance": "learned"}, "ddpm_linear", "learned_range"),
    ],
)
def test_impossible_combinations_are_refused(config, schedule, message):
    with pytest.raises(UvitError, match=message):
        run(
            SamplerConfig(**config),
            make(ScheduleConfig(name=schedule)),
            key=None if "key" in message else KEY,
        )


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_heun_of_a_network_that_errs_is_bounded(steps):
    """At t = 0 a prediction of x0 says nothing of eps: no step may evaluate it there."""
    schedule = make(ScheduleConfig(name="rectified_flow"))

    def predict(x, network_time):
        return jax.tree.map(lambda a: 0.5 + 0.01 * jnp.sin(40 * a), x)

    denoise = process.denoiser(predict, schedule, "x0")
    x = jax.random.normal(jax.random.key(0), (64, 3))
    x_0 = jax.jit(lambda x: sample(SamplerConfig(name="heun", steps=steps), denoise, schedule, x))(
        x
    )
    assert jnp.abs(x_0 - 0.5).max() < 0.05


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["vp_linear", "sd", "ddpm_linear", "cosine", "rectified_flow"])
def test_every_sampler_has_a_finite_table_on_every_schedule(name, schedule):
    for steps in (1, 2, 3, 50):
        solve.check(SamplerConfig(name=name, steps=steps), make(ScheduleConfig(name=schedule)))


@pytest.mark.parametrize("t_start, t_end", [(0.2, 0.7), (0.5, 0.5), (1.5, None), (None, -0.1)])
def test_impossible_times_are_refused_by_the_config(t_start, t_end):
    with pytest.raises(UvitError, match=r"t_start|t_end"):
        SamplerConfig(name="euler", t_start=t_start, t_end=t_end)


def test_a_time_that_the_schedule_makes_impossible_is_refused_with_the_table():
    with pytest.raises(UvitError, match=r"t_start=1\.0 and t_end=1\.0"):
        solve.check(SamplerConfig(name="euler", t_end=1.0), make(ScheduleConfig()))
