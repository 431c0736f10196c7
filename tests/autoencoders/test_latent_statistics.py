"""Mean and standard deviation of an autoencoder's latents, as diffusers' pipelines use them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import uvit_jax
from experiments import encode_latents
from tests.helpers import hostile
from tests.helpers.autoencoders import randomised
from tests.helpers.latent_folders import INDEX
from uvit_jax import io
from uvit_jax.autoencoders.kl import (
    build_autoencoder,
    decode_in_batches,
    encode_in_batches,
    sample_moments,
)
from uvit_jax.autoencoders.kl_weights import export_autoencoder, load_autoencoder, resolve
from uvit_jax.config import parse, to_dict
from uvit_jax.data.latent_shards import LatentIndex
from uvit_jax.data.shards import open_index
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import image_sets
from uvit_jax.models.presets.uvit import preset
from uvit_jax.sampling.decoding import Decoder, decoded
from uvit_jax.training import sample_grid

C = 3
TINY = dict(widths=(8, 8), num_blocks=1, num_groups=4, latent_channels=C)
SHIFT, MEAN, STD = 0.1159, [0.5, -1.0, 2.0], [2.0, 0.5, 3.0]
CASES = {
    "none": ({}, [0.0] * C, [1.0] * C),
    "null": (dict(shift_factor=None, latents_mean=None, latents_std=None), [0.0] * C, [1.0] * C),
    "shift": (dict(shift_factor=SHIFT), [SHIFT] * C, [1.0] * C),
    "channels": (dict(latents_mean=MEAN, latents_std=STD), MEAN, STD),
    "mean": (dict(latents_mean=MEAN), MEAN, [1.0] * C),
    "std": (dict(latents_std=STD, shift_factor=SHIFT), [SHIFT] * C, STD),
}


@pytest.fixture(scope="module")
def plain():
    return randomised(build_autoencoder(TINY))


def folder(path, plain, **settings):
    path.mkdir(exist_ok=True)
    file = path / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(export_autoencoder(*plain), file)
    settings = {"norm_num_groups": 4, "scaling_factor": 0.5} | settings
    (path / "config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("case", CASES)
def test_latents_are_those_of_the_pipelines(plain, tmp_path, case):
    settings, mean, std = CASES[case]
    mean, std = np.float32(mean), np.float32(std)
    ours = load_autoencoder(folder(tmp_path / "vae", plain, **settings))
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    theirs = encode_in_batches(*plain, images)
    moments = encode_in_batches(*ours, images)
    key, scale = jax.random.key(0), 0.5
    z = sample_moments(key, theirs, scale=1.0)
    latents = np.asarray(sample_moments(key, moments, scale=scale))
    np.testing.assert_allclose(latents, (z - mean) * scale / std, rtol=1e-4, atol=1e-5)
    # And back: z = latents * std / scale + mean.
    wanted = decode_in_batches(*plain, latents * std / scale + mean, scale=1.0)
    np.testing.assert_allclose(
        decode_in_batches(*ours, latents, scale=scale), wanted, atol=1e-4 * np.abs(wanted).max()
    )
    if case in ("none", "null"):
        assert ours[0] is plain[0] and np.array_equal(moments, theirs)


@pytest.mark.parametrize(
    "settings, key",
    [
        (dict(shift_factor="0.1"), "shift_factor"),
        (dict(shift_factor=float("nan")), "shift_factor"),
        (dict(shift_factor=[0.1] * C), "shift_factor"),
        (dict(latents_mean=MEAN[:2]), "latents_mean"),
        (dict(latents_mean=0.5), "latents_mean"),
        (dict(latents_mean=[10**400] * C), "latents_mean.*finite"),
        (dict(latents_std=["1"] * C), "latents_std.*finite"),
        (dict(latents_mean=[[[1.0]]] * C), "latents_mean.*finite"),
        (dict(latents_std=[1.0, float("inf"), 1.0]), "latents_std"),
        (dict(latents_std=[1.0, 0.0, 1.0]), "latent_std"),
        (dict(latents_std=[1.0, -1.0, 1.0]), "latent_std"),
        (dict(latents_mean=MEAN, shift_factor=SHIFT), "shift_factor.*latents_mean"),
        (dict(act_fn="relu"), "act_fn='relu'"),
    ],
)
def test_other_statistics_are_refused_by_name(plain, tmp_path, settings, key):
    with pytest.raises(UvitError, match=rf"config\.json.*{key}"):
        load_autoencoder(folder(tmp_path / "vae", plain, **settings))


@pytest.mark.parametrize("settings", [{}, dict(shift_factor=SHIFT), dict(latents_std=STD)])
def test_folders_of_latents_record_them(plain, tmp_path, settings):
    vae = folder(tmp_path / "vae", plain, **settings)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        io.save_png(io.grid(image[None]), tmp_path / "images" / f"{i}.png")
    flags = [f"--autoencoder={vae}", f"--data.path={tmp_path / 'images'}", "--data.name=folder"]
    devices = jax.local_device_count()
    out = tmp_path / "latents"
    assert encode_latents.main([*flags, f"--out={out}", f"--batch_size={devices}"]) == 0
    index = open_index(LatentIndex, out)
    assert index.scale == 0.5
    recorded = index.autoencoder["config"]
    config = load_autoencoder(vae)[0].config
    assert tuple(recorded.get("latent_mean", ())) == config.latent_mean
    assert tuple(recorded.get("latent_std", ())) == config.latent_std
    # As folders of earlier versions, which have no such keys.
    assert bool(settings) == bool({"latent_mean", "latent_std"} & recorded.keys())
    # Decoding them without the statistics is refused before training.
    run = type("Run", (), {})()
    run.data = type("Data", (), {"path": str(out), "autoencoder": ""})()
    run.sample = type("Sample", (), {"latent_scale": 0.5})()
    data = type("Dataset", (), {"index": index})()
    sample_grid._check_scale(run, data, Decoder(*load_autoencoder(vae), 0.5))
    sample_grid._check_scale(run, data, None)
    other = dataclasses.replace(config, latent_mean=(9.0,) * C)
    with pytest.raises(UvitError, match=r"latent_mean=.*config\.sample\.autoencoder"):
        sample_grid._check_scale(run, data, Decoder(build_autoencoder(other), {}, 0.5))


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
)
def test_a_file_in_a_folder_has_the_folders_statistics(plain, tmp_path, name):
    settings = dict(shift_factor=SHIFT, latents_std=STD)
    vae = folder(tmp_path / "vae", plain, **settings)
    wanted = load_autoencoder(vae)[0].config
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / name)
    assert load_autoencoder(vae / name)[0].config == wanted
    assert resolve(vae / name)[1]["scaling_factor"] == 0.5
    # A config.json beside a file of another name need not be the autoencoder's.
    (vae / name).rename(vae / "vae.safetensors")
    assert load_autoencoder(vae / "vae.safetensors", num_groups=4)[0].config.latent_mean == ()


def test_a_bin_file_has_them_too(plain, tmp_path):
    torch = pytest.importorskip("torch")
    vae = folder(tmp_path / "vae", plain, latents_mean=MEAN)
    tensors = {k: torch.tensor(np.array(a)) for k, a in export_autoencoder(*plain).items()}
    torch.save(tensors, vae / "diffusion_pytorch_model.bin")
    ours, wanted = load_autoencoder(vae / "diffusion_pytorch_model.bin"), load_autoencoder(vae)
    assert ours[0].config == wanted[0].config
    jax.tree.map(np.testing.assert_array_equal, ours[1], wanted[1])


@pytest.mark.parametrize("damaged", hostile.FILES.values(), ids=hostile.FILES)
def test_a_damaged_config_is_named(plain, tmp_path, damaged):
    (folder(tmp_path, plain) / "config.json").write_bytes(damaged)
    with pytest.raises(UvitError, match=r"config\.json is damaged"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("key", ["latent_mean", "latent_std"])
@pytest.mark.parametrize("value", [None, 5, "abcd", [1.0] * 3, [None] * 4, [10**400] * 4])
def test_an_index_with_other_statistics_is_refused(key, value):
    index = to_dict(INDEX)
    index["autoencoder"] = INDEX.autoencoder | {"config": {key: value}}
    with pytest.raises(UvitError, match=rf"autoencoder\.config\.{key}=.* must be 4 numbers"):
        parse(LatentIndex, index)


def test_latents_of_three_channels_are_no_images():
    model = uvit_jax.build(
        preset("S", (8, 8, C), patch_size=4, width=16, depth=2, num_heads=2, num_classes=0)
    )
    samples = {"image": np.zeros((1, 8, 8, C), np.float32)}
    assert decoded(model.layout, samples, None).keys() == {"image"}
    assert decoded(model.layout, samples, None, latents=True).keys() == {"image_latents"}
    both = decoded(model.layout, samples, lambda z: z + 1, latents=True)
    assert both["image"].min() == 1 and both["image_latents"].max() == 0
    assert image_sets.image_segment(model) == "image"
    with pytest.raises(UvitError, match="--autoencoder"):
        image_sets.image_segment(model, latents=True)
    assert image_sets.image_segment(model, lambda z: z, latents=True) == "image"
