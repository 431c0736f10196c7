"""Noise that the frames of a video share a part of, in training and in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.config import parse
from uvit_jax.diffusion import objective
from uvit_jax.diffusion.noise import with_shared_noise
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.solvers import solve
from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.models.presets import unified, video
from uvit_jax.sampling.sampler import SampleConfig, make_sampler
from uvit_jax.training.run_config import parse_run

FLOW = dict(schedule=dict(name="rectified_flow"), prediction="x0")


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_frames_are_standard_normal_with_the_correlation_asked_for(share):
    first, second, third = jax.random.split(jax.random.key(0), 3)
    noise = {
        "first": jax.random.normal(first, (8, 1, 16, 16, 3)),
        "video": jax.random.normal(second, (8, 5, 16, 16, 3)),
        "image": jax.random.normal(third, (8, 16, 16, 3)),
    }
    mixed = with_shared_noise(jax.random.key(1), noise, share)
    clip = np.concatenate([mixed["first"], mixed["video"]], axis=1)
    assert abs(clip.std() - 1) < 0.02 and abs(clip.mean()) < 0.02
    for t in range(1, 6):
        assert abs(correlation(clip[:, 0], clip[:, t]) - share) < 0.03
    assert abs(correlation(clip[0], clip[1])) < 0.03  # examples share nothing
    assert mixed["image"] is noise["image"]


@pytest.fixture(scope="module")
def model():
    return build(video.preset("uvit", (4, 8, 8, 3), patch_size=4, width=16, depth=2, num_heads=2))


def starts(monkeypatch, model, keys, **options):
    """The noise that sampling starts from."""
    monkeypatch.setattr(solve, "sample", lambda config, denoise, schedule, x_T, *_, **__: x_T)
    config = parse(ObjectiveConfig, FLOW | dict(shared_noise=0.5))
    sampling = parse(SampleConfig, options)
    sampler = make_sampler(model, config, sampling, batch_size=len(keys))
    return sampler(model.init(jax.random.key(0)), keys, {})


def test_frames_are_correlated_in_training_and_in_sampling(monkeypatch, model):
    config = parse(ObjectiveConfig, FLOW | dict(shared_noise=0.5))
    clean = {n: jnp.zeros((64, t, 8, 8, 3)) for n, t in (("first", 1), ("video", 3))}
    noisy = objective.corrupt(jax.random.key(0), clean, config, t=1.0).noisy
    keys = jax.random.split(jax.random.key(1), 64)
    for noise in (noisy, starts(monkeypatch, model, keys)):
        assert abs(correlation(noise["first"][:, 0], noise["video"][:, 1]) - 0.5) < 0.03
        assert abs(np.std(noise["first"]) - 1) < 0.03
    alone = starts(monkeypatch, model, keys[3:4])
    np.testing.assert_array_equal(alone["video"][0], noise["video"][3])


def test_frames_that_are_not_there_do_not_tell_of_the_noise_of_others():
    config = parse(ObjectiveConfig, FLOW | dict(shared_noise=0.5))
    clean = {n: jnp.zeros((64, t, 8, 8, 3)) for n, t in (("first", 1), ("video", 3))}
    noisy = objective.corrupt(jax.random.key(0), clean, config, t=1.0, dropped={"first": 1.0}).noisy
    assert abs(correlation(noisy["first"][:, 0], noisy["video"][:, 1])) < 0.03
    assert abs(correlation(noisy["video"][:, 0], noisy["video"][:, 1]) - 0.5) < 0.03


def test_what_cannot_share_noise_is_refused(monkeypatch, model):
    with pytest.raises(UvitError, match=r"shared_noise must lie in \[0, 1\), got 1"):
        parse(ObjectiveConfig, FLOW | dict(shared_noise=1.0))
    keys = jax.random.split(jax.random.key(1), 2)
    with pytest.raises(UvitError, match=r"shared_noise=0\.5.*use a deterministic one"):
        starts(monkeypatch, model, keys, sampler=dict(name="euler_maruyama", steps=250))
    with pytest.raises(UvitError, match=r"shared_noise=0\.5.*times.first=0.2; give the data"):
        starts(monkeypatch, model, keys, generate=("video",), times={"first": 0.2})
    image = dict(
        model=unified.preset(
            "uvit", (16, 16, 3), patch_size=4, subjects=0, width=16, depth=2, num_heads=2
        ),
        data=dict(name="totems", image_size=16),
        diffusion=FLOW | dict(shared_noise=0.5),
        train=dict(steps=1, batch_size=2),
    )
    with pytest.raises(UvitError, match="needs a noisy video of several frames"):
        parse_run(image)
