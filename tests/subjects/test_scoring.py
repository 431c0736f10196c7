"""Scores of the totem judges on ground-truth, mixed up, copied and missing subjects."""

import dataclasses

import numpy as np
import pytest

from experiments.subjects import result_rows
from experiments.subjects.evaluation_cases import ProceduralWorld, exchanged, own_words
from experiments.subjects.scoring import (
    TotemScorer,
    gated_objective,
    score_images,
    tuning_objective,
)
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
    assert mean(true, "facing") >= 0.75 and mean(true, "size") > 0.9
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
    assert mean(true, "margin") > 0.3 and mean(mixed, "margin") < -0.3


def test_turned_and_resized_subjects_are_detected(world, scorer):
    cases = world.cases("identities_2v", SIZE)
    other = {"from the front": "from behind", "from behind": "from the front"}

    def turned(case):
        facts = case.scene.facts
        facts = dataclasses.replace(
            facts,
            facings=(other[facts.facings[0]],),
            sizes=("small" if facts.sizes == ("large",) else "large",),
        )
        scene = dataclasses.replace(case.scene, facts=facts)
        return scenes.render(random_scenes.redraw(scene, 3), 32).image

    scores = scorer(cases, np.stack([turned(case) for case in cases]))
    assert mean(scores, "facing") <= 0.25 and mean(scores, "size") < 0.1


def test_anchors_and_pasted_scenes_follow_the_caption(world, scorer):
    cases = world.cases("identities_2v", SIZE)
    pasted = scorer(cases, np.stack([world.cut_paste(q, 0) for q in cases]))
    nearest = scorer(cases, np.stack([world.nearest_training(q, 0) for q in cases]))
    assert mean(pasted, "prompt_a") > 0.85 and mean(nearest, "prompt_a") > 0.9
    assert mean(pasted, "identity_a") > 0.6 > mean(nearest, "identity_a") + 0.1
    images, captions, _ = world.shown(cases[0], 0, 4)
    again, *_ = world.shown(cases[0], 0, 4)
    assert images.shape == (2 + 4, 32, 32, 3) and np.array_equal(images, again)
    assert all(caption.count("@1") == 1 for caption in captions)
    again = world.portraits(cases[0])
    assert {q.prompt for q in again} == set(cases[0].captions[0])
    scores = scorer(again, np.stack(cases[0].references[0]))
    assert mean(scores, "identity_a") > 0.75 and mean(scores, "prompt_a") > 0.9


def test_tuning_asks_for_an_effect_of_the_name(world, scorer):
    cases = world.cases("identities_2v", SIZE)
    true = scorer(cases, np.stack([world.oracle(q, 0) for q in cases]))
    others = [cases[(i + 2) % len(cases)] for i in range(len(cases))]
    pairs = zip(cases, others, strict=True)
    unnamed = scorer(cases, np.stack([world.impostor(q, o, 0) for q, o in pairs]))
    own = tuning_objective(scorer, true)
    assert gated_objective(scorer, true, unnamed, 0.2) == pytest.approx(own)
    # Every name is this subject: the whole of the least effect is missing.
    assert gated_objective(scorer, true, true, 0.2) == pytest.approx(own - 0.2)


def test_a_judge_of_another_family_judges_identity(world):
    class Encoder:
        title, version = "mean colours", "1"

        def of_images(self, images):
            return np.stack([image.mean(axis=(0, 1)) + 2 for image in images])

    scorer = TotemScorer(world, (0,), {"colours": Encoder()})
    cases = world.cases("two_subjects_1v", SettingConfig(subjects=2, prompts=1))
    scores = scorer(cases, np.stack([world.oracle(q, 0) for q in cases]))
    assert scorer.metrics["identity_colours"].role == "identity"
    assert (scores["identity_colours"] > 0.9).all() and np.isnan(scores["size"]).all()


def test_distractors_have_references_and_no_name(world):
    for count in (1, 3, 5):
        case = world.cases(f"distractors_{count}", SettingConfig(subjects=2, prompts=1))[0]
        assert sum(map(len, case.references)) == 1 + count and len(case.names) == 1
        assert case.slots == (min(3, 1 + count), -(-count // 2)) and "@2" not in case.prompt
        assert len({r.tobytes() for views in case.references for r in views}) == 1 + count
        rows = result_rows.rows_of("x", "none", [case], {"score": np.zeros(1)}, main="seen")
        assert [r.point for r in rows] == [("distractors", count)]


def test_own_words_and_exchanged_names():
    assert own_words("@2 on the left of @1", ("a", "b")) == "@2* on the left of @1*"
    assert exchanged("@2* on the left of @1*", ("a", "b")) == "@1* on the left of @2*"
    assert exchanged("@3, @1 and @2 and @4", "abc") == "@1, @2 and @3 and @4"


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
        ("count", "test", 1),
        ("distractors=0", "test", 1),
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
    assert all("@9" in c for c in world.class_prompts("totems", 5, "@9")[0])
