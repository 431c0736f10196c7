"""References in training: dropped as often as asked, in every slot, with their captions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from experiments.cli import read_config
from tests.helpers.running import ROOT, TINY
from uvit_jax.config import replaced
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError
from uvit_jax.models.presets.unified import preset
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.training import dropping
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.state import init_state
from uvit_jax.training.step import make_step

MODEL = preset(
    "uvit",
    (8, 8, 3),
    patch_size=4,
    subjects=2,
    max_subjects=3,
    text=dict(shape=(4,), vocab_size=300),
    width=16,
    depth=1,
    num_heads=2,
    skip="none",
    mid_block=False,
)


def run_of(model=MODEL, **overrides):
    config = read_config(str(ROOT / TINY), {})
    config = replaced(config, {"model": model, "train.drop": {}} | overrides)
    return parse_run(config)


def test_references_are_lost_alone_and_together():
    present = jnp.ones((4000, 2, 2), bool).at[:, 1, 1].set(False)
    kept = np.asarray(
        dropping.drop_references(jax.random.key(0), present, share=0.25, share_each=0.2)
    )
    assert not kept[:, 1, 1].any()  # what was absent stays absent
    kept = kept.reshape(-1, 4)[:, :3]
    assert abs(kept.mean() - 0.75 * 0.8) < 0.02
    # Two are lost independently but for the quarter of the examples that lose all.
    assert abs((kept[:, 0] & kept[:, 1]).mean() - 0.75 * 0.8**2) < 0.03


def test_text_and_references_are_lost_together():
    layout = uvit_jax.build(MODEL).layout
    train = run_of(**{"train.drop_jointly": 0.3, "train.permute_slots": False}).train
    B = 2000
    given = {"text": jnp.ones((B, 4), int), "refs_present": jnp.ones((B, 2, 1), bool)}
    given |= {name: jnp.ones((B, 1)) for name in ("ref_1_1", "ref_2_1")}
    kept = dropping.drop_conditions(jax.random.key(0), layout, given, train, None, {})
    text, references = np.asarray(kept["text"]), np.asarray(kept["refs_present"])
    assert abs((text == 0).mean() - 0.3) < 0.04
    assert (references == (text[:, :1] == 1)[..., None]).all() and (text == text[:, :1]).all()


def test_captions_follow_their_subjects_into_all_slots():
    layout = uvit_jax.build(MODEL).layout
    words, B = (10, 20, 30), 600
    text = jnp.tile(jnp.array([10, 7, 20, 30]), (B, 1))
    given = {"ref_1_1": jnp.zeros((B, 1)), "text": text}
    found = dropping.permute(jax.random.key(0), layout, given, {"text": words})
    slots, renamed = np.asarray(found["subject_slots"]), np.asarray(found["text"])
    assert slots.shape == (B, 2) and (slots[:, 0] != slots[:, 1]).all()
    assert (np.array(words)[slots] == renamed[:, [0, 2]]).all() and (renamed[:, 1] == 7).all()
    assert (np.sort(renamed, axis=1) == [7, 10, 20, 30]).all()
    assert (np.bincount(slots[:, 0] * 3 + slots[:, 1], minlength=9)[[1, 2, 3, 5, 6, 7]] > 70).all()


def test_reference_slots_keep_their_subjects():
    """Slots that the data bring are of the subject's new slot, and views of one stay different."""
    layout = uvit_jax.build(MODEL | {"max_views": 3}).layout
    B = 200
    given = {
        "ref_1_1": jnp.zeros((B, 1)),
        "text": jnp.tile(jnp.array([10, 20]), (B, 1)),
        "subject_slots": jnp.tile(jnp.array([1, 1]), (B, 1)),
        "view_slots": jnp.tile(jnp.array([[0], [1]]), (B, 1, 1)),
    }
    found = dropping.permute(jax.random.key(0), layout, given, {"text": (10, 20, 30)})
    slots = np.asarray(found["subject_slots"])
    assert (slots[:, 0] == slots[:, 1]).all()
    assert (np.array([10, 20, 30])[slots[:, 0]] == np.asarray(found["text"])[:, 1]).all()
    views = np.asarray(found["view_slots"])
    assert views.shape == (B, 2, 1) and (views[:, 0] != views[:, 1]).all()
    assert set(views.ravel().tolist()) == {0, 1, 2}


def test_captions_are_renamed_where_there_are_no_references():
    plain = preset(
        "uvit", (8, 8, 3), patch_size=4, subjects=0, max_subjects=3, 
        text=dict(shape=(4,), vocab_size=40), width=16, depth=2, num_heads=2,
    )  # fmt: skip
    layout = uvit_jax.build(plain).layout
    given = {"text": jnp.tile(jnp.array([10, 7, 20, 0]), (300, 1))}
    found = dropping.rename(jax.random.key(0), layout, given, {"text": (10, 20, 30)})
    text = np.asarray(found["text"])
    assert (text[:, 0] != text[:, 2]).all() and (text[:, [1, 3]] == [7, 0]).all()
    assert set(text[:, 0].tolist()) == {10, 20, 30}


def test_slot_words_are_required():
    layout = uvit_jax.build(MODEL).layout
    whole = Tokenizer(("@1", "cat", "@3", "@2"))
    ids = dropping.slot_words(layout, whole)["text"]
    assert ids == tuple(whole.encode("@1 @2 @3", 3))
    assert dropping.slot_words(layout, Tokenizer(("cat",))) == {}
    with pytest.raises(UvitError, match=r"lacks the word '@3' of the model's max_subjects=3"):
        dropping.slot_words(layout, Tokenizer(("@1", "@2")))


def test_the_step_drops_references():
    """With all of them lost, their pictures make no difference; kept, they stay as they were."""
    run = run_of(**{"train.drop_references": 1.0})
    model = uvit_jax.build(run.model)
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state, _ = init_state(model, optimizer, jax.random.key(0), mesh)
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
        for name in ("image", "ref_1_1", "ref_2_1")
    }
    batch |= {"text": jnp.ones((4, 4), int), "refs_present": jnp.ones((4, 2, 1), bool)}
    other = batch | {"ref_1_1": batch["ref_2_1"]}
    step = make_step(model, run, optimizer, rate)
    loss = jax.jit(lambda state, batch: step(state, batch)[1]["loss"])
    assert loss(state, batch) == loss(state, other)
    train = dataclasses.replace(run.train, drop_references=0.0, permute_slots=False)
    kept = dropping.drop_conditions(jax.random.key(0), model.layout, batch, train, None, {})
    assert kept.keys() == batch.keys() and kept["refs_present"].all()
    # What the model then makes of them is in tests/models/test_unified.py.


def test_dropping_an_unsupported_condition_raises():
    with pytest.raises(UvitError, match=r"drop_references must lie in \[0, 1\], got 2"):
        run_of(**{"train.drop_references": 2.0})
    with pytest.raises(UvitError, match=r"drop_jointly must lie in \[0, 1\], got -1"):
        run_of(**{"train.drop_jointly": -1.0})
    with pytest.raises(UvitError, match="references are dropped by config"):
        run_of(**{"train.drop.ref_1_1": 0.1})
    plain = preset("uvit", (8, 8, 3), patch_size=4, subjects=0, width=16, depth=2, num_heads=2)
    with pytest.raises(UvitError, match=r"drop_each_reference need .* optional references"):
        run_of(plain, **{"train.drop_each_reference": 0.1})
