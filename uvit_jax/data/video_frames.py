"""A clip as the noisy segments of a video model: given first frames, the video, given last ones."""

from collections.abc import Mapping

import numpy as np

from uvit_jax.data.data_config import DataConfig


def frame_slices(config: DataConfig) -> dict[str, slice]:
    """Which of the `config.frames` frames each of the inputs `first`, `video` and `last` has; an
    input without frames is left out."""
    first, last, frames = config.first_frames, config.last_frames, config.frames
    slices = {
        "first": slice(0, first),
        "video": slice(first, frames - last),
        "last": slice(frames - last, frames),
    }
    return {name: part for name, part in slices.items() if part.stop > part.start}


def split_frames(config: DataConfig, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Frames (T, …) as the inputs of `frame_slices`."""
    return {name: frames[part] for name, part in frame_slices(config).items()}


def joined_frames(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse for batches: `first`, `video` and `last`, those that there are, (B, t, H, W, C)
    each, as one video (B, T, H, W, C)."""
    return np.concatenate(
        [np.asarray(samples[n]) for n in ("first", "video", "last") if n in samples], axis=1
    )


def frame_shapes(
    config: DataConfig, shape: tuple[int, int, int]
) -> dict[str, tuple[int, int, int, int]]:
    """The shapes (t, H, W, C) of the inputs of `frame_slices`, for frames of a shape (H, W, C)."""
    return {n: (s.stop - s.start, *shape) for n, s in frame_slices(config).items()}
