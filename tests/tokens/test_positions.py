"""Positions follow from the grid, on one to three axes, and are interpolated for another grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.data.sources.worlds.scene_camera import Camera, grid
from uvit_jax.data.sources.worlds.scene_motion import CAMERA_FIELDS, Motion
from uvit_jax.models.layers import apply_rope
from uvit_jax.tokens.modalities.camera import PLANAR, CameraPoses
from uvit_jax.tokens.modalities.features import Features
from uvit_jax.tokens.modalities.patches import Patches
from uvit_jax.tokens.modalities.time import sinusoid
from uvit_jax.tokens.positions import coordinates, position_ids, resized, rope_angles, sincos

AXES = ("frame", "row", "column")


def video(T=4, H=6, W=8, **options):
    defaults = dict(name="video", role="noisy", patch_size=2, patch_size_t=2, position="rope")
    return Patches(shape=(T, H, W, 3), **defaults | options)


def image(H=6, W=10, **options):
    return Patches(**dict(name="image", shape=(H, W, 3), patch_size=2, position="rope") | options)


def test_sinusoids_distinguish_times():
    t = jnp.arange(1000.0)
    features = np.asarray(sinusoid(t, 64))
    similarity = features @ features.T / 32
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    # The angle between two times depends on their distance only.
    np.testing.assert_allclose(similarity[0, :500], similarity[400, 400:900], atol=1e-3)
    assert (similarity - np.eye(1000)).max() < 1 - 1e-6


@pytest.mark.parametrize("segment", [image(), video(), CameraPoses(name="c", shape=(7, 2))])
@pytest.mark.parametrize("width", [24, 26])
def test_sincos_distinguishes_all_tokens(segment, width):
    table = sincos(segment, width)
    assert table.shape == (segment.num_tokens, width)
    assert len(np.unique(table.round(5), axis=0)) == segment.num_tokens


def test_sincos_of_an_image_has_the_column_first():
    table = sincos(image(), 16)  # 3 rows of 5 columns
    assert np.array_equal(table[2, :8], table[7, :8]) and np.array_equal(table[5, 8:], table[6, 8:])


def test_grids_give_the_axes():
    tokens = Features(name="f", shape=(5, 3), position="rope")
    assert tokens.grid_axes == (2,) and image().grid_axes == (1, 2)
    assert video().grid_axes == (0, 1, 2) and video().grid == (2, 3, 4)
    assert CameraPoses(name="c", shape=(7, 2)).grid_axes == (0,)
    assert position_ids(tokens, ("column",))[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_position_ids_of_a_video():
    ids = position_ids(video(), AXES).reshape(2, 3, 4, 3)
    assert ids[0, 0, 0].tolist() == [0, 1, 1] and ids[1, 2, 3].tolist() == [2, 3, 4]
    # An image and the first frame of a video have the same ids.
    still = position_ids(image(6, 8), AXES).reshape(3, 4, 3)
    assert np.array_equal(still, ids[0])
    later = position_ids(video(start=3), AXES).reshape(2, 3, 4, 3)
    assert np.array_equal(later - ids, np.broadcast_to([3.0, 0, 0], ids.shape))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("K", [6, 8, 12])
def test_rope_depends_on_differences_of_positions_only(axes, K):
    ids = np.random.default_rng(0).uniform(0, 9, (5, axes)).astype(np.float32)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 5, 2, K))

    def logits(ids):
        angles = rope_angles(ids, K, 100.0)
        assert angles.shape == (5, K // 2)
        q_, k_ = apply_rope(q, jnp.asarray(angles)), apply_rope(k, jnp.asarray(angles))
        return np.einsum("bnhk,bmhk->bhnm", q_, k_)

    np.testing.assert_allclose(logits(ids), logits(ids + 2.5), atol=1e-4)
    for axis in range(axes):  # every axis has at least one pair
        moved = ids.copy()
        moved[0, axis] += 1
        assert np.abs(logits(ids) - logits(moved)).max() > 1e-3


def test_positions_of_another_grid_are_interpolated():
    small, large = image(6, 10), image(12, 20, trained_shape=(6, 10, 3))
    assert large.trained_grid == small.grid
    inner = coordinates(large).reshape(6, 10, 3)
    assert inner[0, 0].tolist() == [0, -0.25, -0.25] and inner[-1, -1].tolist() == [0, 2.25, 4.25]
    # A table that is linear in the coordinates stays so away from the border, as they do.
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(3, 7)).astype(np.float32)
    table = jnp.asarray(coordinates(small) @ slopes, jnp.float32)
    found = resized(table, small.grid, large.grid).reshape(6, 10, 7)
    np.testing.assert_allclose(found[1:-1, 1:-1], (inner @ slopes)[1:-1, 1:-1], atol=1e-5)
    assert resized(table, small.grid, small.grid) is table
    # In time as well.
    longer = video(T=8, trained_shape=(4, 6, 8, 3))
    np.testing.assert_allclose(coordinates(longer)[:: 3 * 4, 0], [-0.5, 0.5, 1.5, 2.5])


@pytest.mark.parametrize("T", [1, 8])
@pytest.mark.parametrize("zoom, roll, within", [(1.0, 0.0, 1e-5), (1.06, 0.08, 0.15)])
def test_points_seen_by_a_planar_camera_are_those_of_the_rendered_scene(T, zoom, roll, within):
    """Exactly, up to the scene's own zoom and roll, which its camera's features do not have."""
    assert PLANAR == CAMERA_FIELDS
    motion, side, base = Motion(x=0.3, y=-0.2, zoom=0.4, roll=0.5), 8, Camera(zoom=zoom, roll=roll)
    points = coordinates(image(2 * side, 2 * side))[:, 1:]
    camera = CameraPoses(name="camera", shape=(T, 5))
    seen = camera.seen_points(motion.camera_path(T)[None], points, (side, side))[0]
    for view, own in zip(motion.cameras(base, T), np.asarray(seen), strict=True):
        scene = np.stack(view.to_scene(*grid(side)), axis=-1).reshape(-1, 2)
        x, y = np.transpose([base.to_image(*point) for point in scene])
        expected = np.stack([(1 - y) * side / 2 - 0.5, (x + 1) * side / 2 - 0.5], axis=-1)
        np.testing.assert_allclose(own, expected, atol=within)
