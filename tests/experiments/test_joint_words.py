"""A run that denoises images and the words of their captions, and samples both ways."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import cli, evaluate_pairs, sample, train
from uvit_jax.errors import UvitError

CONFIG = """
from ml_collections import ConfigDict
from uvit_jax.models.presets import uvit


def get_config():
    config = ConfigDict()
    config.data = dict(
        name="emoji",
        image_size=8,
        keep_vendors=("twemoji",),
        keep_subgroups=("cat-face",),
        text=True,
        text_length=12,
    )
    config.model = uvit.preset("S", (8, 8, 3), patch_size=4, width=16, depth=2, num_heads=2)
    config.model["segments"]["text_time"] = dict(kind="time", time="text")
    text = dict(kind="codes", role="noisy", shape=(12, 16), vocab_size=2048)
    config.model["segments"]["text"] = text
    config.model["sequence"] = ("time", "text_time", "text", "image")
    config.diffusion = dict(schedule=dict(name="rectified_flow"), prediction="x0")
    config.train = dict(steps=2, batch_size=4, given={"text": 0.5}, drop={"text": 0.5})
    config.sample = dict(
        mode="image_to_text", sampler=dict(name="ddim", steps=2), guidance_scale=1.0, count=2
    )
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.py").write_text(CONFIG)
    args = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    assert train.main(args) == 0
    return folder / "run"


def generate(workdir, tmp_path, *flags):
    out, results = tmp_path / "out.png", tmp_path / "results.json"
    flags = [*flags, f"--out={out}", f"--json={results}"]
    assert sample.main([f"--workdir={workdir}", *flags]) == 0
    return np.load(out.with_suffix(".npz")), json.loads(results.read_text())


def test_captions_of_images_and_images_of_captions(workdir, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    image = f"--image={tmp_path / 'photo.png'}"
    arrays, results = generate(workdir, tmp_path, "--mode=image_to_text", image)
    assert arrays["text"].shape == (1, 12, 16) and "image" not in arrays
    assert results["captions"][0] in capsys.readouterr().out
    arrays, results = generate(workdir, tmp_path, "--mode=text_to_image", "--prompt=cat face")
    assert arrays["image"].shape == (1, 8, 8, 3) and results["captions"] == ["cat face"]
    arrays, results = generate(workdir, tmp_path, "--mode=joint", "--count=3")
    assert arrays["image"].shape[0] == arrays["text"].shape[0] == len(results["captions"]) == 3


def test_words_that_the_vocabulary_lacks_are_named(workdir, tmp_path, capsys):
    generate(workdir, tmp_path, "--mode=text_to_image", "--prompt=cat face, xyz")
    assert capsys.readouterr().err == "note: words unknown to the model, spelled in bytes: xyz\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=text_to_image"], "needs --prompt"),
        (["--mode=image_to_text"], "needs --image"),
        (["--prompt=cat"], "given an image; leave out --prompt=cat.*text_to_image"),
        (["--mode=joint", "--label=cat"], "given no label; leave out --label=cat"),
        (["--mode=text_to_image", f"--prompt={'xyz ' * 9}"], "the limit is 12; shorten it"),
        (["--mode=image_to_text", "--image=broken.png"], r"broken.png.*\(.*\); replace or remove"),
        (["--mode=image_to_text", "--image=words.png"], r"words.png.*not PNG.*replace or remove"),
        (["--mode=image_to_text", "--image=nowhere.png"], "nowhere.png: No such file"),
        (["--mode=image_to_text", "--image=empty"], "empty has no images"),
        (["--mode=text2image", "--prompt=cat"], "did you mean 'text_to_image'"),
        (["--mode=joint", "--data_type=1"], r"no segment 'data_type'.*drop --data_type=1"),
        (["--mode=joint", "--text_encoder=clip"], "leave out --text_encoder=clip"),
        (["--mode=joint", "--image_encoder=clip"], "leave out --image_encoder=clip"),
        (["--mode=joint", "--image_size=9"], "patch_size=4 does not divide"),
    ],
)
def test_what_a_mode_cannot_take_is_named_and_nothing_is_written(
    workdir, tmp_path, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    files = {"broken.png": whole[: len(whole) // 2], "words.png": b"words"}
    files |= {"out.png": b"before", "out.npz": b"before", "results.json": b"before"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UvitError, match=message) as raised:
        generate(workdir, tmp_path, *flags)
    assert "\n" not in str(raised.value)
    assert all((tmp_path / name).read_bytes() == content for name, content in files.items())


def test_a_model_of_images_alone_has_no_modes():
    flags = ["--workdir=shipped:totems", "--mode=joint"]
    with pytest.raises(UvitError, match=r"images and texts at two times.*leave out the mode"):
        sample.main(flags)


def test_an_impossible_mode_exits_with_status_2(workdir, capfd, monkeypatch):
    args = ["sample", f"--workdir={workdir}", "--mode=text_to_image"]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(SystemExit) as exited:
        cli.run(sample.main)
    assert exited.value.code == 2 and capfd.readouterr().err.startswith("error: mode=")


def test_other_sizes_of_images_are_generated_and_taken(workdir, tmp_path):
    Image.new("RGB", (90, 3)).save(tmp_path / "wide.png")
    flags = ["--mode=image_variation", f"--image={tmp_path / 'wide.png'}", "--image_size=12"]
    arrays, _ = generate(workdir, tmp_path, *flags)
    assert arrays["image"].shape == (1, 12, 12, 3) and arrays["text"].shape == (1, 12, 16)


def test_pairs_are_evaluated_in_both_directions(workdir, tmp_path, capsys):
    results = tmp_path / "results.json"
    few = ["--count=5", "--candidates=3", "--batch_size=4", "--encoder=pixels", "--guidance=0"]
    args = [f"--workdir={workdir}", "--held_out=train", "--show=1", *few, f"--json={results}"]
    assert evaluate_pairs.main(args) == 0
    row = json.loads(results.read_text())
    metrics = row["metrics"]
    assert set(metrics) == {"image_to_text", "text_to_image", "joint", "real"}
    assert 0 <= metrics["image_to_text"]["exact"] <= metrics["image_to_text"]["words"] <= 1
    for mode in ("text_to_image", "joint"):
        assert metrics[mode]["pixels_frechet_distance"] > 0 and 0 <= metrics[mode]["match"] <= 1
    assert metrics["real"]["match"] > 0.5  # the classifier has seen these pairs
    assert row["guidance_scale"] == 0 and "twemoji: " in capsys.readouterr().out
    assert json.loads((workdir / "pairs.jsonl").read_text()) == row


@pytest.mark.parametrize("flag", ["--count=1", "--candidates=1", "--show=-1"])
def test_impossible_evaluations_are_refused(workdir, flag):
    with pytest.raises(UvitError, match=f"{flag.split('=')[0]} must be at least"):
        evaluate_pairs.main([f"--workdir={workdir}", flag])
