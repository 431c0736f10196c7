"""The seven modes of a model of images and texts, against an independent loop in PyTorch, and on
Gaussians whose joint distribution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from tests.helpers import unidiffusers
from uvit_jax.config import parse
from uvit_jax.diffusion.guidance import Branch
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig, make
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import uvit
from uvit_jax.sampling import modes
from uvit_jax.sampling.sampler import (
    SampleConfig,
    evaluation_key,
    make_sampler,
    mode_configs,
    normal_noise,
)

B, S, STEPS = 2, 2.5, 3
DIFFUSION = ObjectiveConfig(schedule=ScheduleConfig(name="sd"))
SOLVER = dict(name="dpm_solver_pp", method="multistep", order=2, steps=STEPS)
IMAGE, TEXT = ("image", "clip_image"), ("text",)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """diffusers' network, and ours loaded from its folder."""
    theirs = unidiffusers.network("v1")
    folder = tmp_path_factory.mktemp("v1")
    theirs.save_pretrained(folder)
    return theirs, *uvit_jax.load(folder)


class Loop:
    """A pass of a sampler with diffusers' network and scheduler, on numpy arrays by segment.

    Args:
      key: of the pass; noise is drawn as ours.
    """

    def __init__(self, theirs, model, key, fresh):
        self.theirs, self.fresh, self.noisy = theirs, fresh, model.layout.noisy
        self.key = jax.random.split(key)[0]
        self.noise = normal_noise(self.key, self.noisy, B)
        # In our network's terms the last step of a grid of 1000 ends at time 1.
        self.grid = np.linspace(1000, 1, STEPS + 1)[:-1].round().astype(int)

    def noise_at(self, n, generated):
        if self.fresh:
            return normal_noise(evaluation_key(self.key, float(n)), self.noisy, B)
        other = jax.random.fold_in(self.key, len(self.noisy))
        segments = [s for s in self.noisy if s.name in generated]
        return self.noise | normal_noise(other, segments, B)

    def eps(self, x, image_time, text_time):
        times = {"image": np.full(B, image_time), "text": np.full(B, text_time)}
        return unidiffusers.apply(self.theirs, x, times)

    def run(self, generated, given, mode, scale=S):
        import diffusers
        import torch

        schedulers = {}
        for name in generated:
            schedulers[name] = diffusers.DPMSolverMultistepScheduler(
                num_train_timesteps=1000,
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                algorithm_type="dpmsolver++",
                solver_order=2,
                final_sigmas_type="sigma_min",
            )
            schedulers[name].set_timesteps(timesteps=(self.grid - 1).tolist())
        x = {name: np.asarray(self.noise[name]) for name in generated}
        for n in self.grid.tolist():
            noise = {k: np.asarray(v) for k, v in self.noise_at(n, generated).items()}
            guided = self.guided(mode, scale, {**noise, **given, **x}, noise, n)
            for name, scheduler in schedulers.items():
                eps, state = torch.tensor(guided[name]).double(), torch.tensor(x[name]).double()
                x[name] = scheduler.step(eps, n - 1, state).prev_sample.numpy().astype(np.float32)
        return x

    def guided(self, mode, s, x, noise, n):
        """The table of guidance of UniDiffuser."""
        no_text = x | {"text": noise["text"]}
        no_image = x | {name: noise[name] for name in IMAGE}
        if mode == "joint":
            both = self.eps(x, n, n)
            image, text = self.eps(no_text, n, 1000), self.eps(no_image, 1000, n)
            alone = {name: image[name] for name in IMAGE} | {"text": text["text"]}
        elif mode == "text_to_image":
            both, alone = self.eps(x, n, 0), self.eps(no_text, n, 1000)
        elif mode == "image_to_text":
            both, alone = self.eps(x, 0, n), self.eps(no_image, 1000, n)
        else:
            return self.eps(x, *((n, 1000) if mode == "image" else (1000, n)))
        return {name: both[name] + s * (both[name] - alone[name]) for name in both}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("mode", modes.MODES)
def test_every_mode_equals_an_independent_loop(pair, mode, fresh):
    theirs, model, params = pair
    inputs = unidiffusers.inputs(model, B, seed=5)
    given = {"": (), "image": IMAGE, "text": TEXT}[modes.GIVEN.get(mode, "")]
    given = {name: inputs[name] for name in given}
    settings = dict(sampler=SOLVER, guidance_scale=S, mode=mode, fresh_noise=fresh)
    sample = make_sampler(model, DIFFUSION, parse(SampleConfig, settings), batch_size=B)
    ours = jax.jit(sample)(params, jax.random.key(3), given)

    keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(2)]
    first, second = (Loop(theirs, model, key, fresh) for key in keys)
    if mode == "image_variation":
        text = first.run(TEXT, given, "image_to_text")
        expected = text | second.run(IMAGE, text, "text_to_image")
    elif mode == "text_variation":
        image = first.run(IMAGE, given, "text_to_image")
        expected = image | second.run(TEXT, image, "image_to_text")
    else:
        generated = {"joint": IMAGE + TEXT}.get(mode) or (IMAGE if "image" in mode[-5:] else TEXT)
        expected = first.run(generated, given, mode)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-4 * np.abs(value).max())


# Gaussians: an image x and a text y of two numbers each.
MEAN = np.array([0.5, -1.0, 0.3, 0.8])
ROOT = np.array([[0.9, 0, 0, 0], [0.4, 0.7, 0, 0], [0.6, -0.5, 0.5, 0], [-0.2, 0.6, 0.1, 0.6]])
COVARIANCE = ROOT @ ROOT.T
FLOW = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"), prediction="x0")
COUNT = 4000


def gaussian_model():
    """A model for its layout."""
    config = uvit.preset("S", (1, 1, 2), patch_size=1, width=16, depth=2, num_heads=2)
    config["segments"]["text_time"] = dict(kind="time", time="text")
    config["segments"]["text"] = dict(kind="features", role="noisy", shape=(1, 2))
    return uvit_jax.build(config | {"sequence": ("time", "text_time", "text", "image")})


def exact(inputs, times):
    """E[x0 | x_t, y_u] at the two times: the posterior mean of a Gaussian."""
    schedule = make(FLOW.schedule)
    end = schedule.network_time(1.0)
    z_B4 = jnp.concatenate([inputs[n].reshape(-1, 2) for n in ("image", "text")], axis=1)
    t_B4 = jnp.repeat(jnp.stack([times["image"], times["text"]], axis=1) / end, 2, axis=1)
    alpha_B4, sigma_B4 = schedule.alpha(t_B4), schedule.sigma(t_B4)
    noisy_B44 = alpha_B4[:, :, None] * COVARIANCE * alpha_B4[:, None]
    noisy_B44 += jnp.eye(4) * sigma_B4[:, :, None] ** 2
    error_B4 = jnp.linalg.solve(noisy_B44, (z_B4 - alpha_B4 * MEAN)[..., None])[..., 0]
    x0_B4 = MEAN + (alpha_B4 * error_B4) @ COVARIANCE
    return {
        name: x0_B4[:, own].reshape(inputs[name].shape)
        for name, own in (("image", slice(0, 2)), ("text", slice(2, 4)))
    }


def regression(of, on):
    """(matrix, offset, covariance) of one modality given the other."""
    own, other = (slice(0, 2) if n == "image" else slice(2, 4) for n in (of, on))
    matrix = COVARIANCE[own, other] @ np.linalg.inv(COVARIANCE[other, other])
    rest = COVARIANCE[own, own] - matrix @ COVARIANCE[other, own]
    return matrix, MEAN[own] - matrix @ MEAN[other], rest


@pytest.mark.parametrize("mode", modes.MODES)
def test_the_moments_of_gaussians(mode):
    """With the exact denoiser at two times in the network's place."""
    given = modes.GIVEN.get(mode)
    value = np.array([1.1, -0.4], np.float32)
    inputs = {given: value.reshape(1, 1, 2) if given == "text" else value.reshape(1, 1, 1, 2)}
    settings = dict(sampler=dict(name="heun", steps=40), mode=mode, fresh_noise=True)
    sample = make_sampler(
        gaussian_model(),
        FLOW,
        parse(SampleConfig, settings),
        batch_size=COUNT,
        branches=lambda params, inputs: [Branch(1.0, exact, {})],
    )
    batch = {n: np.broadcast_to(v, (COUNT, *v.shape[1:])) for n, v in inputs.items()}
    samples = jax.jit(sample)({}, jax.random.key(0), batch if given else {})
    flat = {n: np.asarray(v).reshape(COUNT, 2) for n, v in samples.items()}
    other = "text" if given == "image" else "image"
    if given:
        matrix, offset, rest = regression(other, given)
        expected = {other: (matrix @ value + offset, rest)}
        if mode.endswith("variation"):
            back, shift, more = regression(given, other)
            mean = back @ expected[other][0] + shift
            expected[given] = (mean, back @ rest @ back.T + more)
    else:
        expected = {"image": (MEAN[:2], COVARIANCE[:2, :2]), "text": (MEAN[2:], COVARIANCE[2:, 2:])}
    assert flat.keys() == ({mode} if mode in expected and not given else expected.keys())
    for name, samples_B2 in flat.items():
        mean, covariance = expected[name]
        np.testing.assert_allclose(samples_B2.mean(0), mean, atol=0.05)
        np.testing.assert_allclose(np.cov(samples_B2.T), covariance, atol=0.05)
    if mode == "joint":
        both = np.concatenate([flat["image"], flat["text"]], axis=1)
        np.testing.assert_allclose(np.cov(both.T), COVARIANCE, atol=0.06)


def test_a_mode_that_a_model_cannot_do_is_named():
    config = parse(SampleConfig, dict(mode="joint"))
    with pytest.raises(UvitError, match=r"mode='joint'.*denoises image; leave out the mode"):
        mode_configs(uvit_jax.build(uvit.preset("S", (8, 8, 3), patch_size=4)).layout, config)
    with pytest.raises(UvitError, match="did you mean 'text_to_image'"):
        parse(SampleConfig, dict(mode="text_to_imag"))
    with pytest.raises(UvitError, match="generate and times"):
        parse(SampleConfig, dict(mode="image", generate=("image",)))


def test_missing_and_superfluous_data_are_named():
    model = uvit_jax.build(unidiffusers.config("v0"))
    inputs = unidiffusers.inputs(model)

    def run(mode, *given):
        config = parse(SampleConfig, dict(mode=mode, sampler=SOLVER))
        sample = make_sampler(model, DIFFUSION, config, batch_size=B)
        sample(model.abstract_params, jax.random.key(0), {name: inputs[name] for name in given})

    with pytest.raises(UvitError, match=r"'text' is at time text=0.* add it"):
        run("text_to_image")
    with pytest.raises(UvitError, match=r"'clip_image' is at time image=0"):
        run("image_to_text", "image")
    with pytest.raises(UvitError, match="'image', which is generated"):
        run("text_to_image", "text", "image")
    with pytest.raises(UvitError, match=r"\['image'\] has shape .*expected .*10, 10, 4"):
        inputs["image"] = np.zeros((B, 8, 8, 4), np.float32)
        run("image_to_text", "image", "clip_image")
    with pytest.raises(UvitError, match=r"'data_type'"):
        inputs["data_type"] = np.zeros(B, np.int32)
        run("joint", "data_type")
