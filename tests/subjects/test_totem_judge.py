"""Training batches of judges hold near misses; saved judges load unchanged."""

import numpy as np
import pytest
from flax import nnx

from experiments.subjects import judge_calibration, judge_training, totem_judge
from uvit_jax.data.sources.worlds import factors
from uvit_jax.errors import UvitError


def test_a_training_batch_shows_what_it_must():
    batch = judge_training.batch_of(0, 0)
    again = judge_training.batch_of(0, 0)
    assert all((batch[key] == again[key]).all() for key in batch)
    assert (judge_training.batch_of(1, 0)["image"] != batch["image"]).any()
    assert batch["image"].shape[1:] == (32, 32, 3) and batch["image"].dtype == np.float32
    G = judge_training.GROUPS
    labels = np.stack([batch[name] for name in factors.NAMES], axis=1)[: 4 * G].reshape(4, G, 8)
    base, miss = labels[0], labels[1]
    # What both views name differs in one factor at most, and the two views of one in none.
    both = (base >= 0) & (miss >= 0)
    assert ((base != miss) & both).sum(axis=1).max() == 1
    both = (base >= 0) & (labels[2] >= 0)
    assert not ((base != labels[2]) & both).any()
    assert ((base != miss) & (base >= 0) & (miss >= 0)).any(axis=1).all()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    module = totem_judge.TotemJudgeNetwork(rngs=nnx.Rngs(5))
    totem_judge.save(tmp_path / "judge.safetensors", module)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    judge = totem_judge.load(tmp_path / "judge.safetensors")
    found, wanted = judge(x, batch_size=2), module(x)
    assert np.allclose(found["embedding"], wanted["embedding"], atol=5e-3)
    assert np.allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-4)
    for head, classes in totem_judge.HEADS.items():
        assert found[head].shape == (3, classes)
        assert np.allclose(found[head].sum(axis=1), 1, atol=1e-5)


def test_bad_arguments_raise(tmp_path):
    module = totem_judge.TotemJudgeNetwork(rngs=nnx.Rngs(0))
    totem_judge.save(tmp_path / "judge.safetensors", module)
    with pytest.raises(UvitError, match="there is no judge"):
        totem_judge.load(99)
    with pytest.raises(UvitError, match=r"crops\.crop"):
        totem_judge.load(tmp_path / "judge.safetensors")(np.zeros((1, 64, 64, 3)))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UvitError, match="cannot read the judge"):
        totem_judge.load(tmp_path / "x.safetensors")


def test_auc_is_the_share_of_pairs_in_order():
    same, other = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    pairs = [(s > o) + (s == o) / 2 for s in same for o in other]
    assert np.isclose(judge_calibration.auc(same, other), np.mean(pairs))
