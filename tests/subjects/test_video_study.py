"""The comparison of videos: cases, scores of true, still and wrong videos, and given frames."""

import dataclasses

import numpy as np
import pytest

from configs import video_subjects
from experiments.subjects.methods import InContext
from experiments.subjects.networks import TrainedNetwork
from experiments.subjects.result_rows import ANCHORS
from experiments.subjects.results import read_scores
from experiments.subjects.scoring import TotemScorer, VideoScorer
from experiments.subjects.study import Comparison
from experiments.subjects.study_config import MethodConfig, SettingConfig, parse_compare
from experiments.subjects.video_world import VideoWorld
from tests.helpers.weights import random_params
from uvit_jax.data import pipeline
from uvit_jax.data.sources.worlds import scenes
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.video_metrics import camera_scores
from uvit_jax.interop.exporting import export
from uvit_jax.models.model import build
from uvit_jax.training.run_config import parse_run

FRAMES = 4


@pytest.fixture(scope="module")
def world():
    return VideoWorld(32, FRAMES)


@pytest.fixture(scope="module")
def cases(world):
    return world.cases("identities_2v", SettingConfig(subjects=6, prompts=1))


@pytest.fixture(scope="module")
def scorer(world):
    return VideoScorer(TotemScorer(world, poses=False), world)


def mean(scores, name):
    return float(np.nanmean(scores[name]))


def test_subjects_are_where_the_camera_puts_them(world, cases):
    for case in cases:
        exact = [scenes.spot(frame.scene, 0, exact=True) for frame in world.frame_cases(case)]
        ((x, y), scale), ((x0, y0), scale0) = exact[-1], exact[0]
        (a, b), size = world.frame_cases(case)[-1].spot(0)
        (a0, b0), size0 = world.frame_cases(case)[0].spot(0)
        # The caption's place is inexact, the way it moves is not, but for what zooms and rolls it.
        np.testing.assert_allclose([a - a0, b - b0], [x - x0, y - y0], atol=0.12)
        assert size / size0 == pytest.approx(scale / scale0)


def test_true_videos_score_high_and_still_and_wrong_ones_do_not(world, cases, scorer):
    true = scorer(cases, np.stack([world.truth(case) for case in cases]))
    still = scorer(cases, np.stack([world.still(world.truth(case)[0]) for case in cases]))
    other = [cases[(i + 1) % len(cases)] for i in range(len(cases))]
    pairs = zip(cases, other, strict=True)
    wrong = scorer(cases, np.stack([world.impostor(case, one, 0) for case, one in pairs]))
    assert mean(true, "camera") == mean(wrong, "camera") == 1
    assert mean(true, "angle_error") < 1 and mean(true, "dynamics") == pytest.approx(1)
    assert mean(true, "identity_a") > 0.6 > 0.3 > mean(wrong, "identity_a")
    assert abs(mean(true, "drift")) < 0.1
    assert mean(still, "moving_identity") < 0.01 < 0.6 < mean(true, "moving_identity")
    assert mean(still, "camera") == np.mean([not case.motion.moves for case in cases])
    assert set(true) == set(scorer.metrics)


def test_fine_tuning_shows_references_held_still_and_pasted_under_the_camera(world, cases):
    for case in cases[:3]:
        videos, captions, motions = world.shown(case, 0, 4)
        assert len(videos) == len(captions) == len(motions) == 2 + 4
        assert np.array_equal(videos[0], world.still(case.references[0][0]))
        assert not any(motion.moves for motion in motions[:2])
        for video, caption, motion in zip(videos[2:], captions[2:], motions[2:], strict=True):
            asked = motion.camera_path(2)[-1:, 1:]
            assert camera_scores(video[None], asked)["camera_accuracy"] == 1
            assert caption.count("@1") == 1 and "turns" not in caption
            assert caption.endswith(motion.wording)


def test_amplitudes_are_compared_within_one_scene(world, scorer):
    cases = world.cases("amplitudes", SettingConfig(subjects=2, prompts=1))
    assert [case.motion.amplitude for case in cases] == ["S", "M", "L"] * 2
    for three in (cases[:3], cases[3:]):
        assert len({case.prompt for case in three}) == 1
        assert len({case.seed for case in three}) == 3
        ratio = three[2].motion.camera_path(2)[-1, 1:] / 4
        np.testing.assert_allclose(three[0].motion.camera_path(2)[-1, 1:], ratio, atol=1e-6)
    true = np.stack([world.truth(case) for case in cases])
    assert scorer(cases, true)["amplitude"] == pytest.approx(1)
    assert scorer(cases, true[[2, 1, 0, 5, 4, 3]])["amplitude"] == pytest.approx(-1)
    still = np.stack([world.still(video[0]) for video in true])
    assert (scorer(cases, still)["amplitude"] == 0).all()


def test_a_turning_subject_shows_the_front_of_one_and_the_back_of_another(world, scorer):
    cases = world.cases("turning", SettingConfig(subjects=12, prompts=1))
    assert all("turns" in case.prompt and "from the front" in case.prompt for case in cases)
    true = np.stack([world.truth(case) for case in cases])
    still = np.stack([world.still(video[0]) for video in true])
    assert scorer(cases, true)["both_sides"].mean() > 0.6
    assert scorer(cases, still)["both_sides"].mean() < 0.3
    assert np.isnan(
        scorer(world.cases("identities_2v", SettingConfig(subjects=1)), true[:2])["both_sides"]
    ).all()


def small_config():
    config = video_subjects.get_config("quick")
    for given in config["networks"].values():
        given["train"] |= dict(steps=2, batch_size=2)
        given["model"]["backbone"] |= dict(width=32, num_heads=2, depth=2, unroll=1)
        given["sample"]["sampler"]["steps"] = 2
    grid = dict(ranks=(2,), rates=(1e-3,), priors=(0.0, 1.0), steps=(1, 2))
    return config | dict(grid=grid, prior=4, tolerance=9.0)


def test_given_frames_are_in_the_samples(world, cases, tmp_path):
    config = small_config()
    run = parse_run(config["networks"]["video_uvit"])
    model, data = build(run.model), pipeline.dataset(run.data)
    vocabulary = Vocabulary(data.class_names, data.tokenizer)
    path = tmp_path / "network.safetensors"
    export(path, model, random_params(model), run=run, vocabulary=vocabulary)
    network = TrainedNetwork("video_uvit_s0", path, run)
    assert network.shape == (8, 64, 64, 3)
    world = VideoWorld(64, 8)
    compare = dataclasses.replace(parse_compare(config), batch_size=2)
    truth = np.stack([world.truth(case) for case in cases[:2]])
    for given, frames in (("first", [0]), ("first_last", [0, -1]), ("composed", [0])):
        arm = MethodConfig(network="video_uvit", title="", references=False, given=given)
        videos = InContext(network, arm, compare, world)(cases[:2])[:, 0]
        assert videos.shape == truth.shape
        same = np.array([np.array_equal(videos[:, t], truth[:, t]) for t in frames])
        assert same.all() == (given != "composed")
        assert not np.array_equal(videos[:, 3], truth[:, 3])


def test_frames_are_given_in_videos_alone():
    config = small_config() | dict(world="totems")
    config["settings"].pop("turning")
    config["arms"]["composed"]["settings"] = ()
    with pytest.raises(UvitError, match=r"arms\.composed: given='composed' is for videos"):
        parse_compare(config)


@pytest.mark.slow
def test_a_comparison_of_videos_from_training_to_report(tmp_path):
    config = small_config()
    size = dict(subjects=2, prompts=1)
    config["settings"] = dict(identities_2v=size, two_subjects_1v=size, turning=size)
    summary = Comparison(parse_compare(config), tmp_path / "work")()
    assert {*config["arms"], *ANCHORS} - {"copy_paste"} <= set(summary["methods"])
    tables = (tmp_path / "work/tables.md").read_text()
    assert "Drift of identity" in tables and "Camera" in tables
    rows = read_scores(tmp_path / "work/results.csv.gz")
    assert {"portraits", "unused_name"} <= {r.setting for r in rows if r.method == "lora"}
