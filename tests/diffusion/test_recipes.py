"""The published sampling recipes against diffusers' schedulers, on a mixture known in closed form.

diffusers' DPMSolverSinglestepScheduler rounds its grid to whole training steps and uses one of two
rules (`solver_type`) throughout, where the published solvers mix them: the inner evaluation of a
third-order step weighs its slope by the exact integral (its rule `heun`), what ends a step does not
(`midpoint`). So the rule is set before each of its steps, and where our grid is not one of whole
steps, it is given ours; everything it then computes is its own. Where the two grids agree, nothing
but the rule is touched.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import mixture
from uvit_jax.diffusion import process
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.diffusion.solvers.dpm_solver import fast_orders, rows
from uvit_jax.diffusion.solvers.solve import SamplerConfig, num_evaluations, sample
from uvit_jax.diffusion.solvers.table import time_grid

torch = pytest.importorskip("torch", reason="PyTorch is in the extra `test`")
diffusers = pytest.importorskip("diffusers", reason="diffusers is in the extra `test`")

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (16, 2))
EPS = jax.jit(mixture.expected_eps)
BETAS = {"sd": ("scaled_linear", 0.00085, 0.012), "ddpm_linear": ("linear", 1e-4, 0.02)}


def settings(schedule):
    rule, low, high = BETAS[schedule]
    return dict(num_train_timesteps=1000, beta_schedule=rule, beta_start=low, beta_end=high)


def eps_at(schedule, t):
    """The exact noise at time t, for their tensors."""
    level = np.float32(schedule.alpha(t)), np.float32(schedule.sigma(t))
    return lambda x: torch.tensor(np.array(EPS(jnp.asarray(x.numpy(), jnp.float32), *level)))


def dpm_solver(config, schedule, algorithm, grid_of_theirs):
    """Their solution, with `config.steps` evaluations."""
    name = schedule.config.name
    theirs = diffusers.DPMSolverSinglestepScheduler(
        **settings(name if name in BETAS else "sd"),
        algorithm_type=algorithm,
        solver_order=3,
        lower_order_final=True,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(config.steps)
    table = rows(config, schedule)
    times = np.array([row.t for row in table] + [table[-1].t_next])
    if grid_of_theirs:
        np.testing.assert_allclose(theirs.timesteps + 1, times[:-1] * 1000, rtol=1e-9)
    else:
        theirs.sigmas = torch.tensor(schedule.sigma(times) / schedule.alpha(times))
    theirs.set_begin_index(0)
    orders = [k for last in fast_orders(config.steps) for k in range(1, last + 1)]
    assert theirs.order_list == orders
    x = torch.tensor(np.array(X), dtype=torch.float64)
    for i, (t, following) in enumerate(zip(times[:-1], [*orders[1:], 1], strict=True)):
        inner = following > orders[i]
        theirs.register_to_config(solver_type="heun" if inner else "midpoint")
        eps = eps_at(schedule, t)(x).to(x.dtype)
        x = theirs.step(eps, theirs.timesteps[i], x).prev_sample
    return x.numpy()


def assert_same(ours, theirs):
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("config", "schedule", "algorithm", "grid_of_theirs"),
    [
        # U-ViT's continuous models: DPM-Solver "fast", spaced evenly in log-SNR, t from 1 to 1e-4.
        ({"name": "dpm_solver", "steps": 50}, "vp_linear", "dpmsolver", False),
        # U-ViT-H, MS-COCO, UniDiffuser: DPM-Solver++, evenly in time, n from 1000 to 1.
        ({"name": "dpm_solver_pp", "steps": 50}, "sd", "dpmsolver++", False),
        # 999 = 27 · 37: their grid of 37 evaluations is ours, 12 steps of order 3 and one of 1.
        ({"name": "dpm_solver_pp", "steps": 37}, "sd", "dpmsolver++", True),
        ({"name": "dpm_solver", "steps": 37, "spacing": "time"}, "sd", "dpmsolver", True),
    ],
)
def test_fast_dpm_solvers(config, schedule, algorithm, grid_of_theirs):
    config, schedule = SamplerConfig(**config), make(ScheduleConfig(name=schedule))
    assert num_evaluations(config) == config.steps == len(rows(config, schedule))
    ours = sample(config, mixture.denoiser(schedule), schedule, X)
    assert_same(ours, dpm_solver(config, schedule, algorithm, grid_of_theirs))


def test_the_continuous_recipe_has_the_published_ends():
    table = rows(SamplerConfig(name="dpm_solver", steps=50), make(ScheduleConfig()))
    assert (table[0].t, table[-1].t_next) == (1, 1e-4)
    schedule = make(ScheduleConfig())
    ends = np.array([1.0] + [row.t_next for row in table if row.ends_step])
    np.testing.assert_allclose(np.ptp(np.diff(schedule.half_log_snr(ends))), 0, atol=1e-8)
    assert len(ends) == 18  # 16 steps of order 3 and one of order 2


def our_noise(i, shape):
    """What evaluation i of `sample` adds, by its documentation, for the segment `image`."""
    key = jax.random.fold_in(jax.random.fold_in(KEY, i), np.uint32(zlib.crc32(b"image")))
    return torch.tensor(np.array(jax.random.normal(key, shape)))


def test_dit_s_250_respaced_steps_with_a_learned_range(monkeypatch):
    """Linear betas, every variance where the network puts it between beta tilde and beta."""
    name = "ddpm_linear"
    schedule = make(ScheduleConfig(name=name))
    theirs = diffusers.DDPMScheduler(
        **settings(name),
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="linspace",
    )
    theirs.set_timesteps(250)
    index = iter(range(250))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda shape, **_: our_noise(next(index), tuple(shape)),
    )

    def raw(x):
        return np.sin(3 * x)

    x = torch.tensor(np.array(X))
    for n in theirs.timesteps:
        eps = eps_at(schedule, (int(n) + 1) / 1000)(x)
        x = theirs.step(torch.cat([eps, raw(x)], 1), n, x).prev_sample

    def predict(x, network_time):
        t = (network_time[0] + 1) / 1000
        eps = mixture.expected_eps(x["image"], schedule.alpha(t), schedule.sigma(t))
        return {"image": jnp.concatenate([eps, jnp.sin(3 * x["image"])], -1)}

    denoise = process.denoiser(predict, schedule, "eps", learned_range=True)
    config = SamplerConfig(name="ddpm", steps=250, variance="learned")
    assert_same(sample(config, denoise, schedule, {"image": X}, KEY)["image"], x.numpy())
    small = SamplerConfig(name="ddpm", steps=250)
    other = sample(small, mixture.denoiser(schedule), schedule, {"image": X}, KEY)["image"]
    assert np.abs(other - x.numpy()).max() > 0.01  # what the network says counts


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(eta):
    name = "sd"
    schedule = make(ScheduleConfig(name=name))
    theirs = diffusers.DDIMScheduler(
        **settings(name), clip_sample=False, timestep_spacing="trailing"
    )
    theirs.set_timesteps(50)
    x = torch.tensor(np.array(X))
    for i, n in enumerate(theirs.timesteps):
        eps = eps_at(schedule, (int(n) + 1) / 1000)(x)
        noise = our_noise(i, tuple(x.shape)) if eta else None
        x = theirs.step(eps, n, x, eta=eta, variance_noise=noise).prev_sample
    config = SamplerConfig(name="ddim", steps=50, spacing="time", eta=eta)
    ours = sample(config, mixture.denoiser(schedule), schedule, {"image": X}, KEY)["image"]
    assert_same(ours, x.numpy())


@pytest.mark.parametrize("name", ["unipc", "sde_dpm_solver_pp"])
@pytest.mark.parametrize("schedule", ["sd", "ddpm_linear"])
def test_multistep_solvers(name, schedule):
    schedule = make(ScheduleConfig(name=schedule))
    config = SamplerConfig(name=name, steps=20, t_end=0.01)
    kind, options = {
        "unipc": (diffusers.UniPCMultistepScheduler, dict(solver_type="bh2")),
        "sde_dpm_solver_pp": (
            diffusers.DPMSolverMultistepScheduler,
            dict(algorithm_type="sde-dpmsolver++", solver_type="midpoint", euler_at_final=True),
        ),
    }[name]
    theirs = kind(
        **settings(schedule.config.name),
        **options,
        solver_order=2,
        lower_order_final=True,
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(config.steps)
    times = time_grid(config, schedule)
    theirs.sigmas = torch.tensor(schedule.sigma(times) / schedule.alpha(times))
    theirs.set_begin_index(0)
    x = torch.tensor(np.array(X), dtype=torch.float64)
    for i, t in enumerate(times[:-1]):
        eps = eps_at(schedule, t)(x).to(x.dtype)
        noise = dict(variance_noise=our_noise(i, tuple(x.shape)).to(x.dtype))
        options = noise if name == "sde_dpm_solver_pp" else {}
        x = theirs.step(eps, theirs.timesteps[i], x, **options).prev_sample
    ours = sample(config, mixture.denoiser(schedule), schedule, {"image": X}, KEY)["image"]
    assert_same(ours, x.numpy())
