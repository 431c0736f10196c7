"""`experiments.evaluate` on a run of seconds, with an encoder of nothing but pixels."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import uvit_jax
from experiments import evaluate, sample, train
from tests.helpers import latent_folders
from tests.helpers.autoencoders import randomised
from tests.helpers.running import ROOT, TINY, finish, start
from uvit_jax.autoencoders.kl import AutoencoderConfig, build_autoencoder
from uvit_jax.autoencoders.kl_weights import export_autoencoder
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.frechet import read_statistics

QUICK = ("--encoder=pixels", "--count=20", "--batch_size=8", "--steps=2")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    train.main([f"--config={ROOT / TINY}", f"--workdir={path}", "--config.train.steps=6"])
    return path


def measure(tmp_path, *args):
    results = tmp_path / "results.json"
    assert evaluate.main([f"--json={results}", *map(str, args)]) == 0
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def row(workdir, tmp_path_factory):
    """Samples of the workdir against its data."""
    return measure(tmp_path_factory.mktemp("row"), f"--workdir={workdir}", *QUICK)


def test_metrics_are_recorded_with_all_settings(workdir, row):
    names = ("frechet_distance", "precision", "recall", "kernel_distance")
    assert {f"pixels_{name}" for name in names} <= set(row["metrics"])
    assert all(np.isfinite(value) for value in row["metrics"].values())
    assert row["metrics"]["pixels_frechet_distance"] > 0
    record = row["samples"]
    assert record["count"] == 20 and record["step"] == 6 and record["ema"] and record["seed"] == 0
    assert record["sampler"]["name"] == "dpm_solver" and record["sampler"]["steps"] == 2
    assert record["guidance_scale"] == 1 and len(record["params_sha256"]) == 64
    assert row["encoder"]["name"] == "pixels" and not row["encoder"]["official"]
    assert row["reference"]["source"] == "emoji/train" and row["reference"]["count"] > 100
    lines = (workdir / "evaluation.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == row


def test_what_changes_the_samples_changes_the_metrics_and_is_recorded(workdir, row, tmp_path):
    base = (f"--workdir={workdir}", *QUICK)
    again = measure(tmp_path, *base)
    assert again["metrics"] == row["metrics"]
    for change in ("--seed=1", "--guidance=0", "--step=5", "--raw"):
        found = measure(tmp_path, *base, change)
        assert found["metrics"] != row["metrics"], change
        assert found["samples"] != row["samples"], change
    assert found["samples"]["params_sha256"] != row["samples"]["params_sha256"]


def test_a_mesh_gives_the_metrics_of_one_device(workdir, row, tmp_path):
    results = tmp_path / "results.json"
    args = (f"--workdir={workdir}", *QUICK, "--fsdp=2", f"--json={results}")
    status, out, err = finish(start("experiments.evaluate", *args, devices=4))
    assert status == 0, err
    found = json.loads(results.read_text())["metrics"]
    assert found == pytest.approx(row["metrics"], rel=1e-3)
    assert "pixels_frechet_distance" in out


def test_written_statistics_are_a_reference(workdir, row, tmp_path):
    kept = tmp_path / "reference.npz"
    base = (f"--workdir={workdir}", *QUICK)
    measure(tmp_path, *base, f"--write_reference={kept}")
    assert read_statistics(kept).count == row["reference"]["count"]
    found = measure(tmp_path, *base, f"--reference={kept}")
    key = "pixels_frechet_distance"
    assert found["metrics"] == {key: pytest.approx(row["metrics"][key], rel=1e-9)}
    assert len(found["reference"]["sha256"]) == 64 and found["compared"] == 0


def test_images_from_files_are_measured_alike(workdir, tmp_path):
    out = tmp_path / "samples.png"
    sample.main([f"--workdir={workdir}", "--count=12", f"--out={out}"])
    samples_npz = out.with_suffix(".npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    floats = np.load(samples_npz)["image"]
    for i, pixels in enumerate(np.clip(np.round((floats + 1) * 127.5), 0, 255).astype(np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    base = ("--encoder=pixels", "--batch_size=8", f"--workdir={workdir}")
    arrays = measure(tmp_path, *base, f"--images={samples_npz}")
    files = measure(tmp_path, *base, f"--images={folder}")
    assert arrays["metrics"] == pytest.approx(files["metrics"], rel=1e-6)
    assert arrays["samples"]["count"] == files["samples"]["count"] == 12
    # No run is needed for two sets of pictures; the same set twice is no distance apart.
    same = measure(tmp_path, "--encoder=pixels", f"--images={samples_npz}", f"--reference={folder}")
    assert same["metrics"]["pixels_frechet_distance"] < 1e-9
    assert same["metrics"]["pixels_recall"] == 1


def test_impossible_flags_raise(workdir, tmp_path):
    def fails(message, *args):
        with pytest.raises(UvitError, match=message):
            evaluate.main(["--encoder=pixels", *map(str, args)])

    run = f"--workdir={workdir}"
    small = tmp_path / "small.npz"
    np.savez(small, mu=np.zeros(5), sigma=np.eye(5))
    unit = tmp_path / "unit.npz"
    np.savez(unit, arr_0=np.random.default_rng(0).uniform(size=(9, 8, 8, 3)))
    broken = tmp_path / "broken.npz"
    np.savez(broken, arr_0=np.full((9, 8, 8, 3), np.nan, np.float32))
    fails("--workdir=DIR", "--count=9")
    fails("needs a --reference", f"--images={unit}")
    fails("--steps is a sampling flag", f"--images={unit}", run, "--steps=3")
    fails(r"in \[-1, 1\]", f"--images={unit}", run)
    fails("image 0 of .*broken.npz has NaN", f"--images={broken}", run)
    fails("5 features, and pixels has 64", run, f"--reference={small}", "--count=4")
    fails("does not exist", run, "--reference=nowhere.npz", "--count=4")
    fails("expected a folder of images", run, "--reference=nowhere", "--count=4")
    fails("has no checkpoint 3", run, "--step=3", "--count=4")
    fails("did you mean 'pixels'", run, "--encoder=pixel")
    fails("count must be at least 2", run, "--count=1")
    fails("batch_size=0 must be a positive", run, "--batch_size=0")
    fails("not a workdir", f"--workdir={tmp_path}")
    fails("did you mean '--guidance'", run, "--guidence=3")
    fails(r"'dpn'.*did you mean 'ddpm'", run, "--sampler=dpn", "--count=4")


def of_other_data(workdir, copy, classes, **data):
    """A copy of the workdir as if it were of these classes and data."""
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("evaluation.jsonl"))
    config = json.loads((copy / "config.json").read_text())
    config["data"] = {"labels": "label", "flip": True, **data}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "vocabulary.json").write_text(Vocabulary(classes).to_json())
    return f"--workdir={copy}"


@pytest.fixture(scope="module")
def cats_and_dogs(tmp_path_factory):
    """A folder of two classes of pictures."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(10):
        file = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    return folder


def test_imported_weights_need_no_data_for_uniform_labels(workdir, cats_and_dogs, tmp_path):
    gone, few = tmp_path / "gone", ("--encoder=pixels", "--count=4", "--steps=2")
    run = of_other_data(workdir, tmp_path / "run", (), name="latents", path=str(gone))
    with pytest.raises(UvitError, match=r"of latents.*--autoencoder=FILE"):
        measure(tmp_path, run, *few, f"--reference={cats_and_dogs}", "--labels=uniform")
    autoencoder = build_autoencoder(  # of as many pixels as latents
        AutoencoderConfig(widths=(32,), num_blocks=1, latent_channels=3)
    )
    weights = tmp_path / "autoencoder.safetensors"
    safetensors.numpy.save_file(export_autoencoder(*randomised(autoencoder)), weights)
    few = (*few, f"--autoencoder={weights}")
    base = (run, *few, f"--reference={cats_and_dogs}")
    with pytest.raises(UvitError, match=r"there are no latents in .*--labels=uniform"):
        measure(tmp_path, *base)
    uniform = measure(tmp_path, *base, "--labels=uniform")
    assert uniform["samples"]["conditions"] == "uniform labels"
    assert uniform["samples"]["guidance_channels"] == 0
    other = measure(tmp_path, *base, "--labels=uniform", "--guidance_channels=1")
    assert other["samples"]["guidance_channels"] == 1
    assert other["metrics"] != uniform["metrics"]
    # The data's names mean nothing to it, but their numbers do. They bring no mirrored pictures.
    latents = tmp_path / "latents"
    latent_folders.write(latents, dataclasses.replace(latent_folders.INDEX, mirrored=False))
    found = measure(tmp_path, *base, f"--data={latents}")
    assert found["samples"]["conditions"] == str(latents)
    assert found["metrics"] != uniform["metrics"]
    with pytest.raises(UvitError, match=f"are latents .{latents}.*--reference"):
        measure(tmp_path, run, *few, f"--data={latents}")


def test_another_folder_is_reference_and_conditions(workdir, cats_and_dogs, tmp_path):
    less = tmp_path / "less"
    shutil.copytree(cats_and_dogs, less)
    for file in less.glob("cat/*"):
        file.unlink()
    names = ("bird", "dog", "cat")
    data = dict(name="folder", path=str(cats_and_dogs))
    run = of_other_data(workdir, tmp_path / "run", names, **data)
    base = (run, "--encoder=pixels", "--count=4", "--steps=2")
    own, other = measure(tmp_path, *base), measure(tmp_path, *base, f"--data={less}")
    for found, folder, count in ((own, cats_and_dogs, 10), (other, less, 5)):
        assert found["samples"]["conditions"] == found["reference"]["source"] == str(folder)
        assert found["reference"]["count"] == count
    with pytest.raises(UvitError, match="has no splits; name another folder with --data"):
        measure(tmp_path, *base, "--split=test")
    with pytest.raises(UvitError, match=r"--data=.*'emoji'.*--split"):
        measure(tmp_path, f"--workdir={workdir}", f"--data={less}")
    with pytest.raises(UvitError, match="need --workdir"):
        measure(tmp_path, f"--images={less}", f"--reference={less}", f"--data={less}")


def test_diverged_parameters_raise(workdir, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("evaluation.jsonl"))
    real = uvit_jax.load

    def diverged(*args, **kwargs):
        model, params = real(*args, **kwargs)
        return model, jax.tree.map(lambda a: a * np.nan, params)

    monkeypatch.setattr("uvit_jax.training.load.load", diverged)
    with pytest.raises(UvitError, match=r"image 0 of .* at step 6 has NaN"):
        evaluate.main([f"--workdir={copy}", *QUICK])
    assert not (copy / "evaluation.jsonl").exists()
