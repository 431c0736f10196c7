"""`experiments.finetune_lora` on a run of seconds, and sampling with what it wrote."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import finetune_lora, sample, train, tuning_watch
from tests.helpers.running import ROOT, TINY
from uvit_jax.errors import UvitError
from uvit_jax.interop import adapters
from uvit_jax.models import lora

TEXT = (
    "--config.model.sequence=('time', 'text', 'image')",
    "--config.model.segments.text={'kind': 'text', 'shape': (16,), 'vocab_size': 2048}",
    "--config.data.labels=",
    "--config.data.text=True",
    "--config.data.text_length=16",
    "--config.train.drop={'text': 0.1}",
)
FEW = ("--steps=3", "--rank=2", "--prior=4", "--rate=0.01", "--batch_size=2")
FEW = (*FEW, "--validation_count=0")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    # The first step's rate is 0; only after the second do the averages differ from the parameters.
    train.main([f"--config={ROOT / TINY}", f"--workdir={path}", "--config.train.steps=2", *TEXT])
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders `red_toy` with two images and `blue_toy` with three, of other sizes."""
    root = tmp_path_factory.mktemp("photos")
    for name, colour, count in (("red_toy", "red", 2), ("blue_toy", "blue", 3)):
        (root / name).mkdir()
        for i in range(count):
            Image.new("RGB", (20 + i, 18), colour).save(root / name / f"{i}.png")
    return root


def tune(workdir, *args):
    return finetune_lora.main([f"--workdir={workdir}", *FEW, *map(str, args)])


def sampled(workdir, tmp_path, *args):
    few = ("--count=2", "--steps=2", "--prompt=@1 toy", f"--out={tmp_path / 'out.png'}")
    sample.main([f"--workdir={workdir}", *few, *args])
    return np.load(tmp_path / "out.npz")["image"]


def test_an_adapter_changes_samples(workdir, photos, tmp_path, capsys):
    out, results = tmp_path / "toy.safetensors", tmp_path / "results.json"
    flags = (f"--images={photos / 'red_toy'}", "--prompt=@1 toy", f"--out={out}")
    assert tune(workdir, *flags, f"--json={results}") == 0
    assert str(out) in capsys.readouterr().out
    assert json.loads(results.read_text())["config"]["lora"]["rank"] == 2
    model, _ = uvit_jax.load(workdir)
    found, record = adapters.load(out, model)
    assert record.training["class_prompt"] == "toy" and record.training["prompt"] == "@1 toy"
    assert all(np.abs(pair.b).max() > 0 for pair in found.values())

    base = sampled(workdir, tmp_path)
    adapted = sampled(workdir, tmp_path, f"--adapter={out}")
    assert np.abs(adapted - base).max() > 1e-3
    assert np.array_equal(sampled(workdir, tmp_path, f"--adapter={out}:0"), base)
    halves = sampled(workdir, tmp_path, f"--adapter={out}:0.5", f"--adapter={out}:0.5")
    np.testing.assert_allclose(halves, adapted, atol=1e-3)

    with pytest.raises(UvitError, match=r"toy\.safetensors exists already"):
        tune(workdir, *flags)
    with pytest.raises(UvitError, match="was trained for parameters"):
        sampled(workdir, tmp_path, f"--adapter={out}", "--raw")
    sampled(workdir, tmp_path, f"--adapter={out}", "--raw", "--any_base")


def test_many_subjects_at_once_and_the_rest_later(workdir, photos, tmp_path, capsys):
    out = tmp_path / "adapters"
    flags = (f"--subjects={photos}", "--prompt=@1 {name}", f"--out={out}")
    tune(workdir, *flags)
    names = ["blue_toy.safetensors", "red_toy.safetensors"]
    assert sorted(p.name for p in out.iterdir()) == names
    model = uvit_jax.load(workdir)[0]
    first, record = adapters.load(out / "red_toy.safetensors", model)
    assert record.training["prompt"] == "@1 red toy"
    # A deleted adapter is trained again alone, with the same result.
    (out / "red_toy.safetensors").unlink()
    kept = (out / "blue_toy.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    tune(workdir, *flags)
    assert "1 exist already" in capsys.readouterr().out
    assert (out / "blue_toy.safetensors").stat().st_mtime_ns == kept
    again, _ = adapters.load(out / "red_toy.safetensors", model)
    for path, pair in first.items():
        np.testing.assert_allclose(pair.a @ pair.b, again[path].a @ again[path].b, atol=1e-4)
    with pytest.raises(UvitError, match="give a new --out"):
        tune(workdir, *flags, "--seed=1")


def test_captions_validation_and_an_interruption(workdir, photos, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "red_toy", tmp_path / "toy.safetensors"
    shutil.copytree(photos / "red_toy", folder)
    (folder / "0.txt").write_text("@1 toy, grinning")
    flags = (f"--images={folder}", f"--out={out}", "--steps=4", "--checkpoint_every=1")
    watch = ("--validation_count=2", "--validation_prompt={name} face", "--validation_every=2")
    with pytest.raises(UvitError, match=r"1\.png has no caption"):
        tune(workdir, *flags)
    (folder / "1.caption").write_text("@1 toy")
    with pytest.raises(UvitError, match="--class_prompt"):
        tune(workdir, *flags)

    results = tmp_path / "results.json"
    named = (*flags, "--class_prompt=toy", f"--json={results}")
    monkeypatch.setattr(tuning_watch, "DRIFT", -1.0)  # warns always
    tune(workdir, *named, *watch)
    rows = json.loads(results.read_text())["validation"]
    assert [row["step"] for row in rows] == [2, 4] and all(0 <= r["copies"] <= 1 for r in rows)
    assert all(np.isfinite(row["drift"]) for row in rows)
    assert "warning: red toy, step 4: the loss on images of the class" in capsys.readouterr().err
    grids = sorted(tmp_path.glob("toy_samples/*.png"))
    assert [p.name for p in grids] == ["000002.png", "000004.png"]
    model = uvit_jax.load(workdir)[0]
    first, record = adapters.load(out, model)
    assert record.training["captions"] == ["@1 toy, grinning", "@1 toy"]

    # Stopped while it is saved, and run again: the same adapter.
    out.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save", lambda *args: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            tune(workdir, *named)
    assert list(tmp_path.glob(".toy.unfinished*"))
    tune(workdir, *named)
    again, _ = adapters.load(out, model)
    for path, pair in first.items():
        assert all(map(np.array_equal, pair, again[path]))
    assert not list(tmp_path.glob(".toy*"))


def test_costs_are_those_of_the_adapters(workdir, photos, capsys):
    tune(workdir, f"--images={photos / 'red_toy'}", "--prompt=@1", "--plan", "--target=attention")
    (chosen,) = [line for line in capsys.readouterr().out.splitlines() if "chosen" in line]
    model = uvit_jax.load(workdir)[0]
    config = lora.LoraConfig(rank=2, targets=(lora.ATTENTION,))
    factors = jax.eval_shape(lambda: lora.init(jax.random.key(0), model.abstract_params, config))
    count = sum(leaf.size for leaf in jax.tree.leaves(factors))
    assert chosen.startswith(f"| attention (chosen) | 2 | {len(factors)} | {count:,} |")


def test_all_parameters_are_a_model_again(workdir, photos, tmp_path):
    out = tmp_path / "full.safetensors"
    flags = ("--method=full", f"--images={photos / 'red_toy'}", "--prompt=@1 toy", "--prior=0")
    tune(workdir, *flags, f"--out={out}")
    (model, params), (base, before) = uvit_jax.load(out), uvit_jax.load(workdir)
    assert model.layout == base.layout
    kernels = [p["backbone"]["mid_block"]["mlp"]["fc1"]["kernel"] for p in (params, before)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize(
    "args, message",
    [
        ((), "--images, or many with --subjects"),
        (("--images=nowhere",), "folder nowhere does not exist"),
        (("--subjects=PHOTOS/red_toy",), "--images"),
        (("--images=PHOTOS/red_toy", "--label=cat"), "no label segment"),
        (("--images=PHOTOS/red_toy", "--target=nothing"), "'nothing' matches no layer"),
        (("--images=PHOTOS/red_toy", "--method=lara"), "did you mean 'lora'"),
        (("--images=BROKEN",), r"cannot be opened: .*x\.png"),
    ],
)
def test_impossible_flags_raise(workdir, photos, tmp_path, args, message):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.png").write_bytes(b"not an image")
    args = [a.replace("PHOTOS", str(photos)).replace("BROKEN", str(broken)) for a in args]
    with pytest.raises(UvitError, match=message):
        tune(workdir, "--prompt=@1 toy", f"--out={tmp_path / 'x.safetensors'}", *args)
    assert not (tmp_path / "x.safetensors").exists()
