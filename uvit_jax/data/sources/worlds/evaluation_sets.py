"""The fixed evaluation sets: in each setting, the same subjects, views, prompts and seeds forever.

    for case in cases("totems", "identities_1v"):
        example = scenes.render(case.scene, 32)             # the references, and one real picture
        oracle = scenes.render(random_scenes.redraw(case.scene, case.seed), 32)   # another one
        # Generate from example.references and case.scene.caption, with case.seed.

Cases of one subject follow each other, `prompts` at a time, and are to be resampled together. The
settings of 1, 2 and 3 views have the same subjects, prompts and seeds: they are pairs.
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
    """What is held out, and how much is given.

    Attributes:
      split: whose identities; a world that lacks the split lacks the setting.
      subjects, views: in every scene, and of each of them.
      grounds: the backgrounds. twin: scenes are those of the setting of this name, views aside.
      recomposed: one training identity's front emblem stands on the back of another.
      apart: the couples are those that `factors.held_out_couple` has kept from training.
    """

    split: str
    subjects: int = 1
    views: int = 2
    grounds: tuple[str, ...] = random_scenes.seen_backgrounds()
    twin: str = ""
    recomposed: bool = False
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
    "compositions": Setting(split="train", recomposed=True),
    "backgrounds": Setting(split="test", grounds=backgrounds.HELD_OUT),
}
"""`pairs` (of factor values) and `compositions` are of totems only, `vendor` of emoji only.
Training with `max_subjects=2` makes `three_subjects` a count that it has never seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One picture to generate.

    Attributes:
      setting: its name. number: within the setting. subject: equal in cases of the same subjects.
      scene: subjects, references, caption and facts. seed: of the noise to start from.
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
    """The fixed cases of a setting; with fewer subjects or prompts, a part of the same ones.

    Args:
      subjects: how many groups of subjects (of one, two or three). prompts: for each of them.

    Raises:
      UvitError: if the world has no such setting, or fewer subjects.
    """
    names = settings(world_name)
    if setting not in names:
        raise UvitError(f"{world_name} have no setting {setting!r}{nearest(setting, names)}")
    if subjects < 1 or prompts < 1:
        raise UvitError(f"subjects and prompts must be at least 1, got {subjects} and {prompts}")
    what, known = SETTINGS[setting], world(world_name)
    stream = what.twin or setting
    groups = _groups(known, what, stream, subjects)
    found = []
    for number, identities in enumerate(groups):
        for prompt in range(prompts):
            rng = random_scenes.rng_of("cases", world_name, stream, number, prompt)
            facts = random_scenes.draw_facts(rng, known, what.subjects, what.grounds)
            if what.recomposed:  # the new side is the one to show
                facts = dataclasses.replace(facts, facings=(known.facings[1],))
            views = [random_scenes.fixed_views(known, side, what.views) for side in facts.facings]
            scene = random_scenes.stage(rng, known, identities, facts, views)
            seed = int(rng.integers(2**31))
            found.append(
                Case(setting=setting, number=len(found), subject=number, scene=scene, seed=seed)
            )
    return found


def _groups(known: World, what: Setting, stream: str, count: int) -> list[list[tuple[int, ...]]]:
    """The subjects of each group; nobody is in two groups before everyone is in one."""
    pool = known.split(what.split)
    rng = random_scenes.rng_of("groups", known.name, stream)
    order = rng.permutation(len(pool))
    each = 2 if what.recomposed else what.subjects
    if what.apart:
        numbers = _couples(order, count)
    else:
        numbers = order[: len(order) // each * each].reshape(-1, each)[:count]
    if len(numbers) < count:
        raise UvitError(f"{known.name} have {len(numbers)} groups of this setting, not {count}")
    groups = [[tuple(map(int, pool[i])) for i in group] for group in numbers]
    return [[_recompose(*group)] for group in groups] if what.recomposed else groups


def _couples(order: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Disjoint couples that training keeps apart."""
    found, left = [], list(map(int, order))
    while left and len(found) < count:
        first = left.pop()
        partner = next((one for one in left if factors.held_out_couple(first, one)), None)
        if partner is not None:
            left.remove(partner)
            found.append((first, partner))
    return found


def _recompose(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """The second identity with the first one's front emblem on its back: a totem that differs from
    a training identity in one factor, which only its references can tell."""
    changed = list(second)
    changed[_BACK] = first[_FRONT]
    if changed[_BACK] == second[_BACK]:
        changed[_BACK] = (changed[_BACK] + 1) % factors.SIZES[_BACK]
    return tuple(changed)
