"""The registry, what encoders take, and that a mesh changes nothing."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.frozen import pictures
from tests.helpers.running import ROOT, environment
from uvit_jax.encoders import clip_weights as interop_clip
from uvit_jax.encoders import convolutional, image_encoder, towers
from uvit_jax.encoders import vit_weights as interop_vit
from uvit_jax.encoders.clip import Clip, VisionConfig, prepare
from uvit_jax.encoders.image_encoder import ENCODERS, encoder
from uvit_jax.encoders.preparation import Preparation
from uvit_jax.encoders.vit import ViT, ViTConfig
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.frechet import Moments
from uvit_jax.evaluation.image_metrics import ImageFeatures, metrics
from uvit_jax.interop import mapping


@pytest.fixture(scope="module")
def pixels():
    return encoder("pixels")


def test_bytes_and_floats_have_the_same_features(pixels):
    images = pictures(3, 20)
    floats = images.astype(np.float32) / 127.5 - 1
    expected = np.asarray(pixels.features(images)["pool"])
    assert expected.shape == (3, pixels.size) and expected.dtype == np.float32
    for same in (floats, floats + 0.001, floats.astype(np.float64)):  # rounded, as files are
        assert np.array_equal(pixels.features(same)["pool"], expected)
    assert not np.array_equal(pixels.features(floats + 0.01)["pool"], expected)
    assert np.array_equal(
        pixels.features(floats * 9)["pool"], pixels.features(np.clip(floats * 9, -1, 1))["pool"]
    )


def test_grey_images_equal_their_rgb_copies(pixels):
    grey = pictures(2, 20)[..., :1]
    expected = pixels.features(np.repeat(grey, 3, axis=-1))["pool"]
    assert np.array_equal(pixels.features(grey)["pool"], expected)


def test_images_of_another_shape_or_dtype_raise(pixels):
    for bad, message in (
        (np.zeros((2, 8, 8, 4), np.uint8), r"\(B, H, W, 1 or 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"\(B, H, W, 1 or 3\)"),
        (np.zeros((2, 8, 8, 3), np.int32), "uint8 or floats"),
    ):
        with pytest.raises(UvitError, match=message):
            pixels.features(bad)
    with pytest.raises(UvitError, match="did you mean 'inception'"):
        encoder("incepton")
    with pytest.raises(UvitError, match="no weights to load"):
        encoder("pixels", "weights.npz")


@pytest.mark.parametrize("method", ["half_pixel", "legacy", "antialias"])
def test_resizing_keeps_constants_and_interpolates_ramps(method):
    flat = np.full((1, 7, 7, 1), 3.0, np.float32)
    for size in (3, 7, 16):
        assert np.allclose(convolutional.resize(flat, size, method), 3)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (1, 8, 8, 1))
    inner = np.asarray(convolutional.resize(ramp, 16, method))[0, 2:-2, 0, 0]
    assert np.allclose(np.diff(inner), 0.5)
    assert np.isclose(inner[0], 1.0 if method == "legacy" else 0.75)


def test_antialiased_shrinking_sees_every_pixel():
    point = np.zeros((1, 16, 16, 1), np.float32)
    point[0, 5, 6] = 1
    shrunk = np.asarray(convolutional.resize(point, 4, "antialias"))
    assert shrunk.sum() == pytest.approx(1 / 16, rel=0.05)
    expected = jax.image.resize(point, (1, 4, 4, 1), "bilinear", antialias=True)
    assert np.allclose(shrunk, expected, atol=1e-6)


def test_only_the_official_inception_yields_an_fid(pixels):
    x = np.random.default_rng(0).normal(size=(20, 4))
    features = ImageFeatures(Moments.of(x).statistics(), x, x)

    class Named:
        def __init__(self, name, official):
            self.name, self.official = name, official

    assert {"fid", "kid", "inception_score"} <= set(
        metrics(Named("inception", True), features, features)
    )
    for name in ENCODERS:
        found = metrics(Named(name, False), features, features)
        assert not {"fid", "kid", "inception_score", "inception_precision"} & set(found)
        prefix = f"unofficial_{name}" if "inception" in name else name
        assert found[f"{prefix}_frechet_distance"] < 1e-9
        assert found[f"{prefix}_precision"] == found[f"{prefix}_recall"] == 1
    assert not pixels.official and pixels.version.startswith("pixels-8antialias-")


MESH = """
import json, jax, numpy as np
from tests.helpers.frozen import pictures
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
encode = encoder("pixels", mesh=make_mesh(MeshConfig(fsdp=2)))
print(json.dumps(np.asarray(encode.features(pictures(6, 20))["pool"]).tolist()))
"""


def test_a_mesh_changes_nothing(pixels):
    command = [sys.executable, "-c", MESH]
    found = subprocess.run(
        command, cwd=ROOT, env=environment(4), capture_output=True, text=True, check=True
    )
    expected = pixels.features(pictures(6, 20))["pool"]  # 6 pictures do not divide by 4
    np.testing.assert_allclose(json.loads(found.stdout), expected, rtol=1e-5, atol=1e-5)


def test_a_dinos_features_are_its_class_token_of_prepared_images(tmp_path):
    config = ViTConfig(
        width=64, depth=1, num_heads=1, mlp_width=32, image_size=16, patch_size=8, eps=1e-6
    )
    tower, rng = ViT(config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: (rng.normal(size=a.shape) / 4).astype(np.float32), tower.abstract_params
    )
    theirs = dict(q="attention.q_proj", k="attention.k_proj", v="attention.v_proj")
    theirs |= dict(out="attention.o_proj", fc1="mlp.fc1", fc2="mlp.fc2")
    theirs |= dict(norm1="layernorm_before", norm2="layernorm_after")
    whole = dict(cls="embeddings.cls_token", positions="embeddings.position_embeddings")
    whole |= dict(patches="embeddings.patch_embeddings.projection", norm="layernorm")
    tensors = {}
    for name, array in mapping.exported(interop_vit.entries(config), params).items():
        *block, stem, kind = name.split(".") if "." in name else (name, "")
        stem = f"layers.0.{theirs[stem]}" if block else whole[stem]
        tensors[f"{stem}.{kind}".rstrip(".")] = array
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    prepare = Preparation(resize=16, crop=16)
    sizes = dict(width=64, depth=1, patch_size=8)
    spec = towers.dino_spec("dino_tiny", **sizes, prepare=prepare)
    encode = image_encoder.Encoder("dino_tiny", spec, path, None)
    images = [pictures(1, 40, seed=i)[0, :h, :w] for i, (h, w) in enumerate([(20, 33), (16, 16)])]
    seen = [prepare(image[None].astype(np.float32)) for image in images]
    wanted = np.concatenate([tower.apply(params, x)["pooled"] for x in seen])
    found = encode.of_images([*images, images[0]], batch_size=2)
    assert np.allclose(found[:2], wanted, atol=1e-4) and np.allclose(found[2], wanted[0], atol=1e-4)
    assert np.allclose(encode.features(images[0][None])["pool"][0], wanted[0], atol=1e-4)
    assert encode.version.startswith("dino_tiny-16bicubic-crop16-")
    for name, message in (("dinov2_vits14", "is not dinov2_vits14"), ("dino_vits8", "width=64")):
        with pytest.raises(UvitError, match=message):
            encoder(name, path)


def test_a_clips_features_are_its_embeddings_of_prepared_images(tmp_path):
    config = VisionConfig(
        width=16, depth=2, num_heads=1, mlp_width=24, projection=8, image_size=14, patch_size=7
    )
    spec, tower = towers.clip_spec("clip_tiny", config), Clip(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape) / 4, tower.abstract_params)
    safetensors.numpy.save_file(interop_clip.export(tower, params), tmp_path / "model.safetensors")
    encode = image_encoder.Encoder("clip_tiny", spec, tmp_path / "model.safetensors", None)
    images = rng.integers(0, 256, (3, 20, 17, 3), np.uint8)
    seen = prepare(images.astype(np.float32), 14)
    wanted = tower.apply(jax.tree.map(np.float32, params), seen)["embeds"]
    assert np.allclose(encode.features(images)["pool"], wanted, rtol=1e-4, atol=1e-4)
    assert encode.size == 8 and encode.version.startswith("clip_tiny-14bicubic-")
    with pytest.raises(UvitError, match="is a CLIP of another size than clip_vit_b32"):
        encoder("clip_vit_b32", tmp_path / "model.safetensors")
    with pytest.raises(UvitError, match="clip_vit_l14 needs its weights"):
        encoder("clip_vit_l14")
