"""`experiments.train_judge`: the shipped judges are never written to."""

import pytest
from flax import nnx

from experiments import train_judge
from experiments.subjects import judge_training, totem_judge
from uvit_jax.errors import UvitError


@pytest.fixture
def instant(monkeypatch):
    """Training that returns at once."""
    judge = totem_judge.TotemJudgeNetwork(rngs=nnx.Rngs(0))

    def train(seed, steps, on_step):
        on_step(judge)
        return judge, 0.5

    monkeypatch.setattr(judge_training, "train", train)


def shipped():
    return {p.name: p.read_bytes() for p in totem_judge.FOLDER.iterdir()}


@pytest.mark.parametrize("args", [[], ["--seed=0"], ["--seed=5"], ["--steps=100"]])
def test_without_out_it_refuses_and_writes_nothing(args, instant):
    before = shipped()
    with pytest.raises(UvitError, match=r"--out=FILE\.safetensors"):
        train_judge.main(args)
    assert shipped() == before


def test_an_existing_file_is_not_overwritten(instant, tmp_path):
    out = tmp_path / "mine.safetensors"
    out.write_bytes(b"weights")
    for file in (out, totem_judge.FOLDER / "totems_0.safetensors"):
        before = file.read_bytes()
        with pytest.raises(UvitError, match=r"--out=.*exists; give another file"):
            train_judge.main([f"--out={file}"])
        assert file.read_bytes() == before


def test_a_new_file_is_written(instant, tmp_path):
    out = tmp_path / "new" / "mine.safetensors"
    assert train_judge.main([f"--out={out}", "--steps=1"]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["mine.safetensors"]
    totem_judge.load(str(out))
