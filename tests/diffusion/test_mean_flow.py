"""Mean velocities: exact for a Gaussian, flow matching where the interval is 0, exact samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.config import parse
from uvit_jax.diffusion import objective, process
from uvit_jax.diffusion.mean_flow import mean_velocity
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.diffusion.solvers import solve
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.errors import UvitError

MEAN, SPREAD = 0.4, 0.5  # of the data
FLOW = dict(schedule=dict(name="rectified_flow"), prediction="velocity")
SCALE = make(ScheduleConfig(name="rectified_flow")).time_scale


def deviation(t):
    return jnp.sqrt((1 - t) ** 2 * SPREAD**2 + t**2)


def at(x, t, r):
    """The point at r of the flow line through x at t."""
    return (1 - r) * MEAN + deviation(r) / deviation(t) * (x - (1 - t) * MEAN)


def velocity(x, t):
    slope = (t - (1 - t) * SPREAD**2) / deviation(t) ** 2
    return -MEAN + slope * (x - (1 - t) * MEAN)


def exact(x, times, interval_B):
    """The mean velocity of the flow as a network."""
    t, d = (times["image"] / SCALE)[:, None], interval_B[:, None]
    small = d < 1e-3
    mean = (x["image"] - at(x["image"], t, t - d)) / jnp.where(small, 1.0, d)
    return {"image": jnp.where(small, velocity(x["image"], t), mean)}


def test_the_mean_velocity_of_a_gaussian_is_its_own_target():
    key = jax.random.key(0)
    x = {"image": jax.random.normal(key, (64, 3))}
    t_B = jnp.linspace(0.05, 1, 64)
    interval_B = t_B * jax.random.uniform(jax.random.key(1), (64,), minval=0.1)
    fields = {"image": velocity(x["image"], t_B[:, None])}
    times, rate_B = {"image": SCALE * t_B}, jnp.full(64, SCALE)
    outputs, targets = mean_velocity(exact, x, times, interval_B, fields, rate_B)
    np.testing.assert_allclose(outputs["image"], targets["image"], atol=2e-4)
    wrong, targets = mean_velocity(
        lambda *a: jax.tree.map(lambda u: 1.1 * u, exact(*a)), x, times, interval_B, fields, rate_B
    )
    assert float(jnp.abs(wrong["image"] - targets["image"]).mean()) > 0.01


def test_one_step_is_as_exact_as_many():
    schedule = make(ScheduleConfig(name="rectified_flow"))
    noise = {"image": jax.random.normal(jax.random.key(0), (16, 3))}

    def predict(x, network_time_B, interval_B):
        return exact(x, {"image": network_time_B}, interval_B)

    denoise = process.denoiser(predict, schedule, "velocity")
    samples = [
        solve.sample(SamplerConfig(name="mean_flow", steps=n), denoise, schedule, noise)["image"]
        for n in (1, 2, 4)
    ]
    for sample in samples:
        np.testing.assert_allclose(sample, MEAN + SPREAD * noise["image"], atol=1e-5)


def test_equal_times_are_flow_matching():
    clean = {"image": jax.random.normal(jax.random.key(0), (32, 4, 4, 3))}
    flow = parse(ObjectiveConfig, FLOW)
    mean = parse(ObjectiveConfig, FLOW | dict(objective="mean_flow", unequal=0.0))
    key = jax.random.key(1)
    a, b = objective.corrupt(key, clean, flow), objective.corrupt(key, clean, mean)
    assert a.interval is None and not b.interval.any()
    for field in ("noisy", "times", "targets", "weights"):
        assert np.array_equal(getattr(a, field)["image"], getattr(b, field)["image"])


def test_times_are_ordered_and_a_share_differs():
    clean = {"image": jnp.zeros((4000, 1))}
    mean = parse(ObjectiveConfig, FLOW | dict(objective="mean_flow", unequal=0.3, adaptive=1.0))
    corrupted = objective.corrupt(jax.random.key(0), clean, mean)
    interval, t = np.asarray(corrupted.interval), np.asarray(corrupted.times["image"])
    assert ((interval >= 0) & (interval <= t)).all()
    assert abs((interval > 0).mean() - 0.3) < 0.03
    # The adaptive weight with p = 1 makes each example's loss e / (e + 0.001).
    outputs = {"image": corrupted.targets["image"] + 0.1}
    losses_B, _ = objective.example_losses(outputs, corrupted)
    np.testing.assert_allclose(losses_B, 0.01 / 0.011, rtol=1e-3)


@pytest.mark.parametrize(
    "keys, match",
    [
        (dict(objective="mean_flow"), "prediction='velocity'"),
        (dict(guidance=1.0), "objective='mean_flow' or 'distill'"),
        (FLOW | dict(objective="mean_flow", unequal=1.5), "unequal"),
        (dict(objective="mean"), "did you mean 'mean_flow'"),
    ],
)
def test_impossible_objectives_are_refused(keys, match):
    with pytest.raises(UvitError, match=match):
        parse(ObjectiveConfig, keys)
