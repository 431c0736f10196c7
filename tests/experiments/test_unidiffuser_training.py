"""From pairs of images and captions to a UniDiffuser: encoding, training, LoRA, sampling."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import (
    encode_image_features,
    encode_latents,
    encode_text,
    finetune_lora,
    sample,
    train,
)
from tests.helpers.clips import LENGTH
from tests.helpers.pipelines import EMBEDS, REDUCED, write_pipeline
from uvit_jax.config import replaced
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.encoders.caption_weights import ReducedTextEncoder
from uvit_jax.encoders.clip_weights import load_image_encoder, load_text_encoder
from uvit_jax.errors import UvitError

pytest.importorskip("transformers")

CONFIG = """
from ml_collections import ConfigDict
from uvit_jax.models.presets.unidiffuser import preset


def get_config():
    config = ConfigDict()
    config.data = dict(
        name="latents", path="{latents}", features=True, image_features=True, flip=True
    )
    config.model = preset(
        "v1",
        (4, 4, 4),
        text_shape={text},
        clip_size={clip},
        width=16,
        depth=2,
        num_heads=2,
    )
    config.diffusion = dict(schedule=dict(name="sd"))
    config.train = dict(steps=4, batch_size=8, log_every=1, checkpoint_every=2)
    config.sample = dict(
        mode="text_to_image",
        sampler=dict(name="ddim", steps=2),
        guidance_scale=2.0,
        fresh_noise=True,
        count=2,
        autoencoder="{autoencoder}",
        latent_scale=0.25,
    )
    return config
"""
DATA = [
    "--data.name=emoji",
    '--data.keep_vendors=("twemoji",)',
    '--data.keep_subgroups=("cat-face",)',
    "--data.image_size=8",
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def latents(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "pairs"
    size = f"--batch_size={8 * jax.local_device_count()}"
    args = [f"--autoencoder={pipeline / 'vae'}", *DATA, "--data.text=True", "--scale=0.25", size]
    encode_latents.main([*args, "--mirror", f"--out={folder}"])
    given = [f"--latents={folder}", "--batch_size=8"]
    text = [f"--encoder={pipeline}", f"--caption_decoder={pipeline}"]
    assert encode_text.main([*given, *text]) == 0
    image = [f"--encoder={pipeline}", "--dtype=float32", "--shard_size=4"]
    assert encode_image_features.main([*given, *image]) == 0
    return folder


@pytest.fixture(scope="module")
def config(latents, pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    names = dict(latents=latents, text=(LENGTH, REDUCED), clip=EMBEDS)
    path.write_text(CONFIG.format(**names, autoencoder=pipeline / "vae"))
    return path


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train.main([f"--config={config}", f"--workdir={folder}"]) == 0
    return folder


def opened(latents, **options):
    options = dict(features=True, image_features=True, workers=0) | options
    return dataset(DataConfig(name="latents", path=str(latents), **options))


def test_features_are_those_of_the_images_and_captions(latents, pipeline):
    data, images = (
        opened(latents),
        dataset(
            DataConfig(
                name="emoji", keep_vendors=("twemoji",), keep_subgroups=("cat-face",), image_size=8
            )
        ),
    )
    encode = load_image_encoder(pipeline)
    pixels = np.stack([images.batch([i])["image"][0] for i in range(len(images))])
    expected = encode(np.round((pixels + 1) * 127.5).astype(np.uint8))
    batch = data.batch(range(len(data)))
    np.testing.assert_allclose(batch["clip_image"][:, 0], expected, rtol=1e-4, atol=1e-4)
    captions = [data.source.captions_of(i)[0] for i in range(len(data))]
    texts = ReducedTextEncoder(load_text_encoder(pipeline), pipeline)(captions)
    assert texts.shape[1:] == (LENGTH, REDUCED)
    np.testing.assert_allclose(batch["text"], texts, atol=2e-3 * np.abs(texts).max())
    # Mirrored images have features of their own.
    flipped = opened(latents, flip=True)
    mirrored = encode(np.round((pixels[:, :, ::-1] + 1) * 127.5).astype(np.uint8))
    for row in next(batches(flipped, batch_size=16, seed=0))["clip_image"]:
        distances = [np.abs(f - row[0]).max(axis=1).min() for f in (expected, mirrored)]
        assert min(distances) < 1e-4


def test_a_run_learns_both_modalities_and_resumes_bit_for_bit(workdir, config, tmp_path):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for name in ("image", "clip_image", "text"):
        assert all(np.isfinite(row[f"loss/{name}"]) for row in rows if "loss" in row)
    args = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    train.main([*args, "--config.train.steps=2"])
    train.main(args)
    whole, resumed = (uvit_jax.load(path)[1] for path in (workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert list((workdir / "samples").glob("*.png"))


@pytest.mark.slow
def test_lora_fine_tunes_it(workdir, pipeline, tmp_path):
    photos = tmp_path / "bear"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).save(photos / "one.png")
    out = tmp_path / "bear.safetensors"
    encoders = [f"--{n}={pipeline}" for n in ("text_encoder", "image_encoder", "caption_decoder")]
    few = ["--steps=3", "--prior=2", "--rank=2", "--rate=1e-2"]
    args = [f"--workdir={workdir}", f"--images={photos}", "--prompt=@1 bear", f"--out={out}"]
    assert finetune_lora.main([*args, *few, *encoders]) == 0

    def generate(*flags):
        image = tmp_path / f"{len(flags)}.png"
        flags = [*flags, *encoders, f"--out={image}"]
        assert sample.main([f"--workdir={workdir}", "--prompt=a bear", *flags]) == 0
        return np.load(image.with_suffix(".npz"))["image"]

    assert not np.array_equal(generate(), generate(f"--adapter={out}"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_features": False}, r"needs 'clip_image'.*encode_image_features"),
        ({"model.segments.clip_image.shape": (1, EMBEDS + 1)}, r"clip_image.*make them equal"),
        ({"model.segments.text.shape": (LENGTH, 64)}, r"'text'.*make them equal"),
        ({"sample.mode": "texts"}, "did you mean 'text"),
        ({"train.drop": {"text": 0.1}}, "set config.train.given.text as well"),
    ],
)
def test_impossible_runs_raise(config, tmp_path, changes, message):
    from experiments.cli import read_config

    given = replaced(read_config(str(config), {}), changes)
    file = tmp_path / "config.py"
    file.write_text(f"def get_config():\n    return {given!r}\n")
    with pytest.raises(UvitError, match=message):
        train.main([f"--config={file}", f"--workdir={tmp_path / 'run'}"])


def test_features_of_other_latents_are_refused(latents, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in latents.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    index = json.loads((other / "image_features.json").read_text())
    index["source"]["image_size"] = 16
    (other / "image_features.json").write_text(json.dumps(index))
    with pytest.raises(UvitError, match=r"other latents.*experiments.encode_image_features"):
        opened(other)
    (other / "image_features.json").unlink()
    with pytest.raises(UvitError, match=r"no image features.*experiments.encode_image_features"):
        opened(other)


def test_the_exported_network_is_an_official_one(workdir, tmp_path):
    from uvit_jax.interop.exporting import export

    model, params = uvit_jax.load(workdir)
    assert export(tmp_path / "x.pth", model, params, "official").startswith("UniDiffuser")
