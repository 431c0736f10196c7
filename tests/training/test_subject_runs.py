"""A run of a world of subjects: references come in as tokens, of the data and of folders."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import evaluate, finetune_lora, sample
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import unified
from uvit_jax.sampling.reference_folder import from_folder
from uvit_jax.training.loop import train
from uvit_jax.training.run_config import parse_run


def run(**data):
    return parse_run(
        dict(
            model=unified.preset(
                "uvit",
                (16, 16, 3),
                patch_size=4,
                subjects=2,
                views=2,
                text=dict(shape=(24,), vocab_size=512),
                width=32,
                depth=2,
                num_heads=2,
            ),
            data=dict(name="totems", image_size=16, text=True, text_length=24, workers=0, **data),
            train=dict(steps=2, batch_size=2, drop_references=0.5),
            sample=dict(sampler=dict(name="ddim", steps=1), count=2),
        )
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of such a run, and its summary."""
    config, workdir = run(max_subjects=2, max_views=2), tmp_path_factory.mktemp("run") / "run"
    return workdir, train(config, workdir)


def test_a_world_is_trained_and_sampled(trained):
    summary = trained[1]
    assert summary.step == 2 and np.isfinite(summary.loss)
    assert Image.open(summary.samples).size[0] >= 32


@pytest.fixture
def photos(tmp_path):
    """Folders `bear` with two pictures and `clock` with one, of another size than the model's."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for file in ("bear/back.png", "bear/front.png", "clock/it.png"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), np.uint8)).save(root / file)
    return root


def test_subjects_of_a_folder_are_sampled(trained, photos, tmp_path):
    def sampled(folder, prompt="@1"):
        out, results = tmp_path / "out.png", tmp_path / "results.json"
        files = (f"--out={out}", f"--json={results}", f"--references={folder}")
        base = (f"--workdir={trained[0]}", f"--prompt={prompt}", "--count=3", "--batch_size=2")
        assert sample.main([*base, *files]) == 0
        return json.loads(results.read_text())["references"], np.load(out.with_suffix(".npz"))[
            "image"
        ]

    names, both = sampled(photos, "@1 left of @2")
    assert names == ["bear", "clock"] and both.shape == (3, 16, 16, 3)
    names, alone = sampled(photos / "bear")
    assert names == ["bear"] and not np.array_equal(alone, both)
    # Pictures of one subject are a folder with one folder.
    (photos / "clock").rename(tmp_path / "aardvark")
    names, same = sampled(photos)
    assert names == ["bear"] and np.array_equal(same, alone)
    # Subjects are in the order of their names.
    (tmp_path / "aardvark").rename(photos / "aardvark")
    names, swapped = sampled(photos, "@1 left of @2")
    assert names == ["aardvark", "bear"]
    assert not np.array_equal(swapped, both)


def test_folders_that_are_not_references_raise(trained, photos, tmp_path):
    def fails(message, *args):
        with pytest.raises(UvitError, match=message):
            sample.main([f"--workdir={trained[0]}", f"--out={tmp_path / 'out.png'}", *args])
        assert not (tmp_path / "out.png").exists()

    given = f"--references={photos}"
    fails("--references=FOLDER", "--prompt=@1")
    fails("does not exist", f"--references={photos / 'nowhere'}")
    fails("does not name @2, which has references", f"--references={photos}", "--prompt=@1")
    bear = f"--references={photos / 'bear'}"
    fails("names @2, which has no references", bear, "--prompt=@1 beside @2")
    (photos / "empty").mkdir()
    fails("empty holds no image", given)
    shutil.copy(photos / "clock" / "it.png", photos / "empty" / "it.png")
    fails(r"3 subjects \(bear, clock, empty\), and the model takes at most 2", given)
    shutil.rmtree(photos / "empty")
    shutil.copy(photos / "clock" / "it.png", photos / "side.png")
    fails("holds images and folders", given)
    (photos / "side.png").unlink()
    broken = photos / "bear" / "front.png"
    broken.write_bytes(broken.read_bytes()[:50])
    fails(r"cannot be opened.*front\.png", given)
    with pytest.raises(UvitError, match="takes no references"):
        from_folder(uvit_jax.build(run().model).without_references().layout, photos)


def test_of_more_images_than_views_the_first_are_used(photos, capsys):
    layout = uvit_jax.build(run().model).layout
    both = from_folder(layout, photos / "bear")["bear"]
    assert "note" not in capsys.readouterr().err
    shutil.copy(photos / "clock" / "it.png", photos / "bear" / "side.png")
    assert np.array_equal(from_folder(layout, photos / "bear")["bear"], both)
    assert "used: back.png, front.png" in capsys.readouterr().err


def test_a_model_with_references_is_sampled_and_fine_tuned_without_them(trained, photos, tmp_path):
    def sampled(*args):
        out = tmp_path / "out.png"
        base = (f"--workdir={trained[0]}", f"--out={out}", "--prompt=@1", "--count=2")
        assert sample.main([*base, *args]) == 0
        return np.load(out.with_suffix(".npz"))["image"]

    bare = sampled("--references=none")
    assert not np.array_equal(bare, sampled(f"--references={photos / 'bear'}"))
    adapter = tmp_path / "bear.safetensors"
    args = (f"--workdir={trained[0]}", f"--images={photos / 'bear'}", f"--out={adapter}")
    tuning = ("--prompt=@1 bear", "--steps=2", "--prior=2", "--rate=0.01")
    assert finetune_lora.main([*args, *tuning]) == 0
    adapted = sampled(f"--adapter={adapter}")
    assert not np.array_equal(adapted, bare)
    assert np.array_equal(adapted, sampled(f"--adapter={adapter}", "--references=none"))
    both = sampled(f"--adapter={adapter}", f"--references={photos / 'bear'}")
    assert not np.array_equal(both, adapted)


def test_samples_of_the_datas_references_are_measured(trained, tmp_path):
    pictures = np.random.default_rng(0).uniform(-1, 1, (6, 16, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "pictures.npz", image=pictures)
    args = ["--encoder=pixels", "--count=4", "--batch_size=2", f"--json={tmp_path / 'row.json'}"]
    reference = f"--reference={tmp_path / 'pictures.npz'}"
    assert evaluate.main([f"--workdir={trained[0]}", *args, reference]) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert np.isfinite(row["metrics"]["pixels_frechet_distance"])
    assert row["samples"]["conditions"] == "totems/train" and row["samples"]["count"] == 4


def test_slots_that_the_data_do_not_fill_raise(tmp_path):
    config = run(max_subjects=2, max_views=3)
    with pytest.raises(UvitError, match=r"2 subjects × 2 views.*config\.data\.max_subjects"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
