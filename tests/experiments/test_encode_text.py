"""From captions to samples of prompts: encoding, training, sampling, decoding, evaluation."""

import dataclasses
import json
import signal
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from experiments import encode_latents, encode_text, evaluate, sample, train
from tests.helpers import running
from tests.helpers.autoencoders import randomised
from tests.helpers.clips import LENGTH, WIDTH, write_clip
from uvit_jax.autoencoders.kl import build_autoencoder, decode_in_batches
from uvit_jax.autoencoders.kl_weights import export_autoencoder
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.text_shards import TextIndex
from uvit_jax.encoders.clip_weights import load_text_encoder
from uvit_jax.errors import UvitError

pytest.importorskip("transformers")

SHARD = 1
CONFIG = """
from ml_collections import ConfigDict
from uvit_jax.models.presets import uvit


def get_config():
    config = ConfigDict()
    config.data = dict(name="latents", path="{latents}", features=True)
    config.model = uvit.preset(
        "S", (4, 4, 4), patch_size=2, text_shape={shape}, width=16, depth=2, num_heads=2
    )
    config.train = dict(steps=3, batch_size=8, drop={{"text": 0.5}}, log_every=1)
    config.sample = dict(
        sampler=dict(name="ddim", steps=2),
        guidance_scale=1.0,
        count=2,
        autoencoder="{autoencoder}",
        latent_scale=0.25,
    )
    return config
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with an autoencoder that halves height and width, the network and its weights."""
    net = randomised(build_autoencoder(dict(widths=(4, 4), num_blocks=1, num_groups=2)))
    folder = tmp_path_factory.mktemp("vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(export_autoencoder(*net), weights)
    settings = {"_class_name": "AutoencoderKL", "norm_num_groups": 2}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder, *net


def make_latents(folder, autoencoder):
    encode_latents.main(
        [
            f"--autoencoder={autoencoder[0]}",
            "--data.name=emoji",
            '--data.keep_vendors=("twemoji",)',
            '--data.keep_subgroups=("cat-face","monkey-face","emotion")',
            "--data.image_size=8",
            "--data.text=True",
            "--scale=0.25",
            f"--batch_size={8 * jax.local_device_count()}",
            f"--out={folder}",
        ]
    )


@pytest.fixture(scope="module")
def latents(clip, autoencoder, tmp_path_factory):
    """A folder of latents with text features, written without interruptions."""
    folder = tmp_path_factory.mktemp("latents") / "whole"
    make_latents(folder, autoencoder)
    assert encode(folder, clip) == 0
    return folder


def encode(folder, clip, *flags):
    args = [f"--latents={folder}", f"--encoder={clip}", f"--shard_size={SHARD}", "--batch_size=8"]
    return encode_text.main([*args, *flags])


def opened(folder):
    return dataset(DataConfig(name="latents", path=str(folder), features=True, workers=0))


@pytest.fixture(scope="module")
def workdir(latents, autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = folder / "config.py"
    names = dict(latents=latents, shape=(LENGTH, WIDTH), autoencoder=autoencoder[0])
    config.write_text(CONFIG.format(**names))
    assert train.main([f"--config={config}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_every_caption_is_encoded_once_and_read_back(latents, clip):
    data, encoder = opened(latents), load_text_encoder(clip)
    texts = [data.source.captions_of(i)[0] for i in range(len(data))]
    assert len(set(texts)) == len(data) > 20
    wanted = encoder(texts)
    found = np.stack([data.feature(i) for i in range(len(data))])
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()
    assert np.abs(data.features.null - encoder([""])[0]).max() < 2e-3 * np.abs(wanted).max()
    assert not (latents / TextIndex.plan_name).exists()
    batch = next(batches(data, batch_size=4, seed=0))
    assert batch["text"].shape == (4, LENGTH, WIDTH)
    for row, index in zip(batch["text"], batch["index"], strict=True):
        assert np.array_equal(row, found[index])


def test_a_killed_run_resumes(latents, clip, autoencoder, tmp_path):
    folder = tmp_path / "latents"
    make_latents(folder, autoencoder)
    shards = opened(latents)._texts.index.files(folder)
    args = [f"--latents={folder}", f"--encoder={clip}", f"--shard_size={SHARD}", "--batch_size=8"]
    process = running.start("experiments.encode_text", *args)
    while process.poll() is None and sum(f.exists() for f in shards) < 3:
        time.sleep(0.0005)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    kept = {f: f.stat().st_mtime_ns for f in shards if f.exists()}
    assert 3 <= len(kept) < len(shards) and not (folder / TextIndex.index_name).exists()
    with pytest.raises(UvitError, match=rf"{len(kept)} of {len(shards)} shards; resume"):
        opened(folder)
    # The rest, by two hosts; the first of them finishes nothing.
    assert encode(folder, clip, "--part=1/2") == 0
    assert not (folder / TextIndex.index_name).exists()
    assert encode(folder, clip, "--part=0/2") == 0
    assert all(f.stat().st_mtime_ns == written for f, written in kept.items())
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in latents.iterdir())
    one, other = opened(latents), opened(folder)
    for i in range(len(one)):
        assert np.allclose(one.feature(i), other.feature(i), atol=2e-3)


def test_training_saves_decoded_grids_of_the_datas_captions(workdir):
    assert Image.open(next((workdir / "samples").glob("*.png"))).mode == "RGB"
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_prompts_and_guidance_are_heeded_and_latents_decoded(
    workdir, clip, autoencoder, latents, tmp_path, capsys
):
    def sample_grid(*flags):
        out = tmp_path / "out.png"
        args = ["--seed=3", f"--text_encoder={clip}", f"--out={out}", *flags]
        sample.main([f"--workdir={workdir}", *args])
        return np.load(out.with_suffix(".npz"))

    cat = sample_grid("--prompt=cat")
    assert Image.open(tmp_path / "out.png").mode == "RGB"
    assert cat["image"].shape == (1, 8, 8, 3) and cat["image_latents"].shape == (1, 4, 4, 4)
    _, net, params = autoencoder
    decoded = decode_in_batches(net, params, cat["image_latents"], scale=0.25)
    assert np.allclose(cat["image"], decoded, atol=1e-5)
    for flags in (["--prompt=dog"], ["--prompt=cat", "--guidance=5"]):
        assert np.abs(sample_grid(*flags)["image_latents"] - cat["image_latents"]).max() > 1e-4
    # Guided by the condition that it is guided away from, guidance does nothing.
    nothing = [sample_grid("--prompt=", f"--guidance={s}")["image_latents"] for s in (1, 5)]
    assert np.allclose(*nothing, atol=1e-2)
    capsys.readouterr()
    plain = sample_grid("--prompt=cat", "--autoencoder=")
    assert "--autoencoder=FILE" in capsys.readouterr().out
    assert "image" not in plain and np.array_equal(plain["image_latents"], cat["image_latents"])
    for flags, message in (
        (["--prompt=cat", "--text_encoder="], "with --text_encoder"),
        ([f"--text_encoder={write_clip(tmp_path / 'other', seed=1)}"], "is not the one"),
    ):
        with pytest.raises(UvitError, match=message):
            sample_grid(*flags)


def test_decoded_samples_are_measured(workdir, tmp_path):
    out = tmp_path / "drawn.png"
    sample.main([f"--workdir={workdir}", "--count=6", f"--out={out}"])
    args = ["--encoder=pixels", "--count=4", "--batch_size=8", f"--json={tmp_path / 'row.json'}"]
    args.append(f"--workdir={workdir}")
    assert evaluate.main([*args, f"--reference={out.with_suffix('.npz')}"]) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["samples"]["count"] == 4 and row["samples"]["latent_scale"] == 0.25
    assert np.isfinite(row["metrics"]["pixels_frechet_distance"])
    with pytest.raises(UvitError, match=r"the run's data are latents .*--reference"):
        evaluate.main(args)
    with pytest.raises(UvitError, match=r"no images.*--autoencoder=FILE"):
        evaluate.main([*args, "--autoencoder="])


def test_errors_name_what_does_not_fit(latents, clip, autoencoder, workdir, tmp_path):
    with pytest.raises(UvitError, match=r"another encoding \(dtype differ"):
        encode(latents, clip, "--dtype=float32")
    with pytest.raises(UvitError, match="--part='2/2' must be I/N"):
        encode(latents, clip, "--part=2/2")
    bare = tmp_path / "bare"
    make_latents(bare, autoencoder)
    with pytest.raises(UvitError, match=r"no text features .*experiments\.encode_text"):
        opened(bare)
    for name in ("text.json", *(p.name for p in latents.glob("text-*"))):
        (bare / name).write_bytes((latents / name).read_bytes())
    index = bare / "text.json"
    stored = json.loads(index.read_text())
    index.write_text(json.dumps({**stored, "count": stored["count"] - 1}))
    with pytest.raises(UvitError, match="other latents"):
        opened(bare)
    index.write_text(json.dumps(stored))
    shard = opened(bare)._texts.index.files(bare)[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UvitError, match=r"text-00001.* is damaged"):
        opened(bare).feature(SHARD)
    config = tmp_path / "config.py"
    names = dict(latents=latents, shape=(LENGTH, WIDTH + 1), autoencoder="")
    for change, message in (
        ({}, r"shape=\(12, 17\).*\(12, 16\)"),
        ({"shape": (LENGTH, WIDTH)}, "latent_scale is 0\.5.*0\.25"),
    ):
        config.write_text(CONFIG.format(**{**names, **change}))
        flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
        with pytest.raises(UvitError, match=message):
            train.main([*flags, "--config.sample.latent_scale=0.5"])
    with pytest.raises(UvitError, match=r"text and features.*only one"):
        dataclasses.replace(DataConfig(name="latents", path="x", features=True), text=True)
