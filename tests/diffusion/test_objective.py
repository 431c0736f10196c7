import os
import subprocess
import sys
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import running
from uvit_jax.config import parse, to_dict
from uvit_jax.diffusion import process
from uvit_jax.diffusion.objective import ObjectiveConfig, corrupt, example_losses, loss, weight
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError

SHARED = {"image": "image", "clip_image": "image"}
SCALE = 0.6  # the data of the analytic tests are N(0, SCALE^2)


def config(**kwargs):
    return parse(ObjectiveConfig, kwargs)


def batch(count=8):
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        "image": jax.random.normal(keys[0], (count, 3, 3, 2)),
        "clip_image": jax.random.normal(keys[1], (count, 1, 4)),
        "text": jax.random.normal(keys[2], (count, 5)),
    }


@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_exact_denoiser_attains_the_analytic_minimum(prediction, weighting):
    cfg = config(schedule={"name": "cosine"}, prediction=prediction, weighting=weighting)
    schedule = make(cfg.schedule)
    clean = {"image": SCALE * jax.random.normal(jax.random.key(0), (20_000, 16))}
    c = corrupt(jax.random.key(1), clean, cfg)
    t = c.times["image"]
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    gain = 1 / (alpha**2 * SCALE**2 + sigma**2)
    x = c.noisy["image"]
    x0, eps = alpha * SCALE**2 * gain * x, sigma * gain * x
    exact = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[prediction]

    t = np.linspace(0, 1, 200_001)[1:-1]
    alpha2, sigma2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
    variance = SCALE**2 / (alpha2 * SCALE**2 + sigma2)  # of eps / alpha^2, of x0 / sigma^2, of v
    error = variance * {"eps": alpha2, "x0": sigma2, "v": 1.0}[prediction]
    if weighting == "min_snr":  # Hang et al. 2023, section 3.4
        snr = alpha2 / sigma2
        error *= np.minimum(snr, 5.0) / {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]
    minimum = error.mean()

    value, metrics = loss({"image": exact}, c)
    np.testing.assert_allclose(value, minimum, rtol=0.03)
    assert metrics["loss/image"] == value
    for other in (1.1 * exact, 0.9 * exact, exact + 0.1):
        assert loss({"image": other}, c)[0] > value


@pytest.mark.parametrize("prediction", get_args(process.Prediction))
@pytest.mark.parametrize("weighting", ["snr", "min_snr", "truncated_snr", "sigmoid", "velocity"])
def test_a_weighting_means_the_same_for_every_prediction(weighting, prediction):
    """An error in x0 costs the weighting's own weight, in whatever prediction it is expressed."""
    cfg = config(schedule={"name": "rectified_flow"}, prediction=prediction, weighting=weighting)
    schedule = make(cfg.schedule)
    t = jnp.array([0.05, 0.3, 0.6, 0.95])
    x_t, x0 = jnp.ones((4, 1)), jnp.zeros((4, 1))
    change = process.convert(x0 + 0.5, x_t, t, schedule, "x0", prediction) - process.convert(
        x0, x_t, t, schedule, "x0", prediction
    )
    snr = np.exp(schedule.log_snr(np.float64(t)))
    on_x0 = {
        "snr": snr,
        "min_snr": np.minimum(snr, 5.0),
        "truncated_snr": np.maximum(snr, 1.0),
        "sigmoid": snr / (1 + snr),
        "velocity": 1 / np.maximum(np.float64(t), 0.1) ** 2,
    }[weighting]
    np.testing.assert_allclose(weight(t, cfg) * change[:, 0] ** 2, 0.25 * on_x0, rtol=1e-3)
    ends = weight(jnp.array([0.0, 1.0]), cfg)
    assert np.isfinite(ends).all() and (ends >= 0).all()


def test_noisy_data_targets_and_times_belong_together():
    cfg = config(prediction="v", schedule={"name": "ddpm_linear"})
    schedule, clean = make(cfg.schedule), batch()
    c = corrupt(jax.random.key(0), clean, cfg)
    for name, x0 in clean.items():
        eps = process.convert(c.targets[name], c.noisy[name], c.times[name], schedule, "v", "eps")
        again = process.add_noise(schedule, x0, eps, c.times[name])
        np.testing.assert_allclose(again, c.noisy[name], atol=1e-5)
        n = np.round(np.asarray(c.times[name]) * 1000)
        np.testing.assert_array_equal(c.network_times[name], n - 1)
        assert c.weights[name].shape == (8,)


def test_times_follow_their_distribution():
    clean = {"image": jnp.zeros((40_000, 1))}

    def times(**kwargs):
        return np.asarray(corrupt(jax.random.key(0), clean, config(**kwargs)).times["image"])

    def uniform(u):
        # Kolmogorov-Smirnov: 2 / sqrt(n) is far beyond the 1e-3 quantile.
        return np.abs(np.sort(u) - (np.arange(len(u)) + 0.5) / len(u)).max() < 2 / len(u) ** 0.5

    assert uniform(times())
    flow = {"name": "rectified_flow", "shift": 3.0}
    assert uniform(make(parse(ScheduleConfig, flow)).unwarp(times(schedule=flow)))
    z = times(schedule=flow | {"shift": 1.0}, time_sampling="logit_normal", logit_mean=0.5)
    z = np.log(z / (1 - z))
    assert abs(z.mean() - 0.5) < 0.03 and abs(z.std() - 1) < 0.03
    n = times(schedule={"name": "sd"}) * 1000
    np.testing.assert_allclose(n, np.round(n), atol=1e-3)
    counts = np.bincount(np.round(n).astype(int), minlength=1001)
    assert counts[0] == 0 and counts[1:].min() > 10 and counts[1] < 80 and counts[1000] < 80


def test_noise_is_standard_normal_and_independent():
    # One number each, so that a key used twice would show.
    clean = {"image": jnp.zeros((20_000, 1)), "text": jnp.zeros((20_000, 1))}
    c = corrupt(jax.random.key(0), clean, config())
    eps = np.concatenate([c.targets["image"], c.targets["text"]], axis=1)
    t = np.stack([c.times["image"], c.times["text"]], axis=1)
    everything = np.concatenate([eps, (t - 0.5) * 12**0.5], axis=1)
    np.testing.assert_allclose(everything.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(everything.T), np.eye(4), atol=0.04)


def test_shared_times_are_shared_and_others_are_not():
    clean = batch()
    c = corrupt(jax.random.key(0), clean, config(), time_keys=SHARED)
    np.testing.assert_array_equal(c.times["clip_image"], c.times["image"])
    assert not np.isin(c.times["text"], c.times["image"]).any()
    free = corrupt(jax.random.key(0), clean, config())
    assert not np.isin(free.times["clip_image"], free.times["image"]).any()
    # The times follow from the key's name: a segment's own name changes nothing.
    np.testing.assert_array_equal(c.times["clip_image"], free.times["image"])
    np.testing.assert_array_equal(c.times["text"], free.times["text"])
    other = corrupt(jax.random.key(0), clean, config(), time_keys={"text": "image"})
    np.testing.assert_array_equal(other.times["text"], c.times["image"])


def test_a_dropped_segment_is_pure_noise_without_a_loss():
    cfg = config(schedule={"name": "rectified_flow"}, prediction="x0")
    plain = corrupt(jax.random.key(2), batch(4000), cfg)
    c = corrupt(jax.random.key(2), batch(4000), cfg, given={"text": 1.0}, dropped={"text": 0.25})
    dropped = np.asarray(c.times["text"]) == 1
    np.testing.assert_allclose(dropped.mean(), 0.25, atol=0.03)
    assert (np.asarray(c.times["text"])[~dropped] == 0).all()
    assert not np.asarray(c.weights["text"]).any()
    clean = np.asarray(batch(4000)["text"])
    np.testing.assert_array_equal(c.noisy["text"][~dropped], clean[~dropped])
    correlation = (np.asarray(c.noisy["text"]) * clean)[dropped].mean()
    assert abs(correlation) < 0.1
    for name in ("image", "clip_image"):  # what is not dropped is unchanged
        np.testing.assert_array_equal(c.noisy[name], plain.noisy[name])


def test_a_segment_s_noise_does_not_depend_on_its_company():
    clean, key = batch(), jax.random.key(0)
    c = corrupt(key, clean, config())
    alone = corrupt(key, {"text": clean["text"]}, config())
    np.testing.assert_array_equal(alone.noisy["text"], c.noisy["text"])
    other = corrupt(jax.random.key(1), clean, config())
    assert not np.isin(other.noisy["text"], c.noisy["text"]).any()


def test_microbatches_reproduce_the_full_batch():
    clean = batch()
    c = corrupt(jax.random.key(0), clean, config(weighting="min_snr"), time_keys=SHARED)

    def of(w, c):
        return loss({n: w * jnp.tanh(x) for n, x in c.noisy.items()}, c)[0]

    value, gradient = jax.value_and_grad(of)(1.5, c)
    parts = [
        jax.value_and_grad(of)(1.5, jax.tree.map(lambda x: x[i : i + 2], c))  # noqa: B023
        for i in range(0, 8, 2)
    ]
    np.testing.assert_allclose(np.mean([v for v, _ in parts]), value, rtol=1e-6)
    np.testing.assert_allclose(np.mean([g for _, g in parts]), gradient, rtol=1e-5)


def test_loss_is_the_sum_over_segments_and_in_float32():
    clean = batch()
    c = corrupt(jax.random.key(0), clean, config())
    outputs = {n: jnp.zeros(x.shape, jnp.bfloat16) for n, x in clean.items()}
    value, metrics = loss(outputs, c)
    parts = {n: np.mean(np.square(c.targets[n])) for n in clean}
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, sum(parts.values()), rtol=1e-6)
    for n, part in parts.items():
        np.testing.assert_allclose(metrics[f"loss/{n}"], part, rtol=1e-6)
        np.testing.assert_allclose(metrics[f"mse/{n}"], part, rtol=1e-6)


def test_example_losses_are_the_loss_of_each_example_alone():
    c = corrupt(jax.random.key(0), batch(), config(weighting="min_snr"))
    outputs = {n: jnp.tanh(x) for n, x in c.noisy.items()}
    losses_B, metrics = example_losses(outputs, c)
    assert losses_B.shape == (8,) and loss(outputs, c)[0] == losses_B.mean()
    np.testing.assert_allclose(losses_B.mean(), sum(metrics[f"loss/{n}"] for n in outputs), 1e-6)
    for i in range(8):
        alone = jax.tree.map(lambda x: x[i : i + 1], (outputs, c))  # noqa: B023
        np.testing.assert_allclose(loss(*alone)[0], losses_B[i], rtol=1e-6)


def test_noise_does_not_depend_on_sharding():
    """The same numbers on one device and spread over four."""
    program = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from uvit_jax.diffusion.objective import ObjectiveConfig, corrupt
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
clean = {"image": np.ones((8, 3), np.float32)}
run = lambda clean: corrupt(jax.random.key(0), clean, ObjectiveConfig())
spread = NamedSharding(mesh, P("data"))
one = jax.jit(run)(clean)
four = jax.jit(run, in_shardings=spread, out_shardings=spread)(clean)
assert len(four.noisy["image"].sharding.device_set) == 4
jax.tree.map(np.testing.assert_array_equal, one.times, four.times)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, four)
print("same")
"""
    environment = running.environment(4) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "same\n", done.stderr


def test_config_survives_its_round_trip():
    cfg = config(schedule={"name": "sd"})
    assert cfg.time_sampling == "discrete" and parse(ObjectiveConfig, to_dict(cfg)) == cfg
    assert config().time_sampling == "uniform"
    assert isinstance(hash(cfg), int)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prediction": "epsilon"}, "did you mean 'eps'"),
        ({"weighting": "minsnr"}, "did you mean 'min_snr'"),
        ({"time_sampling": "discrete"}, "schedule with steps"),
        ({"time_sampling": "unifrom"}, "did you mean 'uniform'"),
        ({"logit_std": 0.0}, "positive"),
        ({"schedule": {"name": "vp"}}, "config.schedule"),
    ],
)
def test_bad_configs_are_refused(bad, message):
    with pytest.raises(UvitError, match=message):
        config(**bad)


def test_misuse_is_refused():
    clean = batch()
    with pytest.raises(UvitError, match="did you mean 'image'"):
        corrupt(jax.random.key(0), clean, config(), time_keys={"imag": "image"})
    c = corrupt(jax.random.key(0), clean, config())
    with pytest.raises(UvitError, match="no output for the segment 'text'"):
        loss({n: c.targets[n] for n in ("image", "clip_image")}, c)
    with pytest.raises(UvitError, match="segment 'text'"):
        loss(c.targets | {"text": jnp.zeros((8, 4))}, c)
