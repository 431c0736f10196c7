"""Scenes are deterministic and agree with their captions, masks, references and splits."""

import dataclasses
import re

import numpy as np
import pytest

from uvit_jax.data.sources import emoji
from uvit_jax.data.sources.worlds import (
    backgrounds,
    evaluation_sets,
    factors,
    random_scenes,
    scene_camera,
    scenes,
    sprites,
)
from uvit_jax.data.sources.worlds.worlds import WORLDS
from uvit_jax.errors import UvitError

BOTH = tuple(WORLDS)


def draw(world, index, split="train", subjects=3, views=3):
    return random_scenes.draw(world, split, index, subjects=subjects, views=views)


def read(caption: str) -> dict:
    """The facts of a caption, by slot, parsed independently of the code under test."""
    (ground,) = [k for k, v in backgrounds.BACKGROUNDS.items() if caption.endswith(v)]
    named = re.findall(r"@(\d)(?: (from the front|from behind))?", caption)
    slots = [int(n) - 1 for n, _ in named]
    if len(slots) == 1:
        size, side = re.match(r"a (\w+) @1 .*?(left|middle|right) ", caption).groups()
        places, sizes = [side], [size]
    else:
        places = ["left", "middle", "right"] if len(slots) == 3 else ["left", "right"]
        places = places[::-1] if "on the right of" in caption else places
        sizes = [""] * len(slots)
    by_slot = np.argsort(slots)
    return {
        "background": ground,
        "places": tuple(places[i] for i in by_slot),
        "facings": tuple(named[i][1] for i in by_slot),
        "sizes": tuple(sizes),
    }


@pytest.mark.parametrize("world", BOTH)
def test_captions_state_the_facts_and_scenes_agree(world):
    counts = set()
    for index in range(60):
        scene = draw(world, index)
        stated = read(scene.caption)
        assert stated == {k: getattr(scene.facts, k) for k in stated}
        counts.add(len(scene.subjects))
        middle = [s.x for s in scene.subjects]
        order = ("left", "middle", "right")
        ranks = [order.index(place) for place in stated["places"]]
        assert np.argsort(ranks).tolist() == np.argsort(middle).tolist()
        for s, facing in zip(scene.subjects, stated["facings"], strict=True):
            if world == "totems":
                assert (np.cos(s.pose[0]) < 0) == (facing == "from behind")
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("world", BOTH)
def test_images_are_a_function_of_the_index(world):
    a, b = (scenes.render(draw(world, 5), 32, subjects=3, views=3) for _ in range(2))
    other = scenes.render(draw(world, 6), 32, subjects=3, views=3)
    for name in ("image", "references", "present", "identities", "masks"):
        assert (getattr(a, name) == getattr(b, name)).all()
    assert (a.image != other.image).any()
    assert a.image.dtype == np.float32 and np.abs(a.image).max() <= 1


@pytest.mark.parametrize("world", BOTH)
def test_masks_are_what_changes_with_the_background(world):
    """Where subjects fill a pixel, the background does not matter, and elsewhere nothing else."""
    scene = draw(world, 3)
    examples = []
    for ground in ("night", "snow"):
        facts = dataclasses.replace(scene.facts, background=ground)
        examples.append(scenes.render(dataclasses.replace(scene, facts=facts), 32))
    (a, b), masks = examples, examples[0].masks
    covered = masks.sum(axis=0)
    assert covered.max() <= 1 + 1e-5
    same = np.abs(a.image - b.image).max(axis=-1) < 1e-4
    assert same[covered > 1 - 1e-5].all() and not same[covered < 0.9].any()


@pytest.mark.parametrize("world", BOTH)
def test_spots_are_where_the_masks_are(world):
    for index in range(12):
        scene = draw(world, index)
        example = scenes.render(scene, 32)
        x, y = scene_camera.grid(32)
        for slot, mask in enumerate(example.masks):
            (cx, cy), scale = scenes.spot(scene, slot, exact=True)
            reach = 1.02 if world == "totems" else 1.42  # of a square turned by 45°
            near = np.maximum(abs(x - cx), abs(y - cy)) <= reach * scale + 2 / 32
            assert mask[~near].max(initial=0) == 0
            (stated_x, stated_y), _ = scenes.spot(scene, slot)
            assert np.hypot(stated_x - cx, stated_y - cy) < 0.25


@pytest.mark.parametrize("world", BOTH)
def test_the_target_is_no_copy_of_a_reference(world):
    for index in range(40):
        scene = draw(world, index)
        assert scene.facts.background in random_scenes.seen_backgrounds()
        for s in scene.subjects:
            assert len(set(s.references)) == len(s.references)
            for angle, mirrored in s.references:
                turn = np.angle(np.exp(1j * (s.pose[0] - angle)))
                assert abs(turn) > 0.14 or mirrored != s.pose[1]


def test_held_out_couples_never_meet_in_training():
    train = {tuple(one): n for n, one in enumerate(factors.identities()["train"].tolist())}
    met = 0
    for index in range(300):
        numbers = [train[s.identity] for s in draw("totems", index).subjects]
        for n, first in enumerate(numbers):
            for second in numbers[n + 1 :]:
                assert not factors.held_out_couple(first, second)
                met += 1
    assert met > 200


def test_sprites_split_by_concept_and_vendor():
    records, splits = emoji.index(), sprites.identities()
    codes = {k: {records[n]["code"] for n in v[:, 0]} for k, v in splits.items()}
    vendors = {k: {records[n]["vendor"] for n in v[:, 0]} for k, v in splits.items()}
    assert codes["test_vendor"] <= codes["test"]
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not codes[a] & codes[b]
    assert vendors["test_vendor"] == {sprites.HELD_OUT_VENDOR}
    assert all(
        len(vendors[k]) == 3 and sprites.HELD_OUT_VENDOR not in vendors[k]
        for k in codes
        if k != "test_vendor"
    )


def test_sprites_turn_and_mirror():
    number = next(n for n, r in enumerate(emoji.index()) if r["key"] == "noto/1f697")  # a car
    x, y = (c.reshape(1, -1) for c in scene_camera.grid(32))
    pixel = np.array([1 / 16])

    def show(angle, mirrored):
        pose = np.array([[angle, mirrored]])
        return sprites.layer(np.array([[number]]), pose, x, y, pixel)[1].reshape(32, 32)

    plain = show(0, 0)
    assert np.allclose(show(0, 1), plain[:, ::-1], atol=1e-5)
    assert np.allclose(show(np.pi / 2, 0), np.rot90(plain), atol=1e-4)
    assert np.allclose(show(np.pi, 1), plain[::-1], atol=1e-4)


@pytest.mark.parametrize("world", BOTH)
def test_settings_are_fixed_and_hold_out_their_split(world):
    for name in evaluation_sets.settings(world):
        what = evaluation_sets.SETTINGS[name]
        cases = evaluation_sets.cases(world, name, subjects=6, prompts=2)
        assert cases == evaluation_sets.cases(world, name, subjects=8, prompts=2)[:12]
        pool = set(map(tuple, WORLDS[world].identities()[what.split].tolist()))
        for case in cases:
            subjects = case.scene.subjects
            assert len(subjects) == what.subjects
            assert {len(s.references) for s in subjects} == {what.views}
            assert case.scene.facts.background in what.grounds
            assert what.recomposed or {s.identity for s in subjects} <= pool
        assert len({c.scene.subjects[0].identity for c in cases}) == 6


def test_views_are_paired_and_compositions_are_new():
    one, three = (evaluation_sets.cases("totems", f"identities_{v}v", subjects=4) for v in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert (a.scene.caption, a.seed) == (b.scene.caption, b.seed)
        assert a.scene.subjects[0].references == b.scene.subjects[0].references[:1]
        assert a.scene.judged().sum() >= 6
    every = np.concatenate(list(factors.identities().values()))
    for case in evaluation_sets.cases("totems", "compositions"):
        assert ((every != case.scene.subjects[0].identity).sum(axis=1) > 0).all()
        assert "from behind" in case.scene.caption


def test_an_oracle_keeps_the_facts_and_nothing_else():
    scene = draw("totems", 9)
    a, b = random_scenes.redraw(scene, 0), random_scenes.redraw(scene, 1)
    assert a == random_scenes.redraw(scene, 0) and a != b
    for one in (a, b):
        assert one.facts == scene.facts
        assert [s.identity for s in one.subjects] == [s.identity for s in scene.subjects]
        assert (one.subjects[0].pose, one.phase) != (scene.subjects[0].pose, scene.phase)


@pytest.mark.parametrize("motion", scene_camera.MOTIONS)
def test_a_video_moves_as_exactly_as_its_camera(motion):
    scene = dataclasses.replace(draw("totems", 2), camera=scene_camera.Camera())
    cameras = scene_camera.moved(scene.camera, motion, "L", 3)
    frames = scenes.video(scene, 16, cameras)
    assert (frames[1] == scenes.render(scene, 16).image).all()
    assert (frames[0] == frames[2]).all() == (motion == "static")
    x, y = cameras[2].to_image(*map(float, cameras[2].to_scene(0.3, -0.2)))
    assert np.allclose((x, y), (0.3, -0.2), atol=1e-6)


def test_errors_name_the_value():
    scene = draw("totems", 1)
    with pytest.raises(UvitError, match=r"'tset'.*did you mean 'test'"):
        draw("totems", 0, split="tset")
    with pytest.raises(UvitError, match="no setting 'vendor'"):
        evaluation_sets.cases("totems", "vendor")
    with pytest.raises(UvitError, match=r"2 subjects.* 1"):
        scenes.render(dataclasses.replace(scene, subjects=scene.subjects[:1] * 2), 16, subjects=1)
    with pytest.raises(UvitError, match=r"'pann' .*did you mean 'pan'"):
        scene_camera.moved(scene_camera.Camera(), "pann", "S", 2)
