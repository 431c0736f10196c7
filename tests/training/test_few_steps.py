"""Objectives for few evaluations: guidance distilled into the network, and mean velocities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from experiments import sample, train
from tests.helpers.running import ROOT, TINY
from tests.helpers.weights import random_params
from uvit_jax.config import parse
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import uvit
from uvit_jax.sampling.sampler import SampleConfig, make_sampler
from uvit_jax.training.loss import corrupt, diffusion_loss, guided_targets, nulls_of
from uvit_jax.training.run_config import parse_run

FLOW = dict(schedule=dict(name="rectified_flow"), prediction="velocity")


def config(**settings):
    """A small model of labels, with setting segments of these names."""
    small = dict(width=32, depth=2, num_heads=2)
    config = uvit.preset("S", (8, 8, 3), patch_size=4, num_classes=5, **small)
    for name in settings:
        config["segments"][name] = dict(kind="setting", sets=name)
    return config | {"sequence": (*settings, *config["sequence"])}


class Linear:
    """A model whose prediction is linear in the image, the label, and the label times guidance."""

    layout = uvit_jax.build(config(guidance=1)).layout

    def apply(self, params, inputs, times, cache=None):
        label_B1 = (inputs["label"] % 5 / 5)[:, None]  # the null class, 5, is 0
        scale_B1 = inputs.get("guidance", 0.0)
        shift_B1 = (params["label"] + params["guided"] * scale_B1) * label_B1
        return {"image": params["image"] * inputs["image"] + shift_B1[:, :, None, None]}

    def without_references(self):
        return self


def batch(count=16):
    image = jax.random.normal(jax.random.key(0), (count, 8, 8, 3))
    return {"image": image, "label": jnp.arange(count) % 5}


def test_a_distilled_student_is_the_guided_teacher_in_the_linear_case():
    model = Linear()
    teacher = {"image": 0.3, "label": 0.7, "guided": 0.0}
    diffusion = parse(ObjectiveConfig, FLOW | dict(objective="distill", guidance=3.0))
    conditions, corrupted = corrupt(jax.random.key(1), model, batch(), diffusion)
    assert np.unique(corrupted.guidance).size == 16 and (corrupted.guidance <= 3).all()
    corrupted = guided_targets(model, teacher, diffusion, conditions, corrupted, nulls_of(model))

    def loss(params):
        return diffusion_loss(model, params, conditions, corrupted)[0].mean()

    def descend(params, _):
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params)), None

    start = {name: jnp.float32(0) for name in teacher}
    student, _ = jax.jit(lambda p: jax.lax.scan(descend, p, length=500))(start)
    expected = teacher | {"guided": teacher["label"]}  # o + s (o - o_0)
    for name, value in expected.items():
        np.testing.assert_allclose(student[name], value, atol=1e-3)


def test_the_scale_is_an_input_of_one_evaluation():
    model = uvit_jax.build(config(guidance=1))
    params, key = random_params(model), jax.random.key(0)
    diffusion = parse(ObjectiveConfig, FLOW)
    inputs = {"label": jnp.arange(2)}
    options = dict(sampler=dict(name="euler", steps=1))
    samples = {}
    for scale in (0.0, 2.0):
        given = parse(SampleConfig, options | dict(guidance_scale=scale))
        sampler = make_sampler(model, diffusion, given, batch_size=2)
        samples[scale] = sampler(params, key, inputs)["image"]
        flops = jax.jit(sampler).lower(params, key, inputs).cost_analysis()["flops"]
        samples[f"flops {scale}"] = flops
    assert samples["flops 0.0"] == samples["flops 2.0"]
    assert not np.allclose(samples[0.0], samples[2.0])


def test_mean_velocities_at_equal_times_have_the_loss_of_flow_matching():
    model = uvit_jax.build(config(interval=1))
    params = random_params(model)
    losses = []
    for keys in ({}, dict(objective="mean_flow", unequal=0.0), dict(objective="mean_flow")):
        diffusion = parse(ObjectiveConfig, FLOW | keys)
        arguments = corrupt(jax.random.key(1), model, batch(), diffusion)
        value = jax.jit(lambda p, a: diffusion_loss(model, p, *a)[0].mean())(params, arguments)
        losses.append(float(value))
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-3 * losses[0]


def test_a_network_of_clean_images_has_the_mean_velocities_of_one_of_velocities():
    """With x0 = x_t - t u its outputs, both have the same targets and errors."""
    model = uvit_jax.build(config(interval=1))
    params = random_params(model)

    class OfImages:
        layout, without_references = model.layout, lambda self: self

        def apply(self, params, inputs, times, cache=None):
            velocity, t_B = model.apply(params, inputs, times)["image"], times["image"] / 20
            return {"image": inputs["image"] - t_B[:, None, None, None] * velocity}

    losses = []
    for network, prediction in ((model, "velocity"), (OfImages(), "x0")):
        schedule = dict(name="rectified_flow", time_scale=20.0)
        keys = dict(objective="mean_flow", guidance=1.0, schedule=schedule, prediction=prediction)
        diffusion = parse(ObjectiveConfig, keys)
        given = corrupt(jax.random.key(1), network, batch(), diffusion)
        losses_B, _ = jax.jit(
            lambda p, a, network=network, prediction=prediction: diffusion_loss(
                network, p, *a, prediction=prediction
            )
        )(params, given)
        losses.append(losses_B)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_a_teachers_velocities_are_guided_at_its_own_times():
    model = uvit_jax.build(config())
    student = uvit_jax.build(config(interval=1))
    params = random_params(model)
    theirs = parse(ObjectiveConfig, FLOW | dict(prediction="x0"))
    schedule = dict(name="rectified_flow", time_scale=20.0)
    keys = dict(objective="mean_flow", guidance=1.5, schedule=schedule, prediction="x0")
    ours = parse(ObjectiveConfig, keys)
    conditions, corrupted = corrupt(jax.random.key(1), student, batch(), ours)
    nulls = nulls_of(student)
    taught = guided_targets(model, params, theirs, conditions, corrupted, nulls, ours.target)
    x, t_B = corrupted.noisy["image"], corrupted.times["image"]
    times = {"image": 1000 * t_B}
    given = model.apply(params, {"image": x, **conditions}, times)["image"]
    null = {"label": jnp.full(16, 5)}
    nothing = model.apply(params, {"image": x, **null}, times)["image"]
    x0 = given + 1.5 * (given - nothing)
    expected = (x - x0) / t_B[:, None, None, None]
    np.testing.assert_allclose(taught.targets["image"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(diffusion=FLOW | dict(objective="mean_flow")), "sets='interval'"),
        (dict(diffusion=FLOW | dict(objective="distill")), r"train\.teacher"),
        (
            dict(
                diffusion=FLOW,
                train=dict(steps=1, batch_size=1, teacher="shipped:emoji_joint"),
            ),
            "'distill' and 'mean_flow'",
        ),
        (
            dict(
                model=config(interval=1)
                | dict(backbone=dict(width=32, depth=2, num_heads=2, attention="blocked")),
                diffusion=FLOW | dict(objective="mean_flow"),
            ),
            "attention='xla'",
        ),
    ],
)
def test_what_does_not_suit_an_objective_is_refused(changes, match):
    run = dict(model=config(), data=dict(name="emoji"), train=dict(steps=1, batch_size=1))
    with pytest.raises(UvitError, match=match):
        parse_run(run | changes)


def test_the_sampler_of_mean_velocities_needs_them():
    given = parse(SampleConfig, dict(sampler=dict(name="mean_flow", steps=1)))
    with pytest.raises(UvitError, match="setting segment for the interval"):
        make_sampler(uvit_jax.build(config()), parse(ObjectiveConfig, FLOW), given, batch_size=1)


@pytest.mark.slow
def test_both_objectives_train_and_sample(tmp_path):
    base = [f"--config={ROOT / TINY}", "--config.train.steps=6"]
    base += [f"--config.diffusion={FLOW}", "--config.sample.clip=0.0"]
    train.main([*base, f"--workdir={tmp_path / 'teacher'}"])
    mean_sampler = "--config.sample.sampler={'name': 'mean_flow', 'steps': 2}"
    for objective, sets, extra in (
        ("distill", "guidance", [f"--config.train.teacher={tmp_path / 'teacher'}"]),
        ("mean_flow", "interval", [mean_sampler]),
        ("mean_flow", "interval", [mean_sampler, f"--config.train.teacher={tmp_path / 'teacher'}"]),
    ):
        workdir = tmp_path / f"{objective}_{len(extra)}"
        flags = [
            f"--config.model.segments.{sets}={dict(kind='setting', sets=sets)}",
            f"--config.model.sequence={(sets, 'label', 'time', 'image')}",
            f"--config.diffusion.objective={objective}",
            "--config.diffusion.guidance=2.0",
            "--config.validation.every=4",
            "--config.validation.count=16",
            f"--workdir={workdir}",
        ]
        train.main([*base, *flags, *extra])
        train.main([*base, *flags, *extra, "--config.train.steps=8"])  # resumes
        sample.main([f"--workdir={workdir}", "--steps=1", "--count=2"])
        assert np.isfinite(np.load(workdir / "samples/sample_seed0.npz")["image"]).all()
