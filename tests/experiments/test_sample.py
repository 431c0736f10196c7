"""`experiments.sample` on a run of seconds."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import evaluate, finetune_lora, sample, train
from tests.helpers.running import ROOT, TINY
from uvit_jax.errors import UvitError
from uvit_jax.training.workdir import Workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    train.main([f"--config={ROOT / TINY}", f"--workdir={path}", "--config.train.steps=6"])
    return path


def generate(workdir, tmp_path, *args):
    out = tmp_path / "out.png"
    sample.main([f"--workdir={workdir}", f"--out={out}", *map(str, args)])
    return np.load(out.with_suffix(".npz")), Image.open(out)


def test_a_grid_and_its_arrays(workdir, tmp_path):
    results = tmp_path / "results.json"
    arrays, grid = generate(workdir, tmp_path, "--count=5", "--steps=2", f"--json={results}")
    assert arrays["image"].shape == (5, 16, 16, 3) and np.isfinite(arrays["image"]).all()
    assert grid.width > 3 * 96 and grid.mode == "RGB"
    row = json.loads(results.read_text())
    assert row["count"] == 5 and row["sampler"]["steps"] == 2 and len(row["captions"]) == 5
    assert row["guidance_scale"] == 1 and row["guidance_channels"] == 0 and row["clip"] == 1


def test_seed_batch_size_and_flags_mean_what_they_say(workdir, tmp_path):
    def images(*args):
        few = ("--count=4", "--sampler=ddim", "--steps=3")
        return generate(workdir, tmp_path, *few, *args)[0]["image"]

    base = images()
    assert np.array_equal(base, images())
    changes = ("--seed=1", "--guidance=3", "--steps=5", "--step=5", "--raw", "--label=cat-face")
    for change in (*changes, "--guidance_channels=1"):
        assert not np.array_equal(base, images(change)), change
    # A label by name and by its number are one thing.
    vocabulary = json.loads((workdir / "vocabulary.json").read_text())
    number = vocabulary["classes"].index("cat-face")
    assert np.array_equal(images("--label=cat-face"), images(f"--label={number}"))


def test_the_batch_size_does_not_change_the_images(workdir, tmp_path):
    few = ("--count=5", "--sampler=ddpm", "--steps=2")
    base = generate(workdir, tmp_path, *few)[0]["image"]
    for size in (1, 2):
        ours = generate(workdir, tmp_path, *few, f"--batch_size={size}")[0]["image"]
        np.testing.assert_allclose(ours, base, atol=1e-3)
    fewer = generate(workdir, tmp_path, "--count=3", *few[1:])[0]["image"]
    np.testing.assert_allclose(fewer, base[:3], atol=1e-3)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--prompt=cat"], "no text segment"),
        (["--label=dog-face"], "'dog-face' .*did you mean"),
        (["--label=9999"], "label '9999'"),
        (["--step=3"], "has no checkpoint 3"),
        (["--sampler=dpm"], "did you mean"),
        (["--count=0"], "count must be at least 1"),
        (["--batch_size=0"], "batch_size must be at least 1"),
        (["--sampels=3"], "unknown flag '--sampels'; did you mean '--sampler'"),
    ],
)
def test_impossible_flags_raise(workdir, tmp_path, args, message):
    with pytest.raises(UvitError, match=message):
        generate(workdir, tmp_path, *args)


def test_a_run_whose_attention_is_not_available(workdir, tmp_path):
    elsewhere = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((elsewhere / "config.json").read_text())
    config["model"]["backbone"]["attention"] = "splash"
    (elsewhere / "config.json").write_text(json.dumps(config))
    message, of = "'splash' runs on TPUs, not on cpu; .*--attention=xla", f"--workdir={elsewhere}"
    few = ("--count=2", "--steps=2")
    with pytest.raises(UvitError, match=message):
        generate(elsewhere, tmp_path, *few)
    with pytest.raises(UvitError, match=message):
        evaluate.main([of, "--encoder=pixels", "--count=2"])
    with pytest.raises(UvitError, match=message):
        finetune_lora.main([of, f"--images={tmp_path}", f"--out={tmp_path / 'x.safetensors'}"])
    with pytest.raises(UvitError, match=r"attention='xlb'.*did you mean 'xla'"):
        generate(elsewhere, tmp_path, *few, "--attention=xlb")
    own = generate(workdir, tmp_path, *few)[0]["image"]
    other = generate(elsewhere, tmp_path, *few, "--attention=blocked")[0]["image"]
    np.testing.assert_allclose(other, own, atol=1e-4)


def test_earlier_samples_are_never_overwritten(workdir):
    for _ in range(3):
        sample.main([f"--workdir={workdir}", "--count=1", "--steps=1", "--seed=9"])
    names = sorted(p.name for p in (workdir / "samples").glob("sample_seed9*.png"))
    assert names == ["sample_seed9.png", "sample_seed9_2.png", "sample_seed9_3.png"]


def test_a_workdir_may_begin_with_a_tilde(workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    arrays, _ = generate(f"~/{workdir.name}", tmp_path, "--count=1", "--steps=1")
    assert arrays["image"].shape == (1, 16, 16, 3)
    assert Workdir("~/run").path == workdir
    assert uvit_jax.load("~/run")[0].num_params == uvit_jax.load(workdir)[0].num_params


def test_load_gives_the_average_or_the_raw_parameters(workdir):
    model, average = uvit_jax.load(workdir)
    _, raw = uvit_jax.load(workdir, ema=False)
    _, older = uvit_jax.load(workdir, step=5)
    kernels = [p["backbone"]["mid_block"]["mlp"]["fc1"]["kernel"] for p in (average, raw, older)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert kernels[0].shape == (32, 128) and model.layout.num_tokens == 18
