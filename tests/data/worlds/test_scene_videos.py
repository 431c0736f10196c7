"""Videos of totems: exact and deterministic motion, captions, inputs, errors."""

import dataclasses

import numpy as np
import pytest

from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.data.sources.worlds import random_scenes, scene_motion, scenes
from uvit_jax.data.sources.worlds.scene_camera import AMPLITUDES, grid
from uvit_jax.data.sources.worlds.scene_motion import MOVES, Motion, draw_motion, render_video
from uvit_jax.data.video_frames import joined_frames
from uvit_jax.errors import UvitError

VIDEOS = dict(name="totem_videos", image_size=16, max_views=2, frames=5, workers=0)
TEXT = dict(text=True, text_length=48)


@pytest.fixture(scope="module")
def scene():
    return random_scenes.draw("totems", "test", 3, subjects=2, views=2)


@pytest.fixture(scope="module")
def data():
    return dataset(DataConfig(**VIDEOS, **TEXT, first_frames=1, last_frames=2))


def test_a_video_of_one_frame_is_the_image(scene):
    motion = Motion(x=0.3, zoom=0.2, turns=(1.0, 0.5))
    assert (render_video(scene, motion, 16, 1)[0] == scenes.render(scene, 16).image).all()


@pytest.mark.parametrize("field", [field for field, *_ in MOVES.values()])
def test_each_move_changes_its_own_field_by_equal_steps(scene, field):
    motion = Motion(**{field: 0.3})
    path = motion.camera_path(4)
    own = scene_motion.CAMERA_FIELDS.index(field)
    assert np.allclose(path[:, own], [0, 0.1, 0.2, 0.3]) and (path[:, 0] == 1).all()
    assert (np.delete(path, [0, own], axis=1) == 0).all()
    cameras = motion.cameras(scene.camera, 4)
    value = [getattr(camera, field) for camera in cameras]
    value = np.log(value) if field == "zoom" else np.array(value)
    assert np.allclose(np.diff(value), 0.1)


def test_a_scene_at_rest_moves_by_the_camera_flow(scene):
    """A point of the scene is where the flow says it is in the next frame."""
    cameras = Motion(x=0.2, zoom=-0.3, roll=0.4).cameras(scene.camera, 3)
    x, y = grid(4)
    flow = scene_motion.camera_flow(cameras, x, y)
    u, v = cameras[0].to_scene(x[1, 2], y[1, 2])
    assert np.allclose(cameras[1].to_image(u, v), np.add((x[1, 2], y[1, 2]), flow[0, 1, 2]))
    assert not scene_motion.camera_flow(Motion().cameras(scene.camera, 3), x, y).round(5).any()


def test_subjects_turn_and_the_camera_stays(scene):
    turned = render_video(scene, Motion(turns=(1.6, 0.0)), 32, 3)
    masks = scenes.render(scene, 32).masks
    changed = np.abs(turned[0] - turned[2]).max(axis=-1) > 0.05
    near = scenes.render(scene, 32).masks[0] > 0
    assert changed.any() and (changed & ~np.isclose(masks[0], 0)).sum() > 0.7 * changed.sum()
    assert near.any()


def test_motions_are_drawn_as_documented():
    motions = [draw_motion("totems", "train", i, 2) for i in range(600)]
    assert motions[7] == draw_motion("totems", "train", 7, 2)
    counts = np.bincount([len(m.moves) for m in motions], minlength=3) / len(motions)
    assert np.allclose(counts, [1 / 6, 4 / 6, 1 / 6], atol=0.05)
    assert {m.amplitude for m in motions} == set(AMPLITUDES)
    assert all(m.moves or m.turns[0] for m in motions)
    for motion in motions:
        for move in motion.moves:
            share = abs(getattr(motion, MOVES[move][0])) / AMPLITUDES[motion.amplitude]
            assert 0.85 <= share <= 1.15


def test_inputs(data):
    batch = data.batch([0, 1, 2])
    shapes = {name: value.shape[1:] for name, value in batch.items()}
    image = (16, 16, 3)
    assert shapes == {
        "first": (1, *image),
        "video": (2, *image),
        "last": (2, *image),
        **{f"ref_{s}_{v}": image for s in (1, 2) for v in (1, 2)},
        "refs_present": (2, 2),
        "text": (48,),
        "camera": (5, 5),
        "amplitude": (2,),
    }
    assert data.segment_shapes == {n: shapes[n] for n in ("first", "video", "last")}
    record = data.source[1]
    whole = render_video(record["scene"], record["motion"], 16, 5)
    assert (joined_frames(batch)[1] == whole).all()


def test_scenes_and_references_are_those_of_the_images(data):
    images = dataset(DataConfig(name="totems", image_size=16, max_views=2))
    for i in range(4):
        assert data.source[i]["scene"] == images.source[i]["scene"]
        video, image = data.decode(data.source[i]), images.decode(images.source[i])
        assert (video["ref_1_1"] == image["ref_1_1"]).all()


def test_captions_are_known_words_that_name_moves_and_turns(data):
    said = set()
    for i in range(300):
        record = data.source[i]
        (caption,) = record["captions"]
        ids = data.tokenizer.encode(caption, 48)
        assert (ids[ids > 0] > 256).all(), caption
        said |= {word for _, *both in MOVES.values() for word in both if word in caption}
        assert ("the camera" in caption) == record["motion"].worded
        assert ("@1 turns" in caption) == bool(record["motion"].turns[0])
    assert said == {word for _, *both in MOVES.values() for word in both}


def test_the_train_split_has_words_of_both_worlds_of_captions(data):
    images = dataset(DataConfig(name="totems", text=True, text_length=24))
    words = images.tokenizer.words
    assert data.tokenizer.words[: len(words)] == words  # so that image models' text fits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(frames=0), "frames=0 must be at least 1"),
        (dict(first_frames=3, last_frames=2), "more than first_frames"),
        (dict(fps=8.0), "fps .* is for name='clips'"),
        (dict(name="totems"), "frames, .* are for videos"),
        (dict(text=True), "text_length 16 is too small"),
    ],
)
def test_errors_name_the_key(wrong, message):
    with pytest.raises(UvitError, match=message):
        dataset(DataConfig(**VIDEOS | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"), [(dict(x=1.5), "camera x=1.5 is outside"), (dict(amplitude="XL"), "XL")]
)
def test_a_motion_out_of_range_is_refused(wrong, message):
    with pytest.raises(UvitError, match=message):
        Motion(**wrong)
    assert dataclasses.replace(Motion(), x=1.0).x == 1.0
