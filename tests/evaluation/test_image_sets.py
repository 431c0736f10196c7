"""Sets of images: every image once, in the same distribution as the data."""

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import image_sets
from uvit_jax.evaluation.frechet import Moments
from uvit_jax.evaluation.image_metrics import encode, params_sha256
from uvit_jax.models.presets.uvit import preset
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.sampling.conditions import conditions_like
from uvit_jax.sampling.sampler import SampleConfig


def model(channels=3, **options):
    sizes = dict(patch_size=4, width=16, depth=2, num_heads=2) | options
    return uvit_jax.build(preset("S", (8, 8, channels), **sizes))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_a_model_of_latents_needs_an_autoencoder():
    with pytest.raises(UvitError, match=r"image \(8, 8, 4\).*--autoencoder"):
        image_sets.image_segment(model(channels=4))
    assert image_sets.image_segment(model()) == "image"


def test_an_unconditional_model_generates_every_sample_once(mesh):
    net = model(num_classes=0)
    config = SampleConfig(sampler=SamplerConfig(name="ddim", steps=2), clip=1.0)
    conditions = conditions_like(net, None, Vocabulary(), 10, seed=0)
    params = net.init(jax.random.key(0))

    drawn = image_sets.of_model(
        net,
        params,
        ObjectiveConfig(),
        config,
        conditions,
        count=10,
        batch_size=4,
        seed=0,
        mesh=mesh,
        name="run",
    )

    def all_of():
        return np.concatenate([np.asarray(batch) for batch in drawn.batches()])

    samples = all_of()
    assert drawn.count == 10 and samples.shape == (12, 8, 8, 3)
    assert len(np.unique(samples.reshape(12, -1)[:10], axis=0)) == 10
    np.testing.assert_allclose(samples[10:], samples[:2], atol=1e-4)  # the padding
    assert np.array_equal(samples, all_of())
    pixels = encoder("pixels", mesh=mesh)
    found = encode(pixels, drawn, keep=7)
    expected = Moments.of(pixels.features(samples[:10])["pool"]).statistics()
    assert found.statistics.count == 10 and found.pool.shape == (7, 64)
    np.testing.assert_allclose(found.statistics.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.statistics.covariance, expected.covariance, atol=1e-5)


def test_the_pool_of_sorted_images_is_a_random_subset_in_random_order(mesh):
    brightness = np.arange(200, dtype=np.uint8)
    images = np.broadcast_to(brightness[:, None, None, None], (200, 8, 8, 3))
    pixels = encoder("pixels", mesh=mesh)
    every = np.asarray(pixels.features(images)["pool"])
    kept = encode(pixels, image_sets.of_array(images, 64, "ramp"), keep=50).pool
    places = [int(np.abs(every - row).sum(axis=1).argmin()) for row in kept]
    assert len(set(places)) == 50
    assert 70 < np.mean(places) < 130
    rises = np.mean(np.diff(places) > 0)  # half of the steps, where sorted ones are all
    assert 0.3 < rises < 0.7


def test_folders_and_arrays_of_the_same_images_are_equal(mesh, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(7, 8, 8, 3)).astype(np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "arrays.npz", arr_0=images)
    pixels = encoder("pixels", mesh=mesh)
    for count, expected in ((None, 7), (5, 5)):
        both = [
            image_sets.of_file(path, 4, mesh, count=count)
            for path in (tmp_path, tmp_path / "arrays.npz")
        ]
        assert [each.count for each in both] == [expected] * 2
        a, b = (encode(pixels, each, keep=99).statistics for each in both)
        assert a.count == b.count == expected
        np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-5, atol=1e-7)
    for path in (tmp_path, tmp_path / "arrays.npz"):
        with pytest.raises(UvitError, match=r"7 images, .*8"):
            image_sets.of_file(path, 4, mesh, count=8)


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(other=np.zeros((3, 8, 8, 3))), "no array image"),
        (dict(arr_0=np.zeros((3, 8, 8), np.uint8)), r"\(N, H, W, 1 or 3\)"),
        (dict(arr_0=np.zeros((3, 8, 8, 3), np.int32)), "uint8 or floats"),
        (dict(arr_0=np.full((3, 8, 8, 3), 200.0)), "from 200 to 200"),
    ],
)
def test_arrays_that_are_not_images_are_errors(arrays, message, mesh, tmp_path):
    np.savez(tmp_path / "arrays.npz", **arrays)
    with pytest.raises(UvitError, match=message):
        image_sets.of_file(tmp_path / "arrays.npz", 4, mesh)


def test_a_hash_of_parameters_sees_every_one_of_them():
    params = {"a": {"b": np.zeros((2, 3), np.float32)}, "c": np.ones(2, np.float32)}
    found = {params_sha256(params)}
    for changed in (
        {"a": {"b": np.zeros((3, 2), np.float32)}, "c": np.ones(2, np.float32)},
        {"a": {"d": np.zeros((2, 3), np.float32)}, "c": np.ones(2, np.float32)},
        {"a": {"b": np.zeros((2, 3), np.float32)}, "c": np.array([1, 1.5], np.float32)},
    ):
        found.add(params_sha256(changed))
    assert len(found) == 4 and params_sha256(params) in found
