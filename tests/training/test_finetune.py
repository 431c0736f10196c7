"""Fine-tuning: many subjects at once are each alone, compiled once, the base never touched."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import uvit_jax
from tests.models.test_lora import BACKBONES, close, noise
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.lora import LoraConfig
from uvit_jax.training.examples import concatenated, stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner, tree_index
from uvit_jax.training.tuning_checkpoint import TuningCheckpoint

CONFIG = FinetuneConfig(steps=8, batch_size=2, learning_rate=5e-4, lora=LoraConfig(rank=2))


def examples(seed, count):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)
    return {"image": images, "label": np.full(count, seed % 4, np.int32)}


SUBJECTS = {f"subject {i}": examples(i, 1 + i % 5) for i in range(16)}
PRIOR = stacked({"one class": examples(100, 6), "another": examples(101, 4)})
PRIOR_OF = [i % 2 for i in range(16)]


@functools.cache
def tuner(backbone="uvit", **changes):
    """(its parameters, a Finetuner)."""
    model = uvit_jax.build(BACKBONES[backbone])
    config = dataclasses.replace(CONFIG, **changes)
    # A DiT's learned range needs a schedule of steps.
    schedule = ScheduleConfig(name="ddpm_linear" if backbone == "dit" else "vp_linear")
    diffusion = ObjectiveConfig(schedule=schedule)
    return noise(model.abstract_params, 0), Finetuner(model, diffusion, config)


@functools.cache
def together(backbone="uvit"):
    params, tune = tuner(backbone)
    return tune(params, stacked(SUBJECTS), prior=PRIOR, prior_of=PRIOR_OF, at=(3,))


@pytest.mark.parametrize("backbone", ["uvit", pytest.param("dit", marks=pytest.mark.slow)])
def test_sixteen_at_once_are_sixteen_in_turn_and_compile_once(backbone):
    params, _ = tuner(backbone)
    found = together(backbone)
    untouched = jax.tree.map(np.array, params)
    _, alone = tuner(backbone, seed=0)
    before = alone._step._cache_size()
    for i, (name, own) in enumerate(SUBJECTS.items()):
        one = alone(params, stacked({name: own}, 5), prior=PRIOR, prior_of=PRIOR_OF[i : i + 1])
        np.testing.assert_allclose(one.losses[:, 0], found.losses[:, i], atol=1e-5)
        ours, theirs = (
            alone.params(params, tree_index(each.trained[8], row))
            for each, row in ((one, 0), (found, i))
        )
        close(ours, theirs, atol=1e-5)
        # That is no statement about zero: each moved, and by far more.
        moved = max(
            np.abs(p - q).max() for p, q in zip(*map(jax.tree.leaves, (ours, params)), strict=True)
        )
        assert moved > 1e-3
    assert alone._step._cache_size() == before + 1
    jax.tree.map(np.testing.assert_array_equal, params, untouched)


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path):
    params, tune = tuner()
    whole = together()
    options = dict(prior=PRIOR, prior_of=PRIOR_OF)
    checkpoint = TuningCheckpoint(tmp_path / "state.safetensors", 3, {"seed": 0})
    watched = []

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(params, stacked(SUBJECTS), **options, checkpoint=checkpoint, progress=stop)
    resumed = tune(
        params,
        stacked(SUBJECTS),
        **options,
        checkpoint=checkpoint,
        watch=lambda step, trained: watched.append((step, jax.device_get(trained))),
        watch_every=3,
    )
    assert [step for step, _ in watched] == [8]  # it began after step 6
    for ours in (resumed.trained[8], watched[0][1]):
        jax.tree.map(np.testing.assert_array_equal, ours, whole.trained[8])
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.prior_losses, whole.prior_losses)
    other = dataclasses.replace(checkpoint, identity={"seed": 1})
    with pytest.raises(UvitError, match=r"state\.safetensors .*delete it"):
        tune(params, stacked(SUBJECTS), **options, checkpoint=other)
    checkpoint.remove()
    assert checkpoint.restore(None) is None


def test_a_copy_at_an_earlier_step_equals_a_shorter_run():
    params, _ = tuner()
    found = together()
    assert sorted(found.trained) == [3, 8] and found.losses.shape == (8, 16)
    _, short = tuner(steps=3)
    some = dict(list(SUBJECTS.items())[4:6])
    ended = short(params, stacked(some, 5), prior=PRIOR, prior_of=PRIOR_OF[4:6]).trained[3]
    close(ended, jax.tree.map(lambda a: a[4:6], found.trained[3]), atol=2e-5)


def test_only_own_examples_and_class_matter():
    """Pictures that stand in for missing ones, and other classes, have no influence."""
    params, tune = tuner(learning_rate=5e-3)
    own, other = {"x": examples(1, 2)}, stacked({"x": examples(2, 2)}, 5)
    short, long = stacked(own), stacked(own, 5)
    classes = {"one class": examples(100, 6), "another": examples(7, 6)}
    run = functools.partial(tune, params, prior=stacked(classes))
    base = run(long, prior_of=[0]).losses
    junk = dataclasses.replace(
        long, examples={k: v.at[:, 2:].set(3) for k, v in long.examples.items()}
    )
    assert np.array_equal(run(junk, prior_of=[0]).losses, base)
    np.testing.assert_allclose(run(short, prior_of=[0]).losses, base, atol=1e-6)
    assert not np.allclose(run(long, prior_of=[1]).losses, base, atol=1e-6)
    assert not np.allclose(run(other, prior_of=[0]).losses, base, atol=1e-3)


def test_prior_preservation_holds_the_class():
    options = dict(method="full", steps=60, learning_rate=5e-3)
    params, free = tuner(**options, prior_weight=0.0)
    _, held = tuner(**options, prior_weight=4.0)
    subject, prior = stacked({"x": examples(1, 2)}), stacked({"class": examples(100, 2)})
    without, with_prior = free(params, subject, prior=prior), held(params, subject, prior=prior)
    assert without.losses[-20:].mean() < without.losses[:20].mean()
    assert with_prior.prior_losses[-20:].mean() < without.prior_losses[-20:].mean()


def test_all_parameters_by_the_same_interface():
    params, full = tuner(method="full", learning_rate=1e-3)
    found = full(params, stacked(dict(list(SUBJECTS.items())[:2])))
    assert found.prior_losses is None
    mine = full.params(params, tree_index(found.trained[8], 1))
    moved = jax.tree.map(lambda p, q: np.abs(p - q).max() > 0, mine, params)
    assert all(jax.tree.leaves(moved))


def test_joint_examples_are_those_of_both():
    joint = concatenated([SUBJECTS["subject 1"], SUBJECTS["subject 2"]])
    assert joint["image"].shape == (5, 8, 8, 3) and list(joint["label"]) == [1, 1, 2, 2, 2]


def test_invalid_arguments_raise():
    params, tune = tuner()
    with pytest.raises(UvitError, match="at least one subject"):
        stacked({})
    with pytest.raises(UvitError, match=r"subject 'b' has .* the same number"):
        stacked({"a": examples(0, 2), "b": {"image": np.zeros((2, 8, 8, 3))}})
    with pytest.raises(UvitError, match="size=2"):
        stacked({"a": examples(0, 3)}, 2)
    with pytest.raises(UvitError, match="the model takes"):
        tune(params, stacked({"a": {"image": np.zeros((1, 8, 8, 3), np.float32)}}))
    with pytest.raises(UvitError, match=r"at=\[9\]"):
        tune(params, stacked({"a": examples(0, 1)}), at=(9,))
    bad = {k: v.copy() for k, v in examples(0, 1).items()}
    bad["image"][0, 0] = np.nan
    with pytest.raises(UvitError, match="the loss of 'bad' is not finite"):
        tune(params, stacked({"a": examples(0, 1), "bad": bad}))
    with pytest.raises(UvitError, match="did you mean 'lora'"):
        FinetuneConfig(method="lara")
    assert lora.LoraConfig(rank=4, alpha=8.0).scale == 2 and lora.LoraConfig(rank=4).scale == 1
