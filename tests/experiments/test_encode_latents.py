"""The encoding command writes the same files whether it is interrupted, divided or neither."""

import itertools
import json
import pickle
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from experiments import encode_latents
from tests.helpers import running
from tests.helpers.autoencoders import randomised
from uvit_jax.autoencoders.kl import build_autoencoder, encode_in_batches
from uvit_jax.autoencoders.kl_weights import export_autoencoder
from uvit_jax.data import pipeline
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.latent_shards import LatentIndex
from uvit_jax.data.sources.latent_folders import check_one_size, images_of
from uvit_jax.errors import UvitError

COUNT, SHARD, SHARDS = 49, 2, 25


@pytest.fixture(scope="module")
def autoencoder():
    return randomised(build_autoencoder(dict(widths=(8, 8), num_blocks=1, num_groups=4)))


@pytest.fixture(scope="module")
def flags(autoencoder, tmp_path_factory) -> list[str]:
    """For a folder of 49 images of 8×8 pixels in two classes, and a small autoencoder."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        name = folder / "ab"[i % 2] / f"{i:02}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(name)
        name.with_suffix(".txt").write_text(f"number {i}")
    weights = folder.parent / f"{folder.name}.safetensors"
    safetensors.numpy.save_file(export_autoencoder(*autoencoder), weights)
    return [
        f"--autoencoder={weights}",
        "--num_groups=4",
        f"--data.path={folder}",
        "--data.name=folder",
        "--data.labels=label",
        "--data.text=True",
        f"--shard_size={SHARD}",
        f"--batch_size={jax.local_device_count()}",
        "--mirror",
    ]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """The folder that one uninterrupted run writes."""
    folder = tmp_path_factory.mktemp("whole") / "latents"
    results = folder.parent / "results.json"
    assert encode_latents.main([*flags, f"--out={folder}", f"--json={results}"]) == 0
    report = json.loads(results.read_text())
    assert report["finished"] and report["written"] == report["shards"] == SHARDS
    assert report["count"] == COUNT
    return folder


def assert_same_folder(left: Path, right: Path):
    files = [sorted(p.name for p in folder.iterdir()) for folder in (left, right)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_each_of_several_sizes_has_a_folder(flags, autoencoder, tmp_path):
    images, out = tmp_path / "images", tmp_path / "latents"
    (images / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(8, 8), (8, 16), (8, 8), (8, 16), (8, 8)]):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(images / "a" / f"{i}.png")
    sizes = "--data.sizes=((8, 16), (8, 8), (16, 8))"
    own = [f for f in flags if not f.startswith("--data.path")]
    assert encode_latents.main([*own, f"--data.path={images}", sizes, f"--out={out}"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["8x16", "8x8"]  # what examples have

    options = dict(labels="label", text=True, flip=True)
    data = pipeline.dataset(DataConfig(name="latents", path=str(out), **options))
    data = pickle.loads(pickle.dumps(data))
    assert data.counts() == {(4, 8): 2, (4, 4): 3}
    pixels = pipeline.dataset(DataConfig(name="folder", path=str(images), sizes=((8, 16), (8, 8))))
    for latents, originals in zip(data.by_size().values(), pixels.by_size().values(), strict=True):
        batch = latents.batch(range(len(latents)))
        moments = encode_in_batches(*autoencoder, originals.batch(range(len(originals)))["image"])
        mean = np.split(moments, 2, axis=-1)[0] * latents.index.scale
        np.testing.assert_allclose(batch["image"], mean, atol=1e-2)
    for batch in itertools.islice(batches(data, batch_size=2, seed=0), 6):
        assert batch["image"].shape[1:3] == data.size_of(int(batch["index"][0]))
        assert batch["text"].shape == (2, 16)
    np.testing.assert_array_equal(
        data.batch([1])["image"], data.one_size((4, 8)).batch([1])["image"]
    )

    assert f"--out={out}" in LatentIndex.command(out / "8x8", data.parts[1].index)
    with pytest.raises(UvitError, match=r"several sizes; .*8x16, .*8x8"):
        check_one_size(out)
    assert images_of(out / "8x8", pixels).batch([0])["image"].shape == (1, 8, 8, 3)
    index = out / "8x8" / "index.json"
    index.write_text(index.read_text().replace('"scale": 0.18215', '"scale": 0.5'))
    with pytest.raises(UvitError, match=r"8x8 and .*8x16 differ in scale"):
        pipeline.dataset(DataConfig(name="latents", path=str(out)))


def test_every_record_is_the_encoding_of_its_image(whole, flags, autoencoder):
    data = pipeline.dataset(
        DataConfig(name="latents", path=str(whole), labels="label", text=True, flip=True)
    )
    folder = next(f for f in flags if f.startswith("--data.path=")).partition("=")[2]
    source = pipeline.dataset(DataConfig(name="folder", path=folder, labels="label", text=True))
    assert len(data) == len(source) == COUNT and data.image_shape == (4, 4, 4)
    assert data.class_names == source.class_names and data.tokenizer == source.tokenizer
    images = np.stack([source.decode(source.source[i])["image"] for i in range(COUNT)])
    for key, inputs in (("moments", images), ("mirrored", images[:, :, ::-1])):
        wanted = encode_in_batches(*autoencoder, inputs)
        got = np.stack([data.source[i][key] for i in range(COUNT)])
        assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()
    for i in range(COUNT):
        record, image = data.source[i], source.source[i]
        assert record["label"] == image["label"]
        assert record["captions"] == image["captions"]


def killed_at(moment: int, flags: list[str], folder: Path) -> bool:
    """Runs the command, and kills it after so many shards; whether it was not finished by then."""
    process = running.start(
        "experiments.encode_latents",
        *flags,
        f"--out={folder}",
        devices=jax.local_device_count(),
    )
    finished = 0
    while process.poll() is None and finished < moment + 1:
        time.sleep(0.0005)
        finished = len(list(folder.glob("latents-*")))
    process.kill()
    _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err
    return not (folder / LatentIndex.index_name).exists()


def test_a_run_killed_at_a_random_moment_resumes(whole, flags, tmp_path):
    moment = random.SystemRandom().randint(0, 15)
    # On a busy machine, this process may wake up only when the other has finished.
    folders = (tmp_path / f"latents_{attempt}" for attempt in range(5))
    folder = next(folder for folder in folders if killed_at(moment, flags, folder))
    assert (folder / LatentIndex.plan_name).exists(), f"moment {moment}"
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("latents-*")}
    assert len(kept) > moment
    assert encode_latents.main([*flags, f"--out={folder}"]) == 0
    assert all(p.stat().st_mtime_ns == written for p, written in kept.items())
    assert_same_folder(whole, folder)


def test_two_hosts_write_the_same_files_as_one(whole, flags, tmp_path):
    folder = tmp_path / "latents"
    encode_latents.main([*flags, f"--out={folder}", "--part=1/2"])
    assert len(list(folder.glob("latents-*"))) == SHARDS // 2
    assert not (folder / LatentIndex.index_name).exists()
    encode_latents.main([*flags, f"--out={folder}", "--part=0/2"])
    assert_same_folder(whole, folder)


def test_a_complete_folder_is_unchanged(whole, flags, capsys):
    assert encode_latents.main([*flags, f"--out={whole}"]) == 0
    assert f"wrote 0 of {SHARDS} shards" in capsys.readouterr().out
    with pytest.raises(UvitError, match=r"another encoding \(scale differ; scale was 0.18215 and"):
        encode_latents.main([*flags, f"--out={whole}", "--scale=0.2301"])


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--part=2/2", "--part='2/2' must be I/N"),
        ("--data.name=latents", "encoded already"),
        ("--data.flip=True", "--mirror"),
        ("--data.sice=3", "unknown flag '--data.sice'; did you mean '--data"),
        ("--data.image_size=7", "7×7"),
        ("--batch_size=0", "--batch_size=0"),
        ("--shard_size=0", "shard_size"),
        ("--autoencoder=nothing.safetensors", "nothing.safetensors does not exist"),
    ],
)
def test_errors_name_the_flag(flags, tmp_path, flag, says):
    with pytest.raises(UvitError, match=says):
        encode_latents.main([*flags, f"--out={tmp_path / 'latents'}", flag])
    assert not (tmp_path / "latents").exists()
