"""Judges: what trains them shows what it must, and the shipped ones measure what they claim to."""

import numpy as np
import pytest
from flax import nnx

from experiments import train_judge
from uvit_jax.data.subjects import factors
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import judge_calibration, judge_pictures, totem_judge

SHIPPED = (0, 1)


@pytest.fixture(scope="module")
def judges():
    return [totem_judge.load(seed) for seed in SHIPPED]


@pytest.fixture(scope="module")
def seen():
    """Cut-outs of test identities from the front: twice each, and once with another emblem."""
    rng = np.random.default_rng(3)
    who = factors.identities()["test"][:60]
    miss = np.array([judge_pictures.near_miss(rng, one, "front") for one in who])
    yaw = [judge_pictures.yaws(rng, "front", 60) for _ in range(3)]
    kinds = [
        judge_pictures.cutouts(rng, w, y, resolutions=(24, 32))[0]
        for w, y in zip((who, who, miss), yaw, strict=True)
    ]
    return who, kinds


def test_a_training_batch_shows_what_it_must():
    batch = train_judge.batch_of(0, 0)
    again = train_judge.batch_of(0, 0)
    assert all((batch[key] == again[key]).all() for key in batch)
    assert (train_judge.batch_of(1, 0)["image"] != batch["image"]).any()
    assert batch["image"].shape[1:] == (32, 32, 3) and batch["image"].dtype == np.float32
    G = train_judge.GROUPS
    labels = np.stack([batch[name] for name in factors.NAMES], axis=1)[: 4 * G].reshape(4, G, 8)
    base, miss = labels[0], labels[1]
    # What both views name differs in one factor at most, and the two views of one in none.
    both = (base >= 0) & (miss >= 0)
    assert ((base != miss) & both).sum(axis=1).max() == 1
    both = (base >= 0) & (labels[2] >= 0)
    assert not ((base != labels[2]) & both).any()
    assert ((base != miss) & (base >= 0) & (miss >= 0)).any(axis=1).all()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    module = totem_judge.TotemJudge(rngs=nnx.Rngs(5))
    totem_judge.save(tmp_path / "judge.safetensors", module)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    judge = totem_judge.load(tmp_path / "judge.safetensors")
    found, wanted = judge(x, batch_size=2), module(x)
    assert np.allclose(found["embedding"], wanted["embedding"], atol=5e-3)
    assert np.allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-4)
    for head, classes in totem_judge.HEADS.items():
        assert found[head].shape == (3, classes)
        assert np.allclose(found[head].sum(axis=1), 1, atol=1e-5)


def test_complaints(tmp_path, judges):
    with pytest.raises(UvitError, match="there is no judge"):
        totem_judge.load(99)
    with pytest.raises(UvitError, match="cut the subjects out"):
        judges[0](np.zeros((1, 64, 64, 3)))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UvitError, match="cannot read the judge"):
        totem_judge.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("seed", SHIPPED)
def test_shipped_judges_tell_near_misses(judges, seen, seed):
    who, kinds = seen
    judge = judges[seed]
    a, b, miss = (judge(kind) for kind in kinds)
    same = np.sum(a["embedding"] * b["embedding"], axis=1)
    other = np.sum(a["embedding"] * miss["embedding"], axis=1)
    assert judge_calibration.auc(same, other) > 0.75
    assert (
        judge_calibration.auc(same, np.sum(a["embedding"] * np.roll(b["embedding"], 1, 0), 1))
        > 0.95
    )
    assert (a["hue"].argmax(axis=1) == who[:, 1]).mean() > 0.8


def test_shipped_judges_are_independent_and_small(judges):
    x = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    assert not np.allclose(judges[0](x)["embedding"], judges[1](x)["embedding"], atol=0.1)
    for seed in SHIPPED:
        size = (totem_judge.FOLDER / f"totems_{seed}.safetensors").stat().st_size
        assert size < 2 * 2**20


def test_auc_is_the_share_of_pairs_in_order():
    same, other = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    pairs = [(s > o) + (s == o) / 2 for s in same for o in other]
    assert np.isclose(judge_calibration.auc(same, other), np.mean(pairs))
