"""Flags of `experiments.sample` for models of videos: tasks, camera, amplitude, video files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvit_jax.errors import UvitError, nearest

if TYPE_CHECKING:
    import numpy as np

    from uvit_jax.models.model import Model
    from uvit_jax.sampling.decoding import Decoder
    from uvit_jax.sampling.sampler import SampleConfig
    from uvit_jax.tokens.layout import Layout

CAMERA = {"pan": "x", "tilt": "y", "zoom": "zoom", "roll": "roll"}
"""The names of --camera, and their features (`scene_motion.CAMERA_FIELDS`)."""
AMPLITUDE = {"small": "S", "medium": "M", "large": "L"}
FORMATS = ("webp", "gif", "mp4")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group("videos", "for models of configs/video.py")
    group.add_argument("--first_frame", metavar="FILE", help="an image that the video begins with")
    group.add_argument("--last_frame", metavar="FILE", help="an image that the video ends with")
    group.add_argument(
        "--extend",
        metavar="N",
        type=int,
        default=0,
        help="continue each clip N times, from its last frames",
    )
    group.add_argument(
        "--frames",
        type=int,
        help="of a clip, or its latent frames; positions are interpolated from the trained length",
    )
    group.add_argument(
        "--camera",
        metavar="MOVES",
        help="from the first frame to the last: pan and tilt in half image sides, zoom as a "
        "factor, roll in degrees, such as 'pan=0.3,roll=6', or 'static'; without it, any",
    )
    group.add_argument(
        "--amplitude", choices=("auto", *AMPLITUDE), default="auto", help="of the motion"
    )
    group.add_argument("--fps", type=float, default=8.0, help="frames per second of the video file")
    group.add_argument(
        "--video", choices=FORMATS, default="webp", help="the format of the video file"
    )


def check(args: argparse.Namespace, layout: Layout) -> None:
    """Raises UvitError if a flag of videos is given for a model of images, or out of range."""
    given = [
        f for f in ("first_frame", "last_frame", "extend", "frames", "camera") if vars(args)[f]
    ]
    if args.amplitude != "auto":
        given.append("amplitude")
    if given and "video" not in layout.by_name:
        raise UvitError(f"--{given[0]} is for models of videos, which have a segment 'video'")
    if args.extend < 0 or (args.extend and args.last_frame):
        raise UvitError("--extend must be at least 0, and cannot be used with --last_frame")
    if not 0 < args.fps <= 1000:
        raise UvitError(f"--fps must lie in (0, 1000], got {args.fps}")


def resized(args: argparse.Namespace, model: Model) -> Model:
    """The model for clips of --frames."""
    if not args.frames:
        return model
    layout = model.layout
    shapes = {s.name: s.shape for s in layout.noisy_images}
    others = sum(shape[0] for name, shape in shapes.items() if name != "video")
    if args.frames <= others:
        raise UvitError(f"--frames={args.frames} must be more than the {others} that can be given")
    new = {"video": (args.frames - others, *shapes["video"][1:])}
    if "camera" in layout.by_name:
        new["camera"] = (args.frames, layout.by_name["camera"].shape[-1])
    return model.resized(new)


def task(
    args: argparse.Namespace, layout: Layout, config: SampleConfig, decode: Decoder | None = None
) -> tuple[SampleConfig, dict[str, Any]]:
    """The config that generates what is not given, and the given frames as inputs.

    Args:
      decode: of a model of latents, whose autoencoder also encodes frames.
    """
    if not (args.first_frame or args.last_frame):
        return config, {}
    import numpy as np

    from uvit_jax.sampling import video_tasks

    frames = {}
    for name, file in (("first", args.first_frame), ("last", args.last_frame)):
        if file and name not in layout.by_name:
            raise UvitError(f"--{name}_frame: the model has no segment {name!r}")
        frames[name] = _image(layout, name, file, decode) if file else None
    config, given = video_tasks.task(layout, config, **frames)
    count = config.count
    return config, {name: np.repeat(value, count, axis=0) for name, value in given.items()}


def _image(layout: Layout, name: str, file: str, decode: Decoder | None) -> np.ndarray:
    from uvit_jax.data import image_decoding
    from uvit_jax.paths import local_path

    segment = layout.by_name[name]
    frames, height, width, channels = segment.shape
    if decode is not None and name == "last":
        raise UvitError("--last_frame: the latents of a last frame depend on those before it")
    if (segment.is_latent and decode is None) or frames != 1:
        raise UvitError(
            f"--{name}_frame takes one given frame (of latents, with --autoencoder=FILE); segment "
            f"{name!r} is {segment.shape}: call uvit_jax.sampling.video_tasks from Python"
        )
    if decode is not None:
        autoencoder = decode.autoencoder.config
        height, width = height * autoencoder.factor, width * autoencoder.factor
        channels = autoencoder.image_channels
    pixels = image_decoding.decode(
        image_decoding.read_file(local_path(file)),
        file,
        sizes=((height, width),),
        channels=channels,
        background=(255, 255, 255),
    )
    image = image_decoding.to_float(pixels)
    return image if decode is None else decode.encode(image[None, None])[0]


def conditions(args: argparse.Namespace, layout: Layout, count: int) -> dict[str, Any]:
    """The inputs `camera` and `amplitude` of a model that has them; their null without a flag."""
    import numpy as np

    from uvit_jax.data.sources.worlds.scene_motion import CAMERA_FIELDS, LIMITS, Motion
    from uvit_jax.sampling import video_tasks

    found = {
        s.name: layout.null(s.name, count)
        for s in layout.conditions
        if s.kind in ("camera", "scalars")
    }
    if args.camera:
        change = _camera(args.camera)
        for key, value in change.items():
            if abs(value) > LIMITS[key]:
                raise UvitError(
                    f"--camera={args.camera}: {key} is outside of the trained range, "
                    f"±{LIMITS[key]:.4g}"
                )
        found |= video_tasks.path_input(layout, count, change, CAMERA_FIELDS)
    if args.amplitude != "auto":
        if "amplitude" not in found:
            raise UvitError("--amplitude: the model has no segment 'amplitude'")
        size = Motion(amplitude=AMPLITUDE[args.amplitude]).size()
        found["amplitude"] = np.repeat(size[None], count, axis=0)
    return found


def _camera(text: str) -> dict[str, float]:
    """The changes that --camera asks for, by feature; zoom as a logarithm, roll in radians."""
    import math

    if text == "static":
        return {}
    change = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in CAMERA:
            raise UvitError(f"--camera={text}: {name!r} is unknown{nearest(name, CAMERA)}")
        try:
            value = float(number)
            if not math.isfinite(value):
                raise ValueError
            value = {"zoom": math.log, "roll": math.radians}.get(name, float)(value)
        except ValueError:
            raise UvitError(
                f"--camera={text}: {part!r} must be NAME=NUMBER, such as roll=6"
            ) from None
        change[CAMERA[name]] = value
    return change


def clips(
    args: argparse.Namespace,
    layout: Layout,
    config: SampleConfig,
    samples: Mapping[str, Any],
    given: Mapping[str, Any],
    sample: Callable[[SampleConfig, Mapping[str, Any], int], Mapping[str, Any]],
    decode: Decoder | None = None,
) -> dict[str, Any]:
    """The samples with the parts of a clip joined as `video`, and extended by --extend.

    Args:
      sample: (config, given frames, seed) → samples.
      decode: of a model of latents; then `video` is decoded, and the latents of the first window
        are `video_latents`. It is continued from its last frames, encoded as the start of a clip.
    """
    from uvit_jax.sampling import video_tasks

    if not video_tasks.is_clip(layout, {**given, **samples}):
        return dict(samples)
    others = {n: value for n, value in samples.items() if n not in video_tasks.PARTS}
    latents = video_tasks.clip_of(given, samples)
    video = latents if decode is None else decode(latents)
    if args.extend:
        first = layout.by_name.get("first")

        def generate(frames: np.ndarray, number: int) -> np.ndarray:
            start = frames if decode is None else decode.encode(frames)
            changed, start = video_tasks.task(layout, config, first=start)
            clip = video_tasks.clip_of(start, sample(changed, start, args.seed + 1 + number))
            return clip if decode is None else decode(clip)

        overlap = first.shape[0] if first is not None else 0
        if decode is not None and overlap:
            overlap = 1 + (overlap - 1) * decode.autoencoder.config.frame_factor
        video = video_tasks.extended(generate, video, overlap=overlap, times=args.extend)
    return others | {"video": video} | ({} if decode is None else {"video_latents": latents})


def write(args: argparse.Namespace, out: Path, samples: Mapping[str, Any]) -> str:
    """Writes all clips side by side into one video file, and returns its path; "" for images."""
    import numpy as np

    from uvit_jax import io, video_io

    video = samples.get("video")
    if video is None or video.ndim != 5 or video.shape[-1] not in (1, 3):
        return ""
    sheets = [
        np.asarray(io.grid(video[:, t], cell=128), np.float32) / 127.5 - 1
        for t in range(video.shape[1])
    ]
    frames = np.stack(sheets)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    path = out.with_suffix(f".{args.video}")
    video_io.write_video(frames, path, fps=args.fps)
    print(path)
    return str(path)
