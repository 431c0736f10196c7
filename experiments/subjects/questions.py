"""What every arm is asked: worlds as lists of questions, the same ones forever.

world = open_world(config, size=32)
for question in world.questions("identities_2v", Asked(subjects=12)):
    question.references[s][v], question.prompt, question.seed     # given
    question.real[s]                                              # what identity is judged by
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.subjects.study_config import DREAMBENCH, Asked, CompareConfig
from uvit_jax.data.sources.dreambench import DreamBench
from uvit_jax.data.sources.worlds import evaluation_sets, random_scenes, scenes
from uvit_jax.data.sources.worlds.scenes import Scene
from uvit_jax.data.sources.worlds.worlds import BEHIND, FRONT, Pose, world
from uvit_jax.errors import UvitError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One picture to make, of S subjects.

    Attributes:
      setting, split: where it belongs. views: references of each subject.
      group: equal in questions about the same subjects. names: of each subject.
      kinds: each subject's class.
      prompt: with `@1` … for the subjects. seed: of the noise to start from.
      references: by subject and view (H, W, 3) in [-1, 1]; captions: what each of them shows.
      real: by subject (R, H, W, 3), true pictures of it.
      scene: of a drawn world, what is to be seen.
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
        """The group's name, by which pictures are clustered."""
        return " + ".join(self.names)


class Drawn:
    """Totems or emoji scenes. Pictures have `size` pixels a side."""

    def __init__(self, name: str, size: int):
        self.name, self.size, self.world = name, size, world(name)
        self._portraits: dict[tuple, np.ndarray] = {}

    def questions(self, setting: str, asked: Asked) -> list[Question]:
        """The questions of a setting, those about one group in a row."""
        found = evaluation_sets.cases(
            self.name, setting, subjects=asked.subjects, prompts=asked.prompts
        )
        return [self._question(case) for case in found]

    def class_captions(self, kind: str, count: int, word: str) -> list[str]:
        """Captions of pictures of nobody in particular, for prior preservation."""
        drawn = [
            random_scenes.draw(self.name, "train", i, subjects=1, views=0, portraits=0.3)
            for i in range(count)
        ]
        return [scene.caption.replace("@1", word) for scene in drawn]

    def portrait(self, identity: tuple[int, ...], pose: Pose) -> np.ndarray:
        """A subject as references show it, (H, W, 3)."""
        key = (identity, pose)
        if key not in self._portraits:
            self._portraits[key] = scenes.portrait(self.name, identity, pose, self.size)
        return self._portraits[key]

    def real(self, identity: tuple[int, ...]) -> np.ndarray:
        """Portraits in all poses of references, (R, H, W, 3)."""
        return np.stack([self.portrait(identity, pose) for pose in self.world.reference_poses])

    def oracle(self, question: Question, seed: int) -> np.ndarray:
        """Another true picture of what a question asks for."""
        return scenes.render(random_scenes.redraw(question.scene, seed), self.size).image

    def impostor(self, question: Question, other: Question, seed: int) -> np.ndarray:
        """The same scene with the subjects of another question."""
        scene = question.scene
        for slot, one in enumerate(other.scene.subjects):
            scene = random_scenes.replaced_subject(scene, slot, one.identity)
        return scenes.render(random_scenes.redraw(scene, seed), self.size).image

    def _question(self, case: evaluation_sets.Case) -> Question:
        what = evaluation_sets.SETTINGS[case.setting]
        subjects = case.scene.subjects
        return Question(
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


class Photographed:
    """DreamBench's subjects: `identities_{V}v` asks every prompt with the first V photographs."""

    name = DREAMBENCH

    def __init__(self, path: str, size: int):
        self.size, self.bench = size, DreamBench(path, image_size=size)

    def questions(self, setting: str, asked: Asked) -> list[Question]:
        """The questions of a setting. Validation has the last subjects, of 2 views."""
        known = {"identities_1v": 1, "identities_2v": 2, "identities_3v": 3, "validation": 2}
        if setting not in known:
            raise UvitError(f"DreamBench has the settings {', '.join(known)}, not {setting!r}")
        subjects = list(self.bench.subjects.values())
        if asked.subjects > len(subjects):
            raise UvitError(f"{self.bench.path} has {len(subjects)} subjects, not {asked.subjects}")
        last = setting == "validation"
        chosen = subjects[-asked.subjects :] if last else subjects[: asked.subjects]
        found = []
        for group, subject in enumerate(chosen):
            images = subject.images()
            views = min(known[setting], len(images))
            for number, prompt in enumerate(subject.prompts("@1")[: asked.prompts]):
                found.append(
                    Question(
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

    def oracle(self, question: Question, seed: int) -> np.ndarray:
        """Another photograph of the subject, whatever the prompt asks."""
        rest = question.real[0][len(question.references[0]) :]
        rest = rest if len(rest) else question.real[0]
        return rest[seed % len(rest)]

    def impostor(self, question: Question, other: Question, seed: int) -> np.ndarray:
        """A photograph of another subject."""
        return self.oracle(other, seed)


World = Drawn | Photographed


def open_world(config: CompareConfig, size: int) -> World:
    """The world of a comparison; UvitError if DreamBench's folder is none."""
    return Photographed(config.path, size) if config.path else Drawn(config.world, size)


def groups(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions by group, in their order."""
    found: dict[int, list[Question]] = {}
    for question in questions:
        found.setdefault(question.group, []).append(question)
    return list(found.values())


def nobody(asked: Sequence[Question], word: str) -> list[Question]:
    """The same questions about nobody in particular, for what the class has become."""
    return [dataclasses.replace(q, prompt=q.prompt.replace("@1", word)) for q in asked]


def next_group(questions: Sequence[Question], index: int) -> Question:
    """The question in the same place of the next group of subjects."""
    each = sum(q.group == questions[0].group for q in questions)
    return questions[(index + each) % len(questions)]
