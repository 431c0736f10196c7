"""Cut-outs: the whole picture is itself, a plane stays a plane, boxes and squares agree."""

import numpy as np

from experiments.subjects import crops
from uvit_jax.data.sources.worlds.scene_camera import grid


def test_a_crop_of_the_full_image_is_the_image():
    pictures = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    same = crops.crop(pictures, np.zeros((2, 2)), np.ones(2), 16)
    assert np.allclose(same, pictures, atol=1e-5)


def test_a_plane_stays_the_same_plane():
    """Coordinates as colours tell where each pixel of a cut-out comes from, at either scale."""
    x, y = grid(64)
    pictures = np.stack([x, y], axis=-1)[None]
    for size in (16, 100):
        found = crops.crop(pictures, np.array([[0.2, -0.1]]), np.array([0.5]), size)[0]
        wanted_x, wanted_y = grid(size)
        assert np.allclose(found[..., 0], 0.2 + 0.5 * wanted_x, atol=1e-4)
        assert np.allclose(found[..., 1], -0.1 + 0.5 * wanted_y, atol=1e-4)
