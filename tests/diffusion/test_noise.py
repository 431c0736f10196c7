"""Noise that the frames of a video share a part of, in training and in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.config import parse
from uvit_jax.diffusion import objective
from uvit_jax.diffusion.noise import with_shared_noise
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.models.presets import video
from uvit_jax.sampling.sampler import SampleConfig, make_sampler, normal_noise

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


def test_training_and_sampling_have_the_same_noise():
    config = parse(ObjectiveConfig, FLOW | dict(shared_noise=0.5))
    clean = {n: jnp.zeros((16, t, 8, 8, 3)) for n, t in (("first", 1), ("video", 3))}
    noisy = objective.corrupt(jax.random.key(0), clean, config, t=1.0).noisy
    assert abs(correlation(noisy["first"][:, 0], noisy["video"][:, 2]) - 0.5) < 0.05
    model = build(video.preset("uvit", (4, 8, 8, 3), patch_size=4, width=16, depth=2, num_heads=2))
    keys = jax.random.split(jax.random.key(1), 16)
    of_batch = normal_noise(keys, model.layout.noisy, 16, 0.5)
    assert abs(correlation(of_batch["last"][:, 0], of_batch["video"][:, 1]) - 0.5) < 0.05
    of_one = normal_noise(keys[3:4], model.layout.noisy, 1, 0.5)
    np.testing.assert_array_equal(of_one["video"][0], of_batch["video"][3])


def test_what_cannot_share_noise_is_refused():
    with pytest.raises(UvitError, match=r"shared_noise must lie in \[0, 1\), got 1"):
        parse(ObjectiveConfig, FLOW | dict(shared_noise=1.0))
    config = parse(ObjectiveConfig, FLOW | dict(shared_noise=0.5))
    model = build(video.preset("uvit", (4, 8, 8, 3), patch_size=4, width=16, depth=2, num_heads=2))
    noisy = parse(SampleConfig, dict(sampler=dict(name="euler_maruyama", steps=250)))
    with pytest.raises(UvitError, match=r"shared_noise=0\.5.*use a deterministic one"):
        make_sampler(model, config, noisy, batch_size=2)
    ddpm = parse(ObjectiveConfig, dict(schedule=dict(name="ddpm_linear"), shared_noise=0.5))
    with pytest.raises(UvitError, match="shared_noise needs a model without learned_range"):
        clean = {"image": jnp.zeros((2, 4, 4, 3))}
        objective.corrupt(jax.random.key(0), clean, ddpm, learned_range=["image"])
