"""Evaluation cases of videos, scenes of totems in motion; and the world of a comparison."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from experiments.subjects.evaluation_cases import (
    DreamBenchWorld,
    EvaluationCase,
    Placed,
    ProceduralWorld,
    Shown,
    StudyWorld,
)
from experiments.subjects.study_config import (
    AMPLITUDE_SETTING,
    TOTEM_VIDEOS,
    TURNING_SETTING,
    VIDEO_SETTINGS,
    CompareConfig,
    SettingConfig,
)
from uvit_jax.data.sources.worlds import backgrounds, random_scenes, scenes
from uvit_jax.data.sources.worlds.scene_camera import AMPLITUDES, Camera, grid
from uvit_jax.data.sources.worlds.scene_motion import (
    JITTER,
    TURNS,
    Motion,
    draw_motion,
    render_video,
)
from uvit_jax.data.sources.worlds.scenes import Scene
from uvit_jax.data.sources.worlds.worlds import FRONT
from uvit_jax.errors import UvitError

STILL = Motion(amplitude="S", worded=False)
"""The motion of references that are held still."""


class VideoWorld(ProceduralWorld):
    """Totems in motion. A case is an image's scene and prompt with a motion; what images are to
    `ProceduralWorld`, videos (T, H, W, 3) are here. References are images.

    Args:
      frames: T.
    """

    def __init__(self, size: int, frames: int):
        super().__init__("totems", size)
        self.frames = frames

    def cases(self, setting: str, config: SettingConfig) -> list[EvaluationCase]:
        found = []
        for number, case in enumerate(super().cases(VIDEO_SETTINGS.get(setting, setting), config)):
            stream = f"{TOTEM_VIDEOS} {setting}"
            motion = draw_motion(stream, case.split, number, len(case.names))
            case = dataclasses.replace(case, setting=setting)
            if setting == AMPLITUDE_SETTING:
                motion = dataclasses.replace(motion, worded=True)
                for i, amplitude in enumerate(AMPLITUDES):
                    one = dataclasses.replace(case, seed=case.seed + i)
                    found.append(_moving(one, motion.of_amplitude(amplitude)))
            elif setting == TURNING_SETTING:
                turn = math.copysign(TURNS["L"] * (1 + JITTER), motion.turns[0] or 1.0)
                found.append(_moving(_facing_front(case), Motion(turns=(turn,), amplitude="L")))
            else:
                found.append(_moving(case, motion))
        return found

    def rendered(self, case: EvaluationCase, scene: Scene) -> np.ndarray:
        return render_video(scene, case.motion, self.size, self.frames)

    def oracle(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """Another ground-truth rendering of the case; one that turns starts from the same pose."""
        scene = random_scenes.redraw(case.scene, seed)
        if case.setting == TURNING_SETTING:
            pairs = zip(scene.subjects, case.scene.subjects, strict=True)
            posed = (dataclasses.replace(one, pose=own.pose) for one, own in pairs)
            scene = dataclasses.replace(scene, subjects=tuple(posed))
        return self.rendered(case, scene)

    def cut_paste(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """A still video of an image composed as `ProceduralWorld.cut_paste` does."""
        return self.still(super().cut_paste(self.frame_cases(case)[0], seed))

    def shown(self, case: EvaluationCase, slot: int, pasted: int) -> Shown:
        """Still videos of one subject's references, and `pasted` scenes of it as those of
        `ProceduralWorld.shown`, under a camera that moves."""
        videos = [self.still(image) for image in case.references[slot]]
        captions, motions = list(case.captions[slot]), [STILL] * len(videos)
        for i in range(pasted):
            facts, seed, placed = self._drawn(case, slot, i)
            motion = draw_motion(f"pasted {case.names[slot]}", "train", i, 1)
            motion = dataclasses.replace(motion, turns=())  # which a cut-out cannot do
            videos.append(self._moving(facts.background, seed, placed, motion))
            captions.append(facts.caption.replace("@1", f"@{slot + 1}") + motion.wording)
            motions.append(motion)
        return Shown(np.stack(videos), captions, motions)

    def portraits(self, case: EvaluationCase) -> list[EvaluationCase]:
        return [dataclasses.replace(one, motion=STILL) for one in super().portraits(case)]

    def class_prompts(
        self, kind: str, count: int, word: str
    ) -> tuple[list[str], list[Motion | None]]:
        """Captions of random videos of the class, and their motions."""
        captions, _ = super().class_prompts(kind, count, word)
        motions = [draw_motion("class", "train", i, 1) for i in range(count)]
        worded = [motion.wording.replace("@1", word) for motion in motions]
        return [c + w for c, w in zip(captions, worded, strict=True)], list(motions)

    def _moving(self, background: str, seed: int, placed: Placed, motion: Motion) -> np.ndarray:
        """A video of a reference's subject, cut out and pasted on a background."""
        reference, centre_x, centre_y, scale = placed
        own = scenes.portrait_place(self.world)
        phase, zoom, side = np.random.default_rng(seed).random(), own["scale"] / scale, self.size
        plain = 2 * backgrounds.PLAIN_COLOUR - 1
        frames = []
        for camera in motion.cameras(Camera(), self.frames):
            x, y = camera.to_scene(*grid(2 * side))  # twice as fine, against aliasing
            image = 2 * backgrounds.paint(background, x, y, phase) - 1
            # The pixels of the reference that show these points of the scene.
            column = ((x - centre_x) * zoom + 1) * side / 2 - 0.5
            row = (1 - (y - centre_y) * zoom - own["y"]) * side / 2 - 0.5
            cut = np.stack(
                [
                    ndimage.map_coordinates(reference[..., c], [row, column], order=1, cval=plain)
                    for c in range(3)
                ],
                axis=-1,
            )
            alpha = np.clip(np.abs(cut - plain).max(axis=-1, keepdims=True) * 8 - 0.4, 0, 1)
            fine = alpha * cut + (1 - alpha) * image
            frames.append(fine.reshape(side, 2, side, 2, 3).mean(axis=(1, 3)))
        return np.clip(np.stack(frames), -1, 1).astype(np.float32)

    def still(self, image: np.ndarray) -> np.ndarray:
        """A video of one image."""
        return np.repeat(image[None], self.frames, axis=0)

    def frame_cases(self, case: EvaluationCase) -> list[EvaluationCase]:
        """The frames of a case, each as the case of an image."""
        posed = case.motion.poses(case.scene, self.frames)
        cameras = case.motion.cameras(Camera(), self.frames)
        return [
            dataclasses.replace(case, scene=scene, camera=camera)
            for scene, camera in zip(posed, cameras, strict=True)
        ]


def _moving(case: EvaluationCase, motion: Motion) -> EvaluationCase:
    """The case with a motion, which its prompt says."""
    return dataclasses.replace(case, motion=motion, prompt=case.prompt + motion.wording)


def _facing_front(case: EvaluationCase) -> EvaluationCase:
    """The case with its subject's front towards the camera."""
    facts = dataclasses.replace(case.scene.facts, facings=(FRONT,))
    one = dataclasses.replace(case.scene.subjects[0], pose=(0.0, 0.0))
    scene = dataclasses.replace(case.scene, facts=facts, subjects=(one,))
    return dataclasses.replace(case, scene=scene, prompt=scene.caption)


def open_world(config: CompareConfig, shape: Sequence[int]) -> StudyWorld:
    """The world of a comparison.

    Args:
      shape: of the generated images, (H, W, C), or videos, (T, H, W, C).

    Raises:
      UvitError: if `config.path` is not a DreamBench folder, or the shape is not the world's.
    """
    if (config.world == TOTEM_VIDEOS) != (len(shape) == 4):
        raise UvitError(
            f"world={config.world!r} does not suit networks that generate "
            f"{'videos' if len(shape) == 4 else 'images'} {tuple(shape)}"
        )
    if config.world == TOTEM_VIDEOS:
        return VideoWorld(shape[-3], shape[0])
    if config.path:
        return DreamBenchWorld(config.path, shape[-3])
    return ProceduralWorld(config.world, shape[-3])
