"""Runs on images of several sizes: one program a size, equal losses on one and on eight devices."""

import collections
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import evaluate, sample, sampling_flags
from tests.helpers.running import finish, losses, start
from uvit_jax.errors import UvitError
from uvit_jax.training import loop
from uvit_jax.training.loop import train
from uvit_jax.training.run_config import parse_run

SIZES = ((16, 16), (8, 16), (16, 8))
SHAPES = [(40, 40)] * 6 + [(30, 60)] * 5 + [(50, 25)] * 4
CONFIG = """
from ml_collections import ConfigDict
from tests.training.test_size_runs import described
def get_config():
    return ConfigDict(described({path!r}))
"""


def described(path, **train):
    image = dict(kind="patches", role="noisy", shape=(16, 16, 3), patch_size=4)
    return dict(
        model=dict(
            sequence=("time", "image"),
            segments=dict(time=dict(kind="time", time="image"), image=image),
            backbone=dict(width=32, depth=1, num_heads=2, mid_block=False, skip="none"),
        ),
        data=dict(name="folder", path=str(path), sizes=SIZES, workers=0),
        optimizer=dict(learning_rate=1e-3, warmup_steps=2),
        train=dict(steps=8, batch_size=8, log_every=1, **train),
        sample=dict(sampler=dict(name="ddim", steps=2), clip=1.0, count=4),
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SHAPES):
        colour = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(colour).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A workdir of 8 steps, its lowered programs, and the records of each step."""
    lowered, records = [], []
    make, take = loop.jit_step, loop.Batches.__next__

    def counted(*args):
        step = make(*args)

        class Counted:
            def lower(self, *arguments):
                lowered.append(step.lower(*arguments))
                return lowered[-1]

        return Counted()

    def recorded(self):
        batch = take(self)
        records.append((batch[2], batch[1]))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "jit_step", counted)
        patch.setattr(loop.Batches, "__next__", recorded)
        workdir = tmp_path_factory.mktemp("run") / "run"
        train(parse_run(described(photos, checkpoint_every=4, keep_checkpoints=9)), workdir)
    return workdir, lowered, records


def test_each_size_is_compiled_once_and_no_example_is_dropped(trained):
    _, lowered, records = trained
    assert len(records) == 8 and len(lowered) == len({size for size, _ in records}) == 3
    assert all(size == SIZES[(i > 5) + (i > 10)] for size, batch in records for i in batch)
    # 64 of the first examples of 15 an epoch: each has come four times, or waits for its size.
    times = collections.Counter(i for _, batch in records for i in batch)
    assert set(times) == set(range(15)) and max(times.values()) <= 5


@pytest.mark.slow
def test_validation_is_the_mean_over_all_sizes(photos, tmp_path):
    config = described(photos)
    config["train"]["steps"] = 1
    config["validation"] = dict(every=1, path=str(photos), count=8, times=(0.5,))
    train(parse_run(config), tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert 0.1 < row["validation/test/loss_0.5"] < 10


@pytest.mark.slow
def test_a_resumed_run_has_the_same_losses(trained, photos, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(trained[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    train(parse_run(described(photos, checkpoint_every=4, keep_checkpoints=9)), workdir)
    assert losses(workdir) == losses(trained[0])


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one(trained, photos, tmp_path):
    config = tmp_path / "sizes.py"
    config.write_text(CONFIG.format(path=str(photos)))
    flags = [f"--config={config}", f"--workdir={tmp_path / 'eight'}"]
    for mesh in ((), ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")):
        flags[1] = f"--workdir={tmp_path / f'eight{len(mesh)}'}"
        status, out, err = finish(start("experiments.train", *flags, *mesh, devices=8))
        assert status == 0, err + out
        ours, theirs = losses(trained[0]), losses(tmp_path / f"eight{len(mesh)}")
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose([*theirs.values()], [*ours.values()], rtol=1e-5)


@pytest.mark.parametrize(
    "size, shape",
    [
        ("8×16", (8, 16)),
        pytest.param("24x12", (24, 12), marks=pytest.mark.slow),
        pytest.param("20", (20, 20), marks=pytest.mark.slow),
    ],
)
def test_samples_of_other_sizes(trained, tmp_path, size, shape):
    out = tmp_path / "out.png"
    command = [f"--workdir={trained[0]}", f"--size={size}", "--count=2", f"--out={out}"]
    assert sample.main(command) == 0
    assert np.load(out.with_suffix(".npz"))["image"].shape == (2, *shape, 3)


@pytest.mark.parametrize("size", ["8×", "x", "8×8×8", "0", "8.5", "-8"])
def test_impossible_sizes_of_samples(size):
    with pytest.raises(UvitError, match=r"--size=.*HEIGHT×WIDTH"):
        sampling_flags.parsed_size(size)


def test_a_size_that_patches_do_not_divide(trained, photos, tmp_path):
    with pytest.raises(UvitError, match="patch_size=4 does not divide"):
        sample.main([f"--workdir={trained[0]}", "--size=8×9", f"--out={tmp_path / 'o.png'}"])
    config = described(photos)
    config["data"]["sizes"] = ((16, 16), (8, 18))
    with pytest.raises(UvitError, match=r"size 8×18: .*patch_size=4"):
        train(parse_run(config), tmp_path / "run")
    config["data"]["sizes"] = ((8, 16), (16, 16))
    with pytest.raises(UvitError, match=r"'image' has shape=.*sizes, or the segment's shape"):
        train(parse_run(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_size_is_evaluated_against_the_data_of_this_size(trained, tmp_path):
    command = [f"--workdir={trained[0]}", "--encoder=pixels", "--count=4", "--batch_size=4"]
    row = tmp_path / "row.json"
    assert evaluate.main([*command, "--size=8×16", f"--json={row}"]) == 0
    row = json.loads(row.read_text())
    assert row["samples"]["size"] == [8, 16] and row["reference"]["count"] == 5
    with pytest.raises(UvitError, match=r"--size=12×12.*16×16, 8×16, 16×8"):
        evaluate.main([*command, "--size=12×12"])


def test_models_of_other_sizes_have_the_same_parameters_in_python(trained):
    model, params = uvit_jax.load(trained[0])
    wide = model.resized({"image": (8, 24, 3)})
    assert wide.abstract_params == model.abstract_params
    inputs = {"image": np.zeros((1, 8, 24, 3))}, {"image": np.ones(1)}
    out = jax.eval_shape(wide.apply, params, *inputs)
    assert out["image"].shape == (1, 8, 24, 3)
