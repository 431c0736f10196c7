"""The fixed evaluation sets: each setting always has the same subjects, views, prompts and seeds.

    for case in cases("totems", "identities_1v"):
        example = scenes.render(case.scene, 32)             # the references, and one real image
        oracle = scenes.render(random_scenes.redraw(case.scene, case.seed), 32)   # another one
        # Generate from example.references and case.scene.caption, with case.seed.

Cases of one subject are consecutive, `prompts` of them, and belong in one bootstrap cluster. The
settings with 1, 2 and 3 views have the same subjects, prompts and seeds, so they can be paired.
"""

import dataclasses

import numpy as np

from uvit_jax.data.sources.worlds import backgrounds, factors, random_scenes
from uvit_jax.data.sources.worlds.scenes import Scene
from uvit_jax.data.sources.worlds.worlds import World, world
from uvit_jax.errors import UvitError, nearest

_FRONT, _BACK = factors.NAMES.index("front"), factors.NAMES.index("back")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What an evaluation set holds out, and how many references it gives.

    Attributes:
      split: of the identities; worlds without the split lack the setting.
      subjects: per scene.
      views: references per subject.
      grounds: the backgrounds.
      twin: settings with the same `twin` have the same scenes but for their views.
      recomposed: subjects are training identities with the front emblem of another on their back.
      wording: of the captions (`Facts.wording`); None for random ones.
      distractors: references of other subjects, whom neither caption nor image has.
      apart: scenes show the pairs of subjects that `factors.held_out_couple` keeps from training.
    """

    split: str
    subjects: int = 1
    views: int = 2
    grounds: tuple[str, ...] = random_scenes.seen_backgrounds()
    twin: str = ""
    recomposed: bool = False
    wording: int | None = None
    distractors: int = 0
    apart: bool = False


SETTINGS = {
    "seen": Setting(split="train"),
    "identities_1v": Setting(split="test", views=1, twin="identities"),
    "identities_2v": Setting(split="test", views=2, twin="identities"),
    "identities_3v": Setting(split="test", views=3, twin="identities"),
    "validation": Setting(split="validation"),
    "pairs": Setting(split="test_pairs"),
    "vendor": Setting(split="test_vendor"),
    "couples": Setting(split="train", subjects=2, apart=True),
    "two_subjects": Setting(split="test", subjects=2),
    "three_subjects": Setting(split="test", subjects=3),
    "two_subjects_1v": Setting(split="test", subjects=2, views=1, twin="two_subjects"),
    "three_subjects_1v": Setting(split="test", subjects=3, views=1, twin="three_subjects"),
    **{
        f"two_subjects_{side}": Setting(
            split="test", subjects=2, views=1, twin="two_subjects", wording=wording
        )
        for wording, side in enumerate(("left", "right"))
    },
    "three_subjects_left": Setting(
        split="test", subjects=3, views=1, twin="three_subjects", wording=2
    ),
    **{
        f"distractors_{count}": Setting(split="test", views=1, twin="identities", distractors=count)
        for count in range(1, 6)
    },
    "compositions": Setting(split="train", recomposed=True),
    "backgrounds": Setting(split="test", grounds=backgrounds.HELD_OUT),
}
"""`pairs` (of factor values) and `compositions` exist for totems only, `vendor` for emoji only.
`three_subjects` is an unseen count for models trained with `max_subjects=2`. `_left` and
`_right` have one reference a subject, and one form of sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One image to generate.

    Attributes:
      setting: its name.
      number: the index within the setting.
      subject: an index, equal in cases of the same subjects.
      scene: subjects, references, caption and facts.
      seed: of the initial noise.
    """

    setting: str
    number: int
    subject: int
    scene: Scene
    seed: int


def settings(world_name: str) -> tuple[str, ...]:
    """The names of a world's settings."""
    known = world(world_name)
    splits = known.identities()
    return tuple(
        name
        for name, setting in SETTINGS.items()
        if setting.split in splits and (known.name == "totems" or not setting.recomposed)
    )


def cases(world_name: str, setting: str, *, subjects: int = 32, prompts: int = 2) -> list[Case]:
    """The fixed cases of a setting; with fewer subjects or prompts, a subset of them.

    Args:
      subjects: number of groups of subjects (of one, two or three).
      prompts: per group.

    Raises:
      UvitError: if the world has no such setting, or fewer groups of subjects.
    """
    names = settings(world_name)
    if setting not in names:
        raise UvitError(f"{world_name} have no setting {setting!r}{nearest(setting, names)}")
    if subjects < 1 or prompts < 1:
        raise UvitError(f"subjects and prompts must be at least 1, got {subjects} and {prompts}")
    chosen, scene_world = SETTINGS[setting], world(world_name)
    stream = chosen.twin or setting
    groups = _groups(scene_world, chosen, stream, subjects)
    result = []
    for number, identities in enumerate(groups):
        for prompt in range(prompts):
            rng = random_scenes.rng_of("cases", world_name, stream, number, prompt)
            facts = random_scenes.draw_facts(rng, scene_world, chosen.subjects, chosen.grounds)
            if chosen.wording is not None:
                facts = dataclasses.replace(facts, wording=chosen.wording)
            if chosen.recomposed:  # show the changed side
                facts = dataclasses.replace(facts, facings=(scene_world.facings[1],))
            views = [
                random_scenes.fixed_views(scene_world, side, chosen.views) for side in facts.facings
            ]
            scene = random_scenes.stage(rng, scene_world, identities, facts, views)
            seed = int(rng.integers(2**31))
            if chosen.distractors:
                scene = _with_distractors(scene, chosen, stream, number)
            result.append(
                Case(setting=setting, number=len(result), subject=number, scene=scene, seed=seed)
            )
    return result


def _with_distractors(scene: Scene, chosen: Setting, stream: str, number: int) -> Scene:
    """The scene with references of up to two more subjects, dealt to them in turn."""
    scene_world = world(scene.world)
    pool = scene_world.split(chosen.split)
    own = {one.identity for one in scene.subjects}
    rng = random_scenes.rng_of("distractors", scene.world, stream, number)
    others = [
        one for i in rng.permutation(len(pool)) if (one := tuple(map(int, pool[i]))) not in own
    ]
    facing = scene.facts.facings[0]
    added = []
    for slot in range(min(2, chosen.distractors)):
        views = random_scenes.fixed_views(scene_world, facing, -(-(chosen.distractors - slot) // 2))
        one = dataclasses.replace(scene.subjects[0], identity=others[slot], references=views)
        added.append(one)
    return dataclasses.replace(scene, distractors=tuple(added))


def _groups(
    scene_world: World, chosen: Setting, stream: str, count: int
) -> list[list[tuple[int, ...]]]:
    """The identities of the subjects of each group; groups are disjoint."""
    pool = scene_world.split(chosen.split)
    rng = random_scenes.rng_of("groups", scene_world.name, stream)
    order = rng.permutation(len(pool))
    each = 2 if chosen.recomposed else chosen.subjects
    if chosen.apart:
        numbers = _couples(order, count)
    else:
        numbers = order[: len(order) // each * each].reshape(-1, each)[:count]
    if len(numbers) < count:
        raise UvitError(
            f"{scene_world.name} have {len(numbers)} groups of this setting, not {count}"
        )
    groups = [[tuple(map(int, pool[i])) for i in group] for group in numbers]
    return [[_recompose(*group)] for group in groups] if chosen.recomposed else groups


def _couples(order: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Disjoint pairs of subjects that training keeps apart."""
    couples, left = [], list(map(int, order))
    while left and len(couples) < count:
        first = left.pop()
        partner = next((one for one in left if factors.held_out_couple(first, one)), None)
        if partner is not None:
            left.remove(partner)
            couples.append((first, partner))
    return couples


def _recompose(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """The second identity with the front emblem of the first on its back.

    It differs from a training identity in this one factor, which only its references show.
    """
    changed = list(second)
    changed[_BACK] = first[_FRONT]
    if changed[_BACK] == second[_BACK]:
        changed[_BACK] = (changed[_BACK] + 1) % factors.SIZES[_BACK]
    return tuple(changed)
