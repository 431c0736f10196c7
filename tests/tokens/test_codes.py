"""Captions as codes: distinct, decoded under noise, and part of a model and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import uvit
from uvit_jax.tokens.modalities.codes import Codes, codes
from uvit_jax.training.loss import corrupt, diffusion_loss

V, T, F = 300, 5, 24
SEGMENT = Codes(name="text", role="noisy", shape=(T, F), vocab_size=V)


def test_codes_are_distinct_and_the_same_for_every_vocabulary():
    table = codes(V, F)
    assert set(np.unique(table)) == {-1, 1} and len(np.unique(table, axis=0)) == V
    assert np.array_equal(codes(2 * V, F)[:V], table)
    assert np.array_equal(codes(8, 3).sum(axis=0), np.zeros(3))  # all of them


def test_ids_survive_noise():
    ids = np.random.default_rng(0).integers(0, V, (4, T))
    values = SEGMENT.encoded(ids)
    assert values.shape == (4, T, F)
    assert np.array_equal(SEGMENT.encoded(values), values)
    assert np.array_equal(SEGMENT.decoded(values), ids)
    noise = 0.5 * np.random.default_rng(1).normal(size=values.shape)
    assert np.array_equal(SEGMENT.decoded(values + noise), ids)


def model():
    config = uvit.preset("S", (4, 4, 3), patch_size=2, width=16, depth=2, num_heads=2)
    config["segments"]["text_time"] = dict(kind="time", time="text")
    text = dict(kind="codes", role="noisy", shape=(T, F), vocab_size=V)
    config["segments"]["text"] = text
    return uvit_jax.build(config | {"sequence": ("time", "text_time", "text", "image")})


def test_the_loss_takes_ids_and_has_independent_times():
    joint = model()
    ids = jax.random.randint(jax.random.key(0), (64, T), 0, V)
    batch = {"image": jnp.zeros((64, 4, 4, 3)), "text": ids}
    diffusion = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"), prediction="x0")
    conditions, corrupted = corrupt(jax.random.key(1), joint, batch, diffusion)
    assert conditions == {}
    np.testing.assert_array_equal(corrupted.targets["text"], SEGMENT.encoded(ids))
    times = np.stack([corrupted.times[name] for name in ("image", "text")])
    assert abs(np.corrcoef(times)[0, 1]) < 0.3
    params = joint.init(jax.random.key(2))
    losses, metrics = diffusion_loss(joint, params, conditions, corrupted)
    parts = metrics["loss/image"] + metrics["loss/text"]
    np.testing.assert_allclose(losses.mean(), parts, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shape=(T,), vocab_size=V), r"shape must be \(T, F\)"),
        (dict(shape=(T, 8), vocab_size=V), "at most 2"),
        (dict(shape=(T, F)), "vocab_size=0"),
    ],
)
def test_impossible_codes_raise(options, message):
    with pytest.raises(UvitError, match=message):
        Codes(name="text", **options)
