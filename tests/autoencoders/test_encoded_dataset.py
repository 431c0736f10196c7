"""Data in latents that are encoded as they are read: they are the means of the autoencoder, of
images, references and clips; a run trains on them and decodes its samples."""

import argparse
import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from configs import subject_latents, subjects
from experiments import encode_latents, video_flags
from tests.helpers.autoencoders import randomised
from uvit_jax import io, video_io
from uvit_jax.autoencoders.causal_video import build_video_autoencoder
from uvit_jax.autoencoders.causal_video_weights import save_video_autoencoder
from uvit_jax.autoencoders.encoded_dataset import open_data
from uvit_jax.autoencoders.image_autoencoder import load_image_autoencoder
from uvit_jax.autoencoders.kl import build_autoencoder
from uvit_jax.autoencoders.kl_weights import export_autoencoder
from uvit_jax.config import replaced
from uvit_jax.data import pipeline
from uvit_jax.data.data_config import DataConfig
from uvit_jax.errors import UvitError
from uvit_jax.interop import files
from uvit_jax.models.presets import uvit
from uvit_jax.models.presets import video as video_preset
from uvit_jax.sampling.decoding import Decoder, decoded
from uvit_jax.sampling.sampler import SampleConfig
from uvit_jax.training.check_data import sized_models
from uvit_jax.training.loop import train
from uvit_jax.training.run_config import parse_run

CONFIG = dict(
    widths=(4, 8),
    temporal=(True,),
    num_blocks=1,
    latent_channels=2,
    patch_size=4,
    mid_attention=False,
    kernel_frames=1,
)
IMAGES = DataConfig(
    name="totems", image_size=16, max_views=1, places=2, text=True, text_length=24, workers=0
)
CLIPS = DataConfig(
    name="totem_videos", image_size=16, frames=5, first_frames=1, max_views=0, workers=0
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """(file, autoencoder, params) of a random video autoencoder: 8× in space, 2× in time."""
    autoencoder, params = randomised(build_video_autoencoder(CONFIG))
    file = tmp_path_factory.mktemp("autoencoder") / "video.safetensors"
    save_video_autoencoder(file, autoencoder, params)
    return file, autoencoder, params


def test_images_and_references_are_scaled_mean_latents(video):
    file, autoencoder, params = video
    config = dataclasses.replace(IMAGES, autoencoder=str(file), latent_scale=0.5)
    data, pixels = open_data(config), pipeline.dataset(IMAGES)
    assert data.image_shape == (2, 2, 2)
    batch, originals = data.batch([0, 1]), pipeline.dataset(config).batch([0, 1])
    assert batch.keys() == originals.keys()
    for name in ("image", "ref_1_1", "ref_2_1"):
        moments = jax.jit(autoencoder.encode)(params, originals[name][:, None])[:, 0]
        np.testing.assert_allclose(batch[name], 0.5 * moments[..., :2], atol=1e-5)
    for name in batch.keys() - {"image", "ref_1_1", "ref_2_1"}:
        np.testing.assert_array_equal(batch[name], originals[name])
    row = data.with_tokenizer(pixels.tokenizer).decode(data.source[1])
    np.testing.assert_allclose(row["image"], batch["image"][1], atol=1e-6)


def test_images_of_several_sizes_are_encoded_in_batches_of_one(video, tmp_path):
    sizes = ((16, 24), (24, 16))
    for i, (height, width) in enumerate((*sizes, (48, 72))):
        io.save_png(Image.new("RGB", (width, height), "teal"), tmp_path / f"{i}.png")
    config = dict(name="folder", path=str(tmp_path), sizes=sizes, autoencoder=str(video[0]))
    data = open_data(DataConfig(**config, workers=0))
    assert data.sizes == ((2, 3), (3, 2)) and data.buckets.tolist() == [0, 1, 0]
    for size, part in data.by_size().items():
        assert part.batch([0])["image"].shape == (1, *size, 2)
    model = uvit.preset("S", (2, 3, 2), patch_size=1, width=16, depth=2, num_heads=1)
    models = sized_models(uvit_jax.build(model), data)
    assert {s: m.layout.noisy[0].shape[:2] for s, m in models.items()} == {s: s for s in models}


def test_the_first_frame_of_a_clip_has_the_latents_of_the_image(video):
    file, autoencoder, params = video
    data = open_data(dataclasses.replace(CLIPS, autoencoder=str(file)))
    pixels = pipeline.dataset(CLIPS).batch([3])
    batch = data.batch([3])
    assert batch["first"].shape == (1, 1, 2, 2, 2) and batch["video"].shape == (1, 2, 2, 2, 2)
    moments = jax.jit(autoencoder.encode)(params, pixels["first"])
    np.testing.assert_allclose(batch["first"], moments[..., :2], atol=1e-5)
    np.testing.assert_array_equal(batch["camera"], pixels["camera"][:, ::2])
    assert data.segment_shapes == {"first": (1, 2, 2, 2), "video": (2, 2, 2, 2)}


def test_clips_encoded_ahead_are_those_encoded_as_they_are_read(video, tmp_path):
    file, autoencoder, params = video
    frames = np.random.default_rng(0).uniform(-1, 1, (3, 7, 16, 16, 3))
    (tmp_path / "clips").mkdir()
    for name, clip in zip("abc", frames, strict=True):
        video_io.write_video(clip, tmp_path / "clips" / f"{name}.webp", fps=10)
        (tmp_path / "clips" / f"{name}.txt").write_text(f"clip {name}\n")
    clips = dict(name="clips", path=str(tmp_path / "clips"), image_size=16, frames=5, text=True)
    flags = [f"--data.{key}={value}" for key, value in clips.items()]
    flags += [f"--autoencoder={file}", f"--out={tmp_path / 'latents'}"]
    flags += [f"--batch_size={jax.local_device_count()}", "--dtype=float32", "--mirror"]
    assert encode_latents.main(flags) == 0
    stored = dict(name="latents", path=str(tmp_path / "latents"), text=True, first_frames=1)
    one = open_data(DataConfig(**stored))
    ahead = one.batch([0, 1, 2])
    read = open_data(DataConfig(**clips, first_frames=1, autoencoder=str(file))).batch([0, 1, 2])
    assert ahead.keys() == read.keys() == {"first", "video", "text"}
    for name, value in ahead.items():
        np.testing.assert_allclose(value, read[name], atol=1e-5)
    np.testing.assert_array_equal(one.decode(one.source[1])["video"], ahead["video"][1])
    assert one.batch([0], [2**63 + 5])["video"].shape == (1, 2, 2, 2, 2)
    for wrong, message in (
        (dict(first_frames=3), "first_frames is 3; set it to fewer"),
        (dict(frames=3), "have no effect on latents"),
    ):
        with pytest.raises(UvitError, match=message):
            open_data(DataConfig(**stored | wrong))
    latents = np.concatenate([ahead["first"], ahead["video"]], axis=1)
    decoded = Decoder(load_image_autoencoder(file)[0], params, 1.0)(latents)
    whole = jax.jit(autoencoder.decode)(params, latents)
    np.testing.assert_allclose(decoded, whole, atol=1e-4 * np.abs(whole).max())
    with pytest.raises(UvitError, match="camera are encoded while a model is trained"):
        encode_latents.main([*flags, "--data.name=totem_videos", "--data.path="])


@pytest.mark.slow
def test_a_clip_of_latents_is_continued_from_its_last_frames(video, tmp_path):
    file, _, params = video
    config = video_preset.preset("uvit", (3, 2, 2, 2), patch_size=1, last=0, width=16, num_heads=1)
    layout = uvit_jax.build(config).layout
    decode = Decoder(load_image_autoencoder(file)[0], params, 1.0)
    io.save_png(Image.new("RGB", (20, 16), "teal"), tmp_path / "start.png")
    flags = [f"--first_frame={tmp_path / 'start.png'}", "--extend=2"]
    parser = argparse.ArgumentParser()
    video_flags.add_flags(parser)
    args = parser.parse_args(flags)
    args.seed = 0
    options, given = video_flags.task(args, layout, SampleConfig(count=2), decode)
    assert given["first"].shape == (2, 1, 2, 2, 2) and options.generate == ("video",)

    def sample(config, frames, seed):
        rng = np.random.default_rng(seed)
        return {"video": rng.normal(size=(2, 2, 2, 2, 2)).astype(np.float32)}

    samples = video_flags.clips(
        args, layout, options, sample(options, given, 0), given, sample, decode
    )
    samples = decoded(layout, samples, decode)
    assert samples["video"].shape == (2, 5 + 2 * 4, 16, 16, 3)
    first = decode(samples["video_latents"])
    np.testing.assert_array_equal(samples["video"][:, :5], first)
    again = np.concatenate([decode.encode(first[:, -1:]), sample(None, None, 1)["video"]], axis=1)
    np.testing.assert_allclose(samples["video"][:, 5:9], decode(again)[:, 1:], atol=1e-5)


def test_either_kind_of_autoencoder_is_recognised(video, tmp_path):
    loaded, _ = load_image_autoencoder(video[0])
    assert loaded.latent_shape((16, 24, 3)) == (2, 3, 2)
    small = dict(widths=(4, 8), num_blocks=1, num_groups=2, latent_channels=2)
    autoencoder, params = randomised(build_autoencoder(small))
    file = tmp_path / "kl.safetensors"
    files.write_tensors(file, export_autoencoder(autoencoder, params), {})
    loaded, _ = load_image_autoencoder(file, num_groups=2)
    assert loaded is autoencoder
    with pytest.raises(UvitError, match=r"video autoencoder.*drop num_groups"):
        load_image_autoencoder(video[0], num_groups=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(IMAGES, processes=1), "needs processes=0"),
        (dataclasses.replace(IMAGES, image_size=20), "sides that are multiples of 8"),
        (dataclasses.replace(CLIPS, frames=4), r"1 \+ 2k frames"),
        (dataclasses.replace(CLIPS, first_frames=2), r"first_frames=2 must be 0 or 1 \+ 2k"),
        (dataclasses.replace(CLIPS, last_frames=2), "set last_frames to 0"),
    ],
)
def test_data_that_cannot_be_encoded_are_refused(config, message, video):
    with pytest.raises(UvitError, match=rf"config.data.autoencoder: .*{message}"):
        open_data(dataclasses.replace(config, autoencoder=str(video[0])))


@pytest.fixture
def config(video):
    """A tiny run in latents."""
    file = str(video[0])
    model = uvit.preset("S", (2, 2, 2), patch_size=1, width=16, depth=2, num_heads=1)
    return dict(
        model=model,
        data=dict(name="totems", image_size=16, max_views=0, autoencoder=file, workers=0),
        diffusion=dict(schedule=dict(name="rectified_flow"), prediction="x0"),
        train=dict(steps=2, batch_size=2),
        sample=dict(
            sampler=dict(name="euler", steps=1), count=2, autoencoder=file, latent_scale=1.0
        ),
    )


@pytest.mark.slow
def test_a_run_trains_in_latents_and_shows_decoded_samples(config, tmp_path):
    summary = train(parse_run(config), tmp_path / "run")
    assert np.isfinite(summary.loss)
    (grid,) = (tmp_path / "run" / "samples").iterdir()
    assert grid.name == "00000002.png"


def test_the_study_in_latents_has_sequences_as_long_as_in_pixels():
    latents, pixels = (
        parse_run(module.get_config(name)).model.layout()
        for module, name in ((subject_latents, "uvit_context"), (subjects, "uvit_context"))
    )
    assert latents.num_tokens == pixels.num_tokens
    assert all(s.shape == (8, 8, 24) for s in (*latents.noisy, *latents.references))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.autoencoder": "other.safetensors"}, "other.safetensors"),
        ({"sample.latent_scale": 0.5}, "config.data.latent_scale is 1.0.*0.5.*equal"),
        ({"data.latent_scale": 0.0}, "latent_scale must be positive"),
        ({"data.autoencoder": ""}, "segment 'image' has shape"),
    ],
)
def test_samples_must_be_decoded_as_images_are_encoded(config, changes, message, tmp_path):
    with pytest.raises(UvitError, match=message):
        train(parse_run(replaced(config, changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
