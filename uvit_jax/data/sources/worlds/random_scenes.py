"""Random scenes of a split: a pure function of (world, split, index)."""

import dataclasses
import functools
import zlib

import numpy as np

from uvit_jax.data.sources.worlds import backgrounds, factors
from uvit_jax.data.sources.worlds.scene_camera import Camera
from uvit_jax.data.sources.worlds.scenes import (
    PLACES,
    SIZES,
    Facts,
    Scene,
    Subject,
    place,
    portrait_place,
)
from uvit_jax.data.sources.worlds.worlds import BEHIND, Pose, World, world

MATCHING = 0.75
"""The probability that a lone reference of a subject shows the side that the target shows."""


def rng_of(*parts: str | int) -> np.random.Generator:
    """The random generator of a sequence of names and numbers."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return np.random.default_rng(words)


def draw(
    world_name: str,
    split: str,
    index: int,
    *,
    subjects: int,
    views: int,
    places: int = 0,
    portraits: float = 0.0,
    distractors: float = 0.0,
    described: float = 0.0,
    anywhere: bool = False,
) -> Scene:
    """The random scene of this index of a split.

    Scenes of "train" show no two identities that `factors.held_out_couple` keeps apart.

    Args:
      subjects: the most per scene, from 1.
      views: the most references per subject, from 1; 0 gives the scenes of 1 without references.
      places: the most references of all subjects together; 0 for no such limit.
      portraits: the share of scenes that show one subject on plain ground as references do.
      distractors: the share of scenes that have a reference of one more subject, if it is within
        `subjects` and `places`.
      described: the share of scenes whose caption says who its subjects are.
      anywhere: whether to use the backgrounds of `backgrounds.HELD_OUT` too.

    Raises:
      UvitError: if the world has no such split.
    """
    scene_world = world(world_name)
    pool = scene_world.split(split)
    rng = rng_of(world_name, split, index)
    count = int(rng.integers(1, subjects + 1))
    chosen: list[int] = []
    while len(chosen) < count:
        one = int(rng.integers(len(pool)))
        apart = split == "train" and any(factors.held_out_couple(one, c) for c in chosen)
        if one not in chosen and not apart:
            chosen.append(one)
    facts = draw_facts(
        rng, scene_world, count, backgrounds.NAMES if anywhere else seen_backgrounds()
    )
    most = max(views, 1) if not places else max(1, min(views, places // count))
    chosen_views = [
        random_views(rng, scene_world, facing, int(rng.integers(1, most + 1)))
        for facing in facts.facings
    ]
    identities = [tuple(map(int, pool[c])) for c in chosen]
    scene = stage(rng, scene_world, identities, facts, chosen_views)
    if portraits and rng.random() < portraits:
        scene = portrait(scene)
    if distractors and rng.random() < distractors:
        scene = with_distractor(rng, scene, pool, chosen, subjects, places)
    if described and rng_of("described", world_name, split, index).random() < described:
        scene = dataclasses.replace(scene, described=True)
    return scene if views else without_references(scene)


def with_distractor(
    rng: np.random.Generator,
    scene: Scene,
    pool: np.ndarray,
    chosen: list[int],
    subjects: int,
    places: int,
) -> Scene:
    """A scene with a reference of another subject of `pool` than those `chosen`; the scene itself
    if it has as many subjects or references as it may have."""
    used = sum(len(one.references) for one in scene.subjects)
    if len(scene.subjects) >= subjects or (places and used >= places):
        return scene
    others = [i for i in range(len(pool)) if i not in chosen]
    identity = tuple(map(int, pool[others[rng.integers(len(others))]]))
    scene_world = world(scene.world)
    poses = random_views(rng, scene_world, scene.facts.facings[0], 1)
    one = dataclasses.replace(scene.subjects[0], identity=identity, references=poses)
    return dataclasses.replace(scene, distractors=(one,))


@functools.cache
def seen_backgrounds() -> tuple[str, ...]:
    """The backgrounds that training images have."""
    return tuple(name for name in backgrounds.NAMES if name not in backgrounds.HELD_OUT)


def draw_facts(
    rng: np.random.Generator, scene_world: World, count: int, grounds: tuple[str, ...]
) -> Facts:
    """Random facts for `count` subjects, on one of the backgrounds `grounds`."""
    places, sides = PLACES[count], scene_world.facings
    return Facts(
        places=tuple(places[i] for i in rng.permutation(len(places))[:count]),
        facings=tuple(sides[i] for i in rng.integers(len(sides), size=count)),
        sizes=(SIZES[rng.integers(2)],) if count == 1 else ("",) * count,
        background=grounds[rng.integers(len(grounds))],
        wording=int(rng.integers(2)),
    )


def random_views(
    rng: np.random.Generator, scene_world: World, facing: str, count: int
) -> tuple[Pose, ...]:
    """Distinct random poses for a subject's references."""
    if count == 1 and rng.random() < MATCHING:
        return fixed_views(scene_world, facing, 1)
    poses = scene_world.reference_poses
    return tuple(poses[i] for i in rng.permutation(len(poses))[:count])


def fixed_views(scene_world: World, facing: str, count: int) -> tuple[Pose, ...]:
    """The first reference poses of the world, with the one of the target's side in front."""
    front, back, *rest = scene_world.reference_poses
    poses = (back, front, *rest) if facing == BEHIND else (front, back, *rest)
    return poses[:count]


def stage(
    rng: np.random.Generator,
    scene_world: World,
    identities: list[tuple[int, ...]],
    facts: Facts,
    views: list[tuple[Pose, ...]],
) -> Scene:
    """A scene of these facts, with random exact positions, poses, background phase and camera."""
    subjects = []
    for slot, (identity, references) in enumerate(zip(identities, views, strict=True)):
        x, y, scale = place(facts, slot, scene_world.size)
        subjects.append(
            Subject(
                identity=identity,
                pose=scene_world.draw_pose(rng, facts.facings[slot]),
                x=x + float(rng.uniform(-0.05, 0.05)),
                y=y + float(rng.uniform(-0.05, 0.05)),
                scale=scale * float(rng.uniform(0.94, 1.06)),
                references=references,
            )
        )
    camera = Camera(
        x=float(rng.uniform(-0.05, 0.05)),
        y=float(rng.uniform(-0.05, 0.05)),
        zoom=float(np.exp(rng.uniform(-0.06, 0.06))),
        roll=float(rng.uniform(-0.08, 0.08)),
    )
    phase = float(rng.random())
    return Scene(
        world=scene_world.name, subjects=tuple(subjects), facts=facts, phase=phase, camera=camera
    )


def redraw(scene: Scene, seed: int) -> Scene:
    """Another scene of the same facts and references, as an ideal model would generate it."""
    scene_world = world(scene.world)
    rng = rng_of("redraw", zlib.crc32(repr(scene).encode()), seed)
    identities = [s.identity for s in scene.subjects]
    views = [s.references for s in scene.subjects]
    return stage(rng, scene_world, identities, scene.facts, views)


def portrait(scene: Scene) -> Scene:
    """The first subject of a scene alone on plain ground, as references show it."""
    one, facing = scene.subjects[0], scene.facts.facings[0]
    one = dataclasses.replace(one, **portrait_place(world(scene.world)))
    return dataclasses.replace(
        scene, subjects=(one,), facts=portrait_facts(facing), camera=Camera()
    )


def portrait_facts(facing: str) -> Facts:
    """The facts of a subject on plain ground, as references show it."""
    return Facts(
        places=("middle",), facings=(facing,), sizes=("large",), background=backgrounds.PLAIN
    )


def without_references(scene: Scene) -> Scene:
    """The same scene without references."""
    subjects = tuple(dataclasses.replace(s, references=()) for s in scene.subjects)
    return dataclasses.replace(scene, subjects=subjects, distractors=())


def replaced_subject(scene: Scene, slot: int, identity: tuple[int, ...]) -> Scene:
    """The same scene and references with another subject in a slot (from 0)."""
    subjects = list(scene.subjects)
    subjects[slot] = dataclasses.replace(subjects[slot], identity=identity)
    return dataclasses.replace(scene, subjects=tuple(subjects))
