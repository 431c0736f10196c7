"""The fixed evaluation cases that all methods are compared on.

world = open_world(config, (32, 32, 3))
for case in world.cases("identities_2v", SettingConfig(subjects=12)):
    case.references[s][v], case.prompt, case.seed     # the inputs
    case.real[s]                                      # ground truth of subject s's identity
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.subjects import crops
from experiments.subjects.study_config import DREAMBENCH, SettingConfig
from uvit_jax.data.sources.dreambench import DreamBench
from uvit_jax.data.sources.worlds import backgrounds, evaluation_sets, random_scenes, scenes
from uvit_jax.data.sources.worlds.scene_camera import Camera, grid
from uvit_jax.data.sources.worlds.scene_motion import Motion
from uvit_jax.data.sources.worlds.scenes import Facts, Scene
from uvit_jax.data.sources.worlds.worlds import BEHIND, FRONT, Pose, world
from uvit_jax.errors import UvitError, nearest

Placed = tuple[np.ndarray, float, float, float]
"""A reference (H, W, 3) to paste: the position (x, y) and the scale of its subject."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationCase:
    """One image to generate, of S subjects.

    Attributes:
      setting, split: of the evaluation. views: references per subject.
      group: equal for cases of the same subjects. names: of the subjects. kinds: their classes.
      prompt: names the subjects `@1`, `@2`, … seed: of the initial noise.
      references: images (H, W, 3) in [-1, 1], by subject and view; those of distractors, whom the
        prompt does not name, last. captions: of the references of the named ones.
      real: ground-truth images (R, H, W, 3), by subject.
      scene: the ground-truth scene, in procedural worlds.
      motion: of the video, None for images. camera: of a video's frame, relative to that of an
        image of the scene.
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
    motion: Motion | None = None
    camera: Camera = Camera()

    @property
    def slots(self) -> tuple[int, int]:
        """(subjects, views) of the references, distractors included."""
        return len(self.references), max(map(len, self.references))

    @property
    def subject(self) -> str:
        """The name of the group, the cluster of the bootstrap."""
        return " + ".join(self.names)

    def spot(self, slot: int) -> tuple[tuple[float, float], float]:
        """The centre and the scale of a subject in the image, where the caption and the camera put
        it."""
        centre, scale = scenes.spot(self.scene, slot)
        if self.scene.facts.background == backgrounds.PLAIN:  # which is exact already
            return centre, scale
        return self.camera.to_image(*centre), scale * self.camera.zoom


class Shown(NamedTuple):
    """What a subject is fine-tuned on: images (n, H, W, 3), or videos (n, T, H, W, 3) with their
    motions, and captions."""

    images: np.ndarray
    captions: list[str]
    motions: list[Motion | None]


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

    def class_prompts(
        self, kind: str, count: int, word: str
    ) -> tuple[list[str], list[Motion | None]]:
        """Captions of random images of the class, for prior preservation, and no motions."""
        random = [
            random_scenes.draw(self.name, "train", i, subjects=1, views=0, portraits=0.3)
            for i in range(count)
        ]
        return [scene.caption.replace("@1", word) for scene in random], [None] * count

    def portrait(self, identity: tuple[int, ...], pose: Pose) -> np.ndarray:
        """A reference image of a subject, (H, W, 3)."""
        key = (identity, pose)
        if key not in self._portraits:
            self._portraits[key] = scenes.portrait(self.name, identity, pose, self.size)
        return self._portraits[key]

    def real(self, identity: tuple[int, ...]) -> np.ndarray:
        """Reference images in all poses, (R, H, W, 3)."""
        return np.stack([self.portrait(identity, pose) for pose in self.world.reference_poses])

    def rendered(self, case: EvaluationCase, scene: Scene) -> np.ndarray:
        """The image of a scene in place of the case's own."""
        return scenes.render(scene, self.size).image

    def truth(self, case: EvaluationCase) -> np.ndarray:
        """The ground-truth image of the case."""
        return self.rendered(case, case.scene)

    def oracle(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """Another ground-truth rendering of the case."""
        return self.rendered(case, random_scenes.redraw(case.scene, seed))

    def impostor(self, case: EvaluationCase, other: EvaluationCase, seed: int) -> np.ndarray:
        """A rendering of the case with the subjects of another case."""
        return self._replaced(case, [one.identity for one in other.scene.subjects], seed)

    def nearest_training(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """A rendering of the case with the training identities that share most attributes."""
        pool = self.world.split("train")
        same = [(pool == np.array(one.identity)).sum(axis=1) for one in case.scene.subjects]
        return self._replaced(case, [tuple(map(int, pool[s.argmax()])) for s in same], seed)

    def _replaced(self, case: EvaluationCase, identities: Sequence, seed: int) -> np.ndarray:
        scene = case.scene
        for slot, identity in enumerate(identities):
            scene = random_scenes.replaced_subject(scene, slot, identity)
        return self.rendered(case, random_scenes.redraw(scene, seed))

    def cut_paste(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """Each subject's best reference, cut out and pasted where the caption puts it."""
        facts, scene = case.scene.facts, case.scene
        placed = []
        for slot, facing in enumerate(facts.facings):
            poses = scene.subjects[slot].references
            best = min(range(len(poses)), key=lambda v: self._facing(poses[v]) != facing)
            (x, y), scale = case.spot(slot)
            placed.append((case.references[slot][best], x, y, scale))
        return self._pasted(facts.background, seed, placed)

    def shown(self, case: EvaluationCase, slot: int, pasted: int) -> Shown:
        """One subject's references, and `pasted` training scenes of it from these alone: cut out of
        their plain background and pasted on training backgrounds, as captions say, which call the
        subject `@{slot + 1}`."""
        images, captions = list(case.references[slot]), list(case.captions[slot])
        for i in range(pasted):
            facts, seed, placed = self._drawn(case, slot, i)
            images.append(self._pasted(facts.background, seed, [placed]))
            captions.append(facts.caption.replace("@1", f"@{slot + 1}"))
        return Shown(np.stack(images), captions, [None] * len(images))

    def _drawn(self, case: EvaluationCase, slot: int, number: int) -> tuple[Facts, int, Placed]:
        """The facts of a scene with one subject, the seed of its background, and the subject."""
        rng = random_scenes.rng_of("pasted", self.name, case.names[slot], number)
        facts = random_scenes.draw_facts(rng, self.world, 1, random_scenes.seen_backgrounds())
        view = int(rng.integers(len(case.references[slot])))
        facing = self._facing(case.scene.subjects[slot].references[view])
        facts = dataclasses.replace(facts, facings=(facing,))
        x, y, scale = scenes.place(facts, 0, self.world.size)
        x, y = (v + float(rng.uniform(-0.05, 0.05)) for v in (x, y))
        placed = case.references[slot][view], x, y, scale * float(rng.uniform(0.94, 1.06))
        return facts, int(rng.integers(2**31)), placed

    def _pasted(self, background: str, seed: int, placed: Sequence[Placed]) -> np.ndarray:
        """References (image, x, y, scale) cut out and pasted on a background."""
        own = scenes.portrait_place(self.world)
        phase = np.random.default_rng(seed).random()
        image = 2 * backgrounds.paint(background, *grid(self.size), phase) - 1
        plain = np.float32(2 * backgrounds.PLAIN_COLOUR - 1)
        for reference, x, y, scale in placed:
            zoom = own["scale"] / scale
            centre, half = np.array([[-x * zoom, own["y"] - y * zoom]]), np.array([zoom])
            alpha = np.clip(np.abs(reference - plain).max(axis=-1, keepdims=True) * 8 - 0.4, 0, 1)
            cut = np.concatenate([reference * alpha, alpha], axis=-1)[None]
            cut = crops.crop(cut, centre, half, self.size)[0]
            image = cut[..., :3] + (1 - cut[..., 3:]) * image
        return np.clip(image, -1, 1).astype(np.float32)

    def portraits(self, case: EvaluationCase) -> list[EvaluationCase]:
        """The cases of generating a subject's own references again."""
        found = []
        for view, (pose, caption) in enumerate(
            zip(case.scene.subjects[0].references, case.captions[0], strict=True)
        ):
            scene = random_scenes.portrait(case.scene)
            facts = random_scenes.portrait_facts(self._facing(pose))
            one = dataclasses.replace(scene.subjects[0], pose=pose)
            scene = dataclasses.replace(scene, subjects=(one,), facts=facts)
            changes = dict(prompt=caption, scene=scene, seed=case.seed + 7 * (view + 1))
            found.append(dataclasses.replace(case, **changes))
        return found

    def _facing(self, pose: Pose) -> str:
        if len(self.world.facings) == 1:
            return self.world.facings[0]
        return FRONT if np.cos(pose[0]) > 0 else BEHIND

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
                for one in case.scene.referenced
            ),
            captions=tuple(
                tuple(self._caption(pose, slot) for pose in one.references)
                for slot, one in enumerate(subjects)
            ),
            real=tuple(self.real(one.identity) for one in subjects),
            scene=case.scene,
        )

    def _caption(self, pose: Pose, slot: int) -> str:
        caption = random_scenes.portrait_facts(self._facing(pose)).caption
        return caption.replace("@1", f"@{slot + 1}")


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

    def shown(self, case: EvaluationCase, slot: int, pasted: int) -> Shown:
        """One subject's references."""
        images = np.stack(case.references[slot])
        return Shown(images, list(case.captions[slot]), [None] * len(images))

    def class_prompts(
        self, kind: str, count: int, word: str
    ) -> tuple[list[str], list[Motion | None]]:
        """DreamBooth's class prompt."""
        return [f"a {kind}"] * count, [None] * count

    def oracle(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """Another photograph of the subject, whatever the prompt."""
        rest = case.real[0][len(case.references[0]) :]
        rest = rest if len(rest) else case.real[0]
        return rest[seed % len(rest)]

    def impostor(self, case: EvaluationCase, other: EvaluationCase, seed: int) -> np.ndarray:
        """A photograph of another subject."""
        return self.oracle(other, seed)


StudyWorld = ProceduralWorld | DreamBenchWorld


def grouped(cases: Sequence[EvaluationCase]) -> list[list[EvaluationCase]]:
    """The cases of each group, in order of first appearance."""
    found: dict[int, list[EvaluationCase]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return list(found.values())


def own_words(prompt: str, names: Sequence[str]) -> str:
    """The prompt with the subjects' own words, `@1*` for `@1`."""
    for slot in range(len(names)):
        prompt = prompt.replace(f"@{slot + 1}", f"@{slot + 1}*")
    return prompt


def exchanged(prompt: str, names: Sequence[str]) -> str:
    """The prompt with each subject's name in place of the one before it."""
    order = {str(s + 1): str((s + 1) % len(names) + 1) for s in range(len(names))}
    return re.sub(r"@(\d+)", lambda m: f"@{order.get(m[1], m[1])}", prompt)


def class_cases(cases: Sequence[EvaluationCase], word: str) -> list[EvaluationCase]:
    """The same cases with the class word in place of the subject, to measure what a name does and
    what fine-tuning forgets."""
    return [dataclasses.replace(q, prompt=q.prompt.replace("@1", word)) for q in cases]


def next_group(cases: Sequence[EvaluationCase], index: int) -> EvaluationCase:
    """The case at the same index of the next group of subjects."""
    each = sum(q.group == cases[0].group for q in cases)
    return cases[(index + each) % len(cases)]
