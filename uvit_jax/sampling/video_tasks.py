"""Tasks of a video model: what is given, what is generated, and the clip that they make.

    config, given = task(model.layout, config, first=image)     # image → video
    samples = make_sampler(model, diffusion, config, …)(params, key, conditions | given)
    clip = joined_frames(given | samples)                       # (B, T, H, W, C)
    longer = extended(generate, clip, overlap=1, times=3)

A model of `uvit_jax.models.presets.video` has the noisy segments `first`, `video` and `last`.
"""

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from uvit_jax.data.video_frames import joined_frames
from uvit_jax.errors import UvitError
from uvit_jax.sampling.sampler import SampleConfig
from uvit_jax.tokens.layout import Layout

PARTS = ("first", "video", "last")


def is_clip(layout: Layout, samples: Container[str]) -> bool:
    """Whether a model's noisy segments are the parts of one clip, all of them among the samples
    and decoded."""
    names = {s.name for s in layout.noisy}
    return "video" in names and names <= set(PARTS) and all(n in samples for n in names)


def task(
    layout: Layout,
    config: SampleConfig,
    *,
    first: np.ndarray | None = None,
    last: np.ndarray | None = None,
) -> tuple[SampleConfig, dict[str, np.ndarray]]:
    """The config that generates what is not given, and the given frames as inputs.

    Args:
      first, last: float in [-1, 1]: an image (H, W, C), frames (t, H, W, C), or a batch of them
        (B, t, H, W, C).

    Raises:
      UvitError: if the model has no such segment, or frames of another shape.
    """
    shapes = {s.name: s.input_shape for s in layout.noisy}
    if "video" not in shapes:
        raise UvitError("frames were given, but the model has no segment 'video'")
    given = {}
    for name, frames in (("first", first), ("last", last)):
        if frames is None:
            continue
        if name not in shapes:
            raise UvitError(f"{name} frames were given, but the model has no segment {name!r}")
        frames = np.asarray(frames, np.float32)
        frames = frames[None] if frames.ndim == 3 else frames
        frames = frames[None] if frames.ndim == 4 else frames
        if frames.shape[1:] != shapes[name]:
            raise UvitError(
                f"{name} has shape {frames.shape[1:]}, and the model takes {shapes[name]}"
            )
        given[name] = frames
    generate = tuple(name for name in shapes if name not in given)
    return dataclasses.replace(config, generate=generate if given else ()), given


def clip_of(given: Mapping[str, np.ndarray], samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Given and generated frames as clips, (B, T, H, W, C); the given ones are as they were."""
    B = len(samples["video"])
    repeated = {
        name: np.broadcast_to(frames, (B, *frames.shape[1:])) for name, frames in given.items()
    }
    return joined_frames({**repeated, **samples})


def extended(
    generate: Callable[[np.ndarray, int], np.ndarray],
    clip: np.ndarray,
    *,
    overlap: int,
    times: int,
) -> np.ndarray:
    """A longer clip, by generating what follows its last frames again and again.

    Args:
      generate: (the last `overlap` frames (B, overlap, H, W, C), number of the window from 0) → a
        clip (B, T, H, W, C) that begins with them.
      clip: (B, T, H, W, C).

    Returns:
      (B, T + times · (T - overlap), H, W, C); the frames of `clip` are unchanged.

    Raises:
      UvitError: if the model cannot be given frames.
    """
    if overlap < 1:
        raise UvitError("a clip is extended by a model that has a segment 'first' to be given")
    parts = [clip]
    for number in range(times):
        parts.append(generate(parts[-1][:, -overlap:], number)[:, overlap:])
    return np.concatenate(parts, axis=1)


def path_input(
    layout: Layout, count: int, change: Mapping[str, float], order: tuple[str, ...]
) -> dict[str, Any]:
    """The input of the segment `camera` for a motion at constant speed.

    Args:
      change: from the first frame to the last, by feature; {} for a static camera.
      order: the features of a token, the first of which is 1 in all that is given.

    Raises:
      UvitError: if the model has no camera, another number of features, or no such feature.
    """
    segment = layout.by_name.get("camera")
    if segment is None or segment.kind != "camera":
        raise UvitError("a camera was given, but the model has no segment 'camera'")
    frames, features = segment.input_shape
    if features != len(order):
        raise UvitError(f"the model's camera has {features} features, not {', '.join(order)}")
    if unknown := sorted(set(change) - set(order[1:])):
        raise UvitError(f"camera {unknown[0]!r} is unknown; known: {', '.join(order[1:])}")
    total = np.array([change.get(name, 0.0) for name in order[1:]], np.float32)
    path = np.linspace(0, 1, frames, dtype=np.float32)[:, None] * total
    tokens = np.pad(path, ((0, 0), (1, 0)), constant_values=1.0)
    return {"camera": np.repeat(tokens[None], count, axis=0)}
