"""Rendered videos of totems as a data source: `data.name="totem_videos"`.

Video i of a split shows scene i of the images of `data.name="totems"`, with their references and a
motion that is a pure function of (split, i). A batch holds the inputs of `scene_source`, and
instead of `image`, with T = `config.frames`:

    video       float32 (B, T, H, W, 3) in [-1, 1]; less the `first` and `last` frames
    first, last float32 (B, t, H, W, 3), if `config.first_frames` and `last_frames` ask for them
    camera      float32 (B, T, 5), the exact path, see `scene_motion.CAMERA_FIELDS`
    amplitude   float32 (B, 2), see `Motion.size`
"""

import dataclasses

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.worlds.scene_motion import (
    CAMERA_FIELDS,
    MOVES,
    Motion,
    draw_motion,
    render_video,
)
from uvit_jax.data.sources.worlds.scene_source import LONGEST_CAPTION, SceneDataset, SceneSource
from uvit_jax.data.sources.worlds.scenes import Scene
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.video_frames import frame_shapes, split_frames
from uvit_jax.errors import UvitError

LONGEST_VIDEO_CAPTION = LONGEST_CAPTION + 24


class SceneVideoDataset(SceneDataset):
    """A split of videos, opened.

    Raises:
      UvitError: if captions do not fit `config.text_length`.
    """

    def __init__(self, config: DataConfig, source: "SceneVideoSource", tokenizer: Tokenizer | None):
        super().__init__(config, source, tokenizer)
        if tokenizer is not None and config.text_length < LONGEST_VIDEO_CAPTION:
            raise UvitError(
                f"text_length {config.text_length} is too small: captions of {config.name} have up "
                f"to {LONGEST_VIDEO_CAPTION} tokens"
            )
        self.segment_shapes = frame_shapes(config, self.image_shape)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        return self.video_inputs(record["scene"], record["motion"])

    def video_inputs(self, scene: Scene, motion: Motion) -> dict[str, np.ndarray]:
        """A scene in motion as one row of a batch; raises as `SceneDataset.inputs`."""
        row = self.inputs(scene)
        del row["image"]
        T = self.config.frames
        row |= split_frames(self.config, render_video(scene, motion, self.image_shape[0], T))
        if self.tokenizer is not None:
            row["text"] = self.tokenizer.encode(
                scene.caption + motion.wording, self.config.text_length
            )
        return row | {"camera": motion.camera_path(T), "amplitude": motion.size()}


class SceneVideoSource(SceneSource):
    """The videos of a split: a record is a dict with `scene`, `motion` (not rendered yet), `name`
    and `captions` (one text).

    Raises:
      UvitError: if the world has no such split; IndexError beyond the end.
    """

    dataset_class = SceneVideoDataset
    camera_features = len(CAMERA_FIELDS)

    def __init__(self, config: DataConfig):
        super().__init__(
            dataclasses.replace(config, name="totems", frames=0, first_frames=0, last_frames=0)
        )

    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)
        scene, split = record["scene"], self._config.split
        motion = draw_motion("totems", split, int(index), len(scene.subjects))
        return {
            "scene": scene,
            "motion": motion,
            "name": f"totem_videos, {split}, number {index}",
            "captions": (scene.caption + motion.wording,),
            "facts": record["facts"],
        }

    def tokenizer(self) -> Tokenizer:
        """The words of all captions, those of images first."""
        phrases = [words for _, *both in MOVES.values() for words in both]
        words = " ".join(["the camera is static and turns", *phrases]).split()
        of_images = super().tokenizer()
        return Tokenizer(tuple(dict.fromkeys([*of_images.words, *words])), of_images.attributes)
