"""Scores of the totem judges on ground-truth, mixed up, copied and missing subjects."""

import dataclasses

import numpy as np
import pytest

from experiments.subjects import result_rows
from experiments.subjects.evaluation_cases import ProceduralWorld
from experiments.subjects.scoring import TotemScorer, score_images, tuning_objective
from experiments.subjects.study_config import SettingConfig
from uvit_jax.data.sources.worlds import random_scenes, scenes

SIZE = SettingConfig(subjects=6, prompts=2)


@pytest.fixture(scope="module")
def world():
    return ProceduralWorld("totems", 32)


@pytest.fixture(scope="module")
def scorer(world):
    return TotemScorer(world)


def mean(scores, name):
    return float(np.nanmean(scores[name]))


def test_ground_truth_scores_high_and_other_subjects_low(world, scorer):
    cases = world.cases("identities_2v", SIZE)
    true = scorer(cases, np.stack([world.oracle(q, 0) for q in cases]))
    other = [cases[(i + 2) % len(cases)] for i in range(len(cases))]
    wrong = np.stack([world.impostor(q, o, 0) for q, o in zip(cases, other, strict=True)])
    false = scorer(cases, wrong)
    for name in ("identity_a", "identity_b"):
        assert mean(true, name) > 0.6 and mean(false, name) < 0.3
    assert mean(true, "top1_a") > 0.7 and mean(false, "top1_a") < 0.2
    assert mean(true, "verify_b") > 0.97
    assert mean(true, "factors_a") > mean(false, "factors_a") + 0.3
    # Both follow the caption; only the identity differs.
    assert mean(true, "prompt_a") > 0.9 and mean(false, "prompt_a") > 0.9
    assert mean(true, "copy_rate") == mean(false, "copy_rate") == 0
    assert np.isnan(true["swapped"]).all()
    assert tuning_objective(scorer, true).mean() > tuning_objective(scorer, false).mean() + 0.15


def test_a_copy_is_the_subject_and_not_the_prompt(world, scorer):
    cases = world.cases("identities_1v", SIZE)
    scores = scorer(cases, np.stack([q.references[0][0] for q in cases]))
    assert mean(scores, "copy_rate") == 1 and mean(scores, "prompt_a") < 0.6


def test_swapped_and_missing_subjects_are_detected(world, scorer):
    cases = world.cases("two_subjects", SIZE)

    def seen(change):
        found = [scenes.render(change(q.scene), 32).image for q in cases]
        return scorer(cases, np.stack(found))

    def swapped(scene):
        first, second = scene.subjects
        other = random_scenes.replaced_subject(scene, 0, second.identity)
        return random_scenes.replaced_subject(other, 1, first.identity)

    def alone(scene):
        facts = dataclasses.replace(scene.facts)
        return dataclasses.replace(scene, subjects=scene.subjects[:1], facts=facts)

    true, mixed, less = seen(lambda scene: scene), seen(swapped), seen(alone)
    assert mean(true, "swapped") < 0.1 and mean(mixed, "swapped") > 0.8
    assert mean(true, "missing") < 0.1 and mean(less, "missing") > 0.4
    assert mean(less, "detect_and_compare") < 0.1 < mean(true, "detect_and_compare")
    assert mean(mixed, "leaked") > mean(true, "leaked") + 0.3


def test_settings_of_views_are_paired_and_in_the_settings_of_the_report(world, scorer):
    one, three = (world.cases(f"identities_{v}v", SIZE) for v in (1, 3))
    assert [q.prompt for q in one] == [q.prompt for q in three]
    assert [q.seed for q in one] == [q.seed for q in three]
    assert {len(q.references[0]) for q in one} == {1} and {len(q.captions[0]) for q in three} == {3}
    images = np.stack([np.stack([world.oracle(q, k) for k in (0, 1)]) for q in one])
    rows = result_rows.rows_of(
        "oracle", "none", one, score_images(scorer, one, images), main="identities_1v"
    )
    assert {(r.setting, r.split, r.views) for r in rows} == {
        ("views", "test", 1),
        ("single", "test", 1),
    }
    assert len({r.key for r in rows}) == len(rows)
    assert len({r.subject for r in rows}) == SIZE.subjects
    spread = result_rows.diversity_rows("oracle", "none", one, images, "identities_1v")
    assert {r.metric for r in spread} == {"diversity"} and min(r.value for r in spread) > 0.05


def test_captions_of_references_name_their_slot_and_side(world):
    case = world.cases("two_subjects", SIZE)[0]
    assert case.captions[1][0].startswith("a large @2 from")
    sides = {caption.split(" in the middle")[0][-6:] for caption in case.captions[0]}
    assert sides == {" front", "behind"}
    assert all("@9" in c for c in world.class_captions("totems", 5, "@9"))
