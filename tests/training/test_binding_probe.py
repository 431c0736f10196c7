"""The probe tells a model that reads its captions from one that cannot."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import unified
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.tokens.layout import PRESENT, SUBJECT_SLOTS
from uvit_jax.training import binding_probe
from uvit_jax.training.loop import train
from uvit_jax.training.run_config import parse_run


def config(**options):
    return dict(
        model=unified.preset(
            "uvit", (16, 16, 3), patch_size=8, subjects=2, max_subjects=3, width=32, depth=2,
            num_heads=2, text=dict(shape=(24,), vocab_size=320),
        ),
        data=dict(
            name="totems", image_size=16, text=True, text_length=24, max_views=1, places=2,
            workers=0,
        ),
        train=dict(steps=2, batch_size=4, log_every=1, probe_every=2) | options,
        sample=dict(sampler=dict(name="ddim", steps=1), count=1),
    )  # fmt: skip


class Reader:
    """Stands for a model: it predicts the exact noise of scenes whose first reference is in the
    slot that the data give it, and is off by `error` on the others."""

    def __init__(self, model, error):
        self.layout, self.error = model.layout, error

    def apply(self, params, inputs, times, cache=None):
        del params, cache
        wrong_B = inputs[SUBJECT_SLOTS][:, 0] != 0
        noise = inputs["image"]  # pure noise: the data are zeros here
        return {"image": noise + jnp.where(wrong_B, self.error, 0.1)[:, None, None, None]}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(binding_probe, "SCENES", 4)


@pytest.mark.parametrize(("error", "preferred"), [(0.2, 1.0), (0.1, 0.0), (0.05, 0.0)])
def test_the_right_arrangement_is_preferred_by_a_model_that_binds(monkeypatch, error, preferred):
    given = config()
    given["diffusion"] = dict(schedule=dict(name="rectified_flow"), prediction="eps")
    run = parse_run(given)
    model = Reader(uvit_jax.build(run.model), error)
    scenes = binding_probe._scenes

    def of_zeros(*args):  # x_t = t eps
        return [row | {"image": 0 * row["image"]} for row in scenes(*args)]

    monkeypatch.setattr(binding_probe, "_scenes", of_zeros)
    monkeypatch.setattr(binding_probe, "TIMES", (1.0,))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found = binding_probe.make_probe(run, model, mesh)({})
    assert found["binding/preferred_1.0"] == preferred
    assert found["binding/ratio_1.0"] == pytest.approx((error / 0.1) ** 2, rel=1e-3)


def test_references_are_exchanged_among_the_subjects_that_have_some():
    slots = np.array([2, 0, 2, 1])
    present = np.array([[1], [1], [1], [0]], bool)
    assert binding_probe.exchanged(slots, present).tolist() == [0, 2, 0, 1]
    present[3] = True
    assert binding_probe.exchanged(slots, present).tolist() == [0, 1, 0, 2]


def test_a_run_logs_it(tmp_path):
    train(parse_run(config()), tmp_path / "run")
    first, last = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    names = [f"binding/{what}_{t}" for what in ("ratio", "preferred") for t in (0.5, 0.75, 0.95)]
    assert not set(names) & first.keys() and set(names) <= last.keys()
    assert 0.9 < last["binding/ratio_0.5"] < 1.1
    assert PRESENT not in last


def test_impossible_probes_raise(monkeypatch):
    with pytest.raises(UvitError, match=r"probe_every=3 must be 0 or a multiple of log_every=2"):
        parse_run(config(log_every=2, probe_every=3))
    given = config()
    given["data"] |= dict(max_subjects=1, places=1)
    given["model"] = unified.preset(
        "uvit", (16, 16, 3), patch_size=8, subjects=1, width=32, depth=2, num_heads=2
    )
    run = parse_run(given)
    monkeypatch.setattr("uvit_jax.data.sources.worlds.scene_source.OTHER_LENGTH", 8)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(UvitError, match=r"probe_every needs 4 .* and the data have 0; set it to 0"):
        binding_probe.make_probe(run, uvit_jax.build(run.model), mesh)
