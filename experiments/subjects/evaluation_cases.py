"""The fixed evaluation cases that all methods are compared on.

world = open_world(config, size=32)
for case in world.cases("identities_2v", SettingConfig(subjects=12)):
    case.references[s][v], case.prompt, case.seed     # the inputs
    case.real[s]                                      # ground truth of subject s's identity
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.subjects.study_config import DREAMBENCH, CompareConfig, SettingConfig
from uvit_jax.data.sources.dreambench import DreamBench
from uvit_jax.data.sources.worlds import evaluation_sets, random_scenes, scenes
from uvit_jax.data.sources.worlds.scenes import Scene
from uvit_jax.data.sources.worlds.worlds import BEHIND, FRONT, Pose, world
from uvit_jax.errors import UvitError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationCase:
    """One image to generate, of S subjects.

    Attributes:
      setting, split: of the evaluation. views: references per subject.
      group: equal for cases of the same subjects. names: of the subjects. kinds: their classes.
      prompt: names the subjects `@1`, `@2`, … seed: of the initial noise.
      references: images (H, W, 3) in [-1, 1], by subject and view. captions: of the references.
      real: ground-truth images (R, H, W, 3), by subject.
      scene: the ground-truth scene, in procedural worlds.
    """

    setting: str
    split: str
    views: int
    group: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    prompt: str
    seed: int
    references: tuple[tuple[np.ndarray, ...], ...]
    captions: tuple[tuple[str, ...], ...]
    real: tuple[np.ndarray, ...]
    scene: Scene | None = None

    @property
    def subject(self) -> str:
        """The name of the group, the cluster of the bootstrap."""
        return " + ".join(self.names)


class ProceduralWorld:
    """Totems or emoji scenes, rendered at `size`×`size` pixels."""

    def __init__(self, name: str, size: int):
        self.name, self.size, self.world = name, size, world(name)
        self._portraits: dict[tuple, np.ndarray] = {}

    def cases(self, setting: str, config: SettingConfig) -> list[EvaluationCase]:
        """The cases of a setting; those of one group are consecutive."""
        found = evaluation_sets.cases(
            self.name, setting, subjects=config.subjects, prompts=config.prompts
        )
        return [self._case(case) for case in found]

    def class_captions(self, kind: str, count: int, word: str) -> list[str]:
        """Captions of random images of the class, for prior preservation."""
        random = [
            random_scenes.draw(self.name, "train", i, subjects=1, views=0, portraits=0.3)
            for i in range(count)
        ]
        return [scene.caption.replace("@1", word) for scene in random]

    def portrait(self, identity: tuple[int, ...], pose: Pose) -> np.ndarray:
        """A reference image of a subject, (H, W, 3)."""
        key = (identity, pose)
        if key not in self._portraits:
            self._portraits[key] = scenes.portrait(self.name, identity, pose, self.size)
        return self._portraits[key]

    def real(self, identity: tuple[int, ...]) -> np.ndarray:
        """Reference images in all poses, (R, H, W, 3)."""
        return np.stack([self.portrait(identity, pose) for pose in self.world.reference_poses])

    def oracle(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """Another ground-truth rendering of the case."""
        return scenes.render(random_scenes.redraw(case.scene, seed), self.size).image

    def impostor(self, case: EvaluationCase, other: EvaluationCase, seed: int) -> np.ndarray:
        """A rendering of the case with the subjects of another case."""
        scene = case.scene
        for slot, one in enumerate(other.scene.subjects):
            scene = random_scenes.replaced_subject(scene, slot, one.identity)
        return scenes.render(random_scenes.redraw(scene, seed), self.size).image

    def _case(self, case: evaluation_sets.Case) -> EvaluationCase:
        what = evaluation_sets.SETTINGS[case.setting]
        subjects = case.scene.subjects
        return EvaluationCase(
            setting=case.setting,
            split=what.split,
            views=len(subjects[0].references),
            group=case.subject,
            names=tuple("-".join(map(str, one.identity)) for one in subjects),
            kinds=(self.name,) * len(subjects),
            prompt=case.scene.caption,
            seed=case.seed,
            references=tuple(
                tuple(self.portrait(one.identity, pose) for pose in one.references)
                for one in subjects
            ),
            captions=tuple(
                tuple(self._caption(pose, slot) for pose in one.references)
                for slot, one in enumerate(subjects)
            ),
            real=tuple(self.real(one.identity) for one in subjects),
            scene=case.scene,
        )

    def _caption(self, pose: Pose, slot: int) -> str:
        facing = self.world.facings[0]
        if len(self.world.facings) > 1:
            facing = FRONT if np.cos(pose[0]) > 0 else BEHIND
        return random_scenes.portrait_facts(facing).caption.replace("@1", f"@{slot + 1}")


class DreamBenchWorld:
    """DreamBench: in `identities_{V}v`, the first V photographs of a subject are its references."""

    name = DREAMBENCH

    def __init__(self, path: str, size: int):
        self.size, self.bench = size, DreamBench(path, image_size=size)

    def cases(self, setting: str, config: SettingConfig) -> list[EvaluationCase]:
        """The cases of a setting. Validation takes the last subjects, with 2 views."""
        known = {"identities_1v": 1, "identities_2v": 2, "identities_3v": 3, "validation": 2}
        if setting not in known:
            raise UvitError(f"DreamBench has no setting {setting!r}{nearest(setting, known)}")
        subjects = list(self.bench.subjects.values())
        if config.subjects > len(subjects):
            raise UvitError(
                f"{self.bench.path} has {len(subjects)} subjects, not {config.subjects}"
            )
        last = setting == "validation"
        chosen = subjects[-config.subjects :] if last else subjects[: config.subjects]
        found = []
        for group, subject in enumerate(chosen):
            images = subject.images()
            views = min(known[setting], len(images))
            for number, prompt in enumerate(subject.prompts("@1")[: config.prompts]):
                found.append(
                    EvaluationCase(
                        setting=setting,
                        split="validation" if last else "test",
                        views=known[setting],
                        group=group,
                        names=(subject.name,),
                        kinds=(subject.kind,),
                        prompt=prompt,
                        seed=1000 * group + number,
                        references=(tuple(images[:views]),),
                        captions=((f"a @1 {subject.kind}",) * views,),
                        real=(images,),
                    )
                )
        return found

    def class_captions(self, kind: str, count: int, word: str) -> list[str]:
        """DreamBooth's class prompt."""
        return [f"a {kind}"] * count

    def oracle(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """Another photograph of the subject, whatever the prompt."""
        rest = case.real[0][len(case.references[0]) :]
        rest = rest if len(rest) else case.real[0]
        return rest[seed % len(rest)]

    def impostor(self, case: EvaluationCase, other: EvaluationCase, seed: int) -> np.ndarray:
        """A photograph of another subject."""
        return self.oracle(other, seed)


StudyWorld = ProceduralWorld | DreamBenchWorld


def open_world(config: CompareConfig, size: int) -> StudyWorld:
    """The world of a comparison; UvitError if `config.path` is not a DreamBench folder."""
    return (
        DreamBenchWorld(config.path, size) if config.path else ProceduralWorld(config.world, size)
    )


def grouped(cases: Sequence[EvaluationCase]) -> list[list[EvaluationCase]]:
    """The cases of each group, in order of first appearance."""
    found: dict[int, list[EvaluationCase]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return list(found.values())


def class_cases(cases: Sequence[EvaluationCase], word: str) -> list[EvaluationCase]:
    """The same cases with the class word in place of the subject, to measure forgetting."""
    return [dataclasses.replace(q, prompt=q.prompt.replace("@1", word)) for q in cases]


def next_group(cases: Sequence[EvaluationCase], index: int) -> EvaluationCase:
    """The case at the same index of the next group of subjects."""
    each = sum(q.group == cases[0].group for q in cases)
    return cases[(index + each) % len(cases)]
