"""Evaluation cases of videos: scenes of totems in motion, and the scores of generated clips."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.subjects.evaluation_cases import (
    DreamBenchWorld,
    EvaluationCase,
    ProceduralWorld,
    StudyWorld,
)
from experiments.subjects.study_config import TOTEM_VIDEOS, CompareConfig, SettingConfig
from uvit_jax.data.sources.worlds.scene_camera import Camera
from uvit_jax.data.sources.worlds.scene_motion import draw_motion, render_video
from uvit_jax.data.sources.worlds.scenes import Scene


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
        for number, case in enumerate(super().cases(setting, config)):
            stream = f"{TOTEM_VIDEOS} {setting}"
            motion = draw_motion(stream, case.split, number, len(case.names))
            prompt = case.prompt + motion.wording
            found.append(dataclasses.replace(case, motion=motion, prompt=prompt))
        return found

    def rendered(self, case: EvaluationCase, scene: Scene) -> np.ndarray:
        return render_video(scene, case.motion, self.size, self.frames)

    def cut_paste(self, case: EvaluationCase, seed: int) -> np.ndarray:
        """A still video of an image composed as `ProceduralWorld.cut_paste` does."""
        return self.still(super().cut_paste(self.frame_cases(case)[0], seed))

    def still(self, image: np.ndarray) -> np.ndarray:
        """A video of one image."""
        return np.repeat(image[None], self.frames, axis=0)

    def frame_cases(self, case: EvaluationCase) -> list[EvaluationCase]:
        """The frames of a case, each as the case of an image."""
        scenes = case.motion.poses(case.scene, self.frames)
        cameras = case.motion.cameras(Camera(), self.frames)
        return [
            dataclasses.replace(case, scene=scene, camera=camera)
            for scene, camera in zip(scenes, cameras, strict=True)
        ]


def open_world(config: CompareConfig, shape: Sequence[int]) -> StudyWorld:
    """The world of a comparison.

    Args:
      shape: of the generated images, (H, W, C), or videos, (T, H, W, C).

    Raises:
      UvitError: if `config.path` is not a DreamBench folder.
    """
    if config.world == TOTEM_VIDEOS:
        return VideoWorld(shape[-3], shape[0])
    if config.path:
        return DreamBenchWorld(config.path, shape[-3])
    return ProceduralWorld(config.world, shape[-3])
