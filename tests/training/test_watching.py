"""What a run logs besides its loss: validation, samples, and Weights & Biases."""

import json
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from experiments import train
from experiments.cli import read_config
from tests.helpers.running import ROOT, TINY
from uvit_jax.data import pipeline
from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.training import validation
from uvit_jax.training.load import load
from uvit_jax.training.metrics_writer import read_metrics
from uvit_jax.training.run_config import parse_run

VALIDATION = ("--config.validation.every=2", "--config.validation.count=16")
SPLITS = "--config.validation.splits=('train', 'test')"
NAMES = {f"validation/{s}/loss" for s in ("train", "test")}


def run(workdir, *args):
    return train.main([f"--config={ROOT / TINY}", f"--workdir={workdir}", *map(str, args)])


def rows(workdir):
    return {row["step"]: row for row in read_metrics(workdir / "metrics.jsonl")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("watching") / "run"
    run(workdir, "--config.train.steps=5", *VALIDATION, SPLITS)
    return workdir


def test_validation_losses_are_logged_at_their_steps(trained):
    assert [s for s, row in rows(trained).items() if row.keys() >= NAMES] == [2, 4, 5]
    by_time = {f"validation/test/loss_{t}" for t in ("0.1", "0.3", "0.5", "0.7", "0.9")}
    assert all(by_time <= rows(trained)[step].keys() for step in (2, 4, 5))


def test_they_are_those_of_the_averaged_parameters(trained):
    config = parse_run(json.loads((trained / "config.json").read_text()))
    model, params = load(trained)
    mesh = make_mesh(config.mesh)
    measure = validation.make_validations(config, model, pipeline.dataset(config.data), mesh)
    for name, value in measure(params).items():
        np.testing.assert_allclose(rows(trained)[5][name], value, rtol=1e-5)


def test_a_resumed_run_has_the_same_and_may_change_them(trained, tmp_path):
    workdir = tmp_path / "run"
    run(workdir, "--config.train.steps=3", *VALIDATION, SPLITS)
    run(workdir, "--config.train.steps=5", *VALIDATION, SPLITS)
    for step in (2, 4, 5):
        for name in NAMES:
            assert rows(workdir)[step][name] == rows(trained)[step][name]
    run(workdir, "--config.train.steps=6")
    assert not rows(workdir)[6].keys() & NAMES


def folder(path, seed, names=("cat", "dog")):
    rng = np.random.default_rng(seed)
    for name in names:
        (path / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def test_another_folder_is_held_out(tmp_path):
    data = dict(name="folder", path=str(folder(tmp_path / "a", 0)), labels="label")
    data |= dict(keep_vendors=(), keep_groups=())
    args = [f"--config.data.{key}={value!r}" for key, value in data.items()]
    args += ["--config.train.steps=2", *VALIDATION, "--config.train.batch_size=4"]
    other = folder(tmp_path / "b", 1)
    run(tmp_path / "run", *args, f"--config.validation.path={other}")
    assert "validation/test/loss" in rows(tmp_path / "run")[2]
    with pytest.raises(UvitError, match=r"config\.validation: a folder has only .*'train'"):
        run(tmp_path / "none", *args)
    strange = folder(tmp_path / "c", 2, ("cat", "emu"))
    with pytest.raises(UvitError, match=r"config\.validation: its classes are .*emu"):
        run(tmp_path / "none", *args, f"--config.validation.path={strange}")
    assert not (tmp_path / "none").exists()


def test_words_have_the_ids_of_training(tmp_path):
    """Also those of another folder, whose own vocabulary would be another one."""
    for name, caption in (("a", "zebra apple"), ("b", "apple")):
        folder(tmp_path / name, 0, ("x",))
        for i in range(4):
            (tmp_path / name / "x" / f"{i}.txt").write_text(caption)
    base = dict(read_config(str(ROOT / "configs" / "quickstart.py"), {}))
    base["data"] = dict(
        name="folder", path=str(tmp_path / "a"), image_size=32, text=True, text_length=12
    )
    base["validation"] = dict(every=10, path=str(tmp_path / "b"), count=1, times=())
    config = parse_run(base)
    seen = []

    def record(model, diffusion, dataset, **_):
        seen.append(dataset.batch([0])["text"][0])
        return lambda params, t=None: 0.0

    original, validation.make_validation = validation.make_validation, record
    try:
        trained = pipeline.dataset(config.data)
        from uvit_jax.models.model import build

        validation.make_validations(config, build(config.model), trained, make_mesh(config.mesh))
    finally:
        validation.make_validation = original
    assert seen[0][0] == trained.tokenizer.encode("apple", 12)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.validation.every=3", r"validation\.every=3 must be a multiple of .*log_every"),
        ("--config.validation.splits=('tets',)", r"config\.validation: .*'tets'"),
        ("--config.validation.times=(2.0,)", r"times must lie in \[0, 1\]"),
        ("--config.validation.count=0", r"count at least 1"),
    ],
)
def test_impossible_validation_is_refused_first(change, message, tmp_path):
    with pytest.raises(UvitError, match=message):
        run(tmp_path / "run", "--config.train.log_every=2", *VALIDATION, change)
    assert not (tmp_path / "run").exists()


def events(workdir):
    """The events in all of TensorBoard's files."""
    for file in workdir.glob("events.out*"):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_has_the_grids_of_samples(trained):
    images = {
        (e.step, v.tag): v.image
        for e in events(trained)
        for v in e.summary.value
        if v.HasField("image")
    }
    png = (trained / "samples" / "00000005.png").read_bytes()
    assert images[5, "samples/image"].encoded_image_string == png


class Wandb(types.ModuleType):
    """A stand-in for the package: what is sent to it, by the run's id."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.refuse = {}, False
        self.Image = lambda file: ("image", file)

    def init(self, **options):
        if self.refuse:
            raise self.Error("api_key not configured\nsecond line")
        rows = self.runs.setdefault(options["id"], [])
        return types.SimpleNamespace(
            log=rows.append, define_metric=lambda *_, **__: None, finish=lambda: None
        )


@pytest.fixture
def wandb(monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_weights_and_biases_gets_rows_and_samples_of_one_run(wandb, tmp_path):
    workdir = tmp_path / "run"
    for steps in (2, 4):
        run(workdir, f"--config.train.steps={steps}", "--config.train.wandb=toy")
    (logged,) = wandb.runs.values()
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4]
    assert [row["loss"] for row in logged if "loss" in row] == [
        row["loss"] for row in rows(workdir).values()
    ]
    assert [row["step"] for row in logged if "samples/image" in row] == [2, 4]


def test_weights_and_biases_missing_or_refusing_is_one_line(wandb, tmp_path, monkeypatch):
    wandb.refuse = True
    with pytest.raises(UvitError, match=r"'toy': api_key not configured; run `wandb login`"):
        run(tmp_path / "a", "--config.train.steps=1", "--config.train.wandb=toy")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UvitError, match=r"pip install 'uvit-jax\[wandb\]'"):
        run(tmp_path / "b", "--config.train.steps=1", "--config.train.wandb=toy")
    jax.clear_caches()
