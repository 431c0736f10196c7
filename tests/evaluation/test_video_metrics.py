"""Metrics of videos, measured on true videos of totems, whose motion is known."""

import numpy as np
import pytest

from uvit_jax.data.sources.worlds import random_scenes
from uvit_jax.data.sources.worlds.scene_camera import AMPLITUDES
from uvit_jax.data.sources.worlds.scene_motion import Motion, render_video
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import video_metrics as metrics
from uvit_jax.evaluation.video_motion import (
    camera_moves,
    camera_path,
    dynamic_degree,
    optical_flow,
)

FRAMES, SIZE = 8, 32
MOVES = [dict(x=0.3), dict(x=-0.6), dict(y=0.3), dict(zoom=0.3), dict(roll=-0.3), dict()]


def clip(index=0, **motion):
    scene = random_scenes.draw("totems", "test", index, subjects=1, views=0)
    return render_video(scene, Motion(**motion), SIZE, FRAMES)


@pytest.fixture(scope="module")
def true():
    """Videos, and the camera's changes in them."""
    fields = ("x", "y", "zoom", "roll")
    changes = np.array([[move.get(field, 0.0) for field in fields] for move in MOVES])
    return np.stack([clip(i, **move) for i, move in enumerate(MOVES)]), changes


def pixels(videos):
    """The simplest encoder, named `pixels`."""
    return videos[:, :, 4::8, 4::8].reshape(*videos.shape[:2], -1)


def test_true_videos_follow_their_cameras(true):
    videos, changes = true
    scores = metrics.camera_scores(videos, changes)
    assert scores["camera_accuracy"] == 1.0
    assert scores["angle_error"] < 1.5 and scores["shift_error"] < 0.08
    assert scores["zoom_error"] < 0.04
    still = metrics.camera_scores(np.repeat(videos[:, :1], FRAMES, axis=1), changes)
    assert still["camera_accuracy"] == 1 / len(MOVES)  # of the static one
    with pytest.raises(UvitError, match="changes must be"):
        metrics.camera_scores(videos, changes[:2])


def test_a_path_is_measured_frame_by_frame():
    path = camera_path(clip(2, roll=0.6))
    assert np.allclose(path[:, 3], np.linspace(0, 0.6, FRAMES), atol=0.05)
    assert camera_moves(path[-1]) == {"roll left"} and camera_moves([0, 0, 0, 0]) == set()


def test_flow_of_a_shifted_image():
    image = clip()[0]
    flow = optical_flow(np.stack([image, np.roll(image, 1, axis=1), np.roll(image, 1, axis=1)]))
    inner = flow[0, 8:-8, 8:-8]
    seen = np.linalg.norm(inner, axis=-1) > 0.5  # where there is something to see
    assert seen.mean() > 0.2 and np.abs(inner[seen] - [1, 0]).mean() < 0.35
    assert np.abs(flow[1]).max() < 1e-3


def test_a_still_video_does_not_win(true):
    videos, _ = true
    moving, still = videos[:3], np.repeat(videos[:3, :1], FRAMES, axis=1)
    of_moving = metrics.consistency_with_motion(pixels(moving), moving, moving)
    of_still = metrics.consistency_with_motion(pixels(still), still, moving)
    assert of_still["subject_consistency"] > of_moving["subject_consistency"]
    assert of_still["dynamic_degree"] < 0.01 and of_moving["dynamic_degree"] == pytest.approx(1)
    assert of_still["moving_consistency"] < 0.01 < 0.5 < of_moving["moving_consistency"]
    same = metrics.frechet_video_distance(pixels(moving), pixels(moving), "pixels")
    other = metrics.frechet_video_distance(pixels(still), pixels(moving), "pixels")
    (name,) = same
    assert name == "pixels_video_frechet_distance" and same[name] < 0.01 * other[name]


def test_amplitudes_are_ranked_as_asked():
    asked = [a for a in AMPLITUDES.values() for _ in range(2)]
    videos = np.stack([clip(3 + i % 2, x=a) for i, a in enumerate(asked)])
    assert metrics.amplitude_correlation(videos, asked) > 0.9
    assert metrics.amplitude_correlation(videos, asked[::-1]) < -0.9
    assert metrics.amplitude_correlation(np.repeat(videos[:, :1], FRAMES, axis=1), asked) == 0
    assert dynamic_degree(videos[0][:1]) == 0


def test_identity_and_its_drift():
    reference = np.eye(4)[:2]
    t = np.linspace(0, 1, 6)[None, :, None]
    features = (1 - t) * reference[:, None] + t * np.eye(4)[2:][:, None]
    scores = metrics.identity_over_frames(features, reference)
    by_frame = scores["identity_by_frame"]
    assert len(by_frame) == 6 and by_frame == sorted(by_frame, reverse=True)
    assert by_frame[0] == 1 and by_frame[-1] == 0 and scores["identity_drift"] < -0.5
    constant = metrics.identity_over_frames(np.repeat(reference[:, None], 6, axis=1), reference)
    assert constant["identity"] == 1 and constant["identity_drift"] == 0
    with pytest.raises(UvitError, match="at least 2 frames"):
        metrics.subject_consistency(features[:, :1])
