"""Clips of video files as a data source: `data.name="clips"`, a folder or a manifest of them.

    config.data = dict(name="clips", path="videos", frames=16, fps=8, image_size=64, text=True)

A folder is read with its sub-folders; the caption of `a.mp4` is the text of `a.txt` or `a.caption`
beside it, in any case. A manifest is a `.jsonl` file, an object a line with the keys `file`
(relative to the manifest), `caption` (a text, or a list of them), and optionally `start` and `end`
in seconds; or a `.csv` file with these columns. Which files are videos says `uvit_jax.video_io`; an
image is a video of one frame, which `stills` mixes with longer ones. Videos that cannot be read or
are too short are skipped: they are logged, with counts.

A batch holds `video` float32 (B, T, H, W, C) in [-1, 1], `first` and `last` as in
`scene_video_source`, and `text`. Training takes T frames from a random position, decoding from the
last key frame before it.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uvit_jax import video_io
from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import DataConfig, parse_colour
from uvit_jax.data.dataset import Dataset, SourceSubset
from uvit_jax.data.sources.folder import (
    LISTED,
    TEXT_SUFFIXES,
    captions_by_stem,
    is_system_folder,
    read_caption,
    stem,
)
from uvit_jax.data.sources.manifest import read_manifest
from uvit_jax.data.sources.source import Source
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.video_frames import frame_shapes, split_frames
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path

logger = logging.getLogger(__name__)


class VideoClip(NamedTuple):
    """A part of a video file.

    Attributes:
      path: of the file. captions: its texts.
      start, end: in seconds. frame: seconds between the frames that are taken.
      step: seconds between its own frames.
      shape: (H, W) of its frames.
      still: whether it is an image.
    """

    path: Path
    captions: tuple[str, ...]
    start: float = 0.0
    end: float = float("inf")
    frame: float = 0.0
    step: float = 0.0
    shape: tuple[int, int] = (0, 0)
    still: bool = False


class ClipDataset(Dataset):
    """Clips, opened.

    Raises:
      UvitError: without `config.image_size` or `sizes`.
    """

    def __init__(self, config: DataConfig, source: "ClipSource", tokenizer: Tokenizer | None):
        if not config.target_sizes:
            raise UvitError("clips need image_size, the number of pixels of a frame's sides")
        self.image_shape = (*config.target_sizes[0], config.channels)
        self._background = parse_colour(config.background)
        self.segment_shapes = frame_shapes(config, self.image_shape)
        super().__init__(config, source, tokenizer)
        if config.stills:
            count = len(self.sizes)
            self.sizes += tuple((1, *size) for size in self.sizes)
            sizes = np.zeros(len(self), int) if self.buckets is None else self.buckets
            self.buckets = sizes + count * np.array([clip.still for clip in source.clips])

    def shapes_at(self, size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        shape = (*size, self.config.channels)
        return {"first": shape} if len(size) == 3 else frame_shapes(self.config, shape)

    def one_size(self, size: tuple[int, ...]) -> Dataset:
        if not self.config.stills:
            return super().one_size(size)
        rows = np.flatnonzero(self.buckets == self.sizes.index(size))
        source = SourceSubset(self.source, rows if len(rows) else np.arange(len(self)))
        one = {"sizes": (size[-2:],), "image_size": 0, "stills": False}
        if len(size) == 2:
            return ClipDataset(dataclasses.replace(self.config, **one), source, self.tokenizer)
        one |= {"frames": 1, "first_frames": 0}
        return StillDataset(dataclasses.replace(self.config, **one), source, self.tokenizer)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """The first `config.frames` frames of a record's clip, and its first caption."""
        return self._row(record, 0)

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The clips of these indices; the bits of a row choose where its frames begin, one of
        several captions, and (if `config.flip`) whether it is mirrored."""
        bits = [0] * len(indices) if bits is None else bits
        rows = [self._row(self.source[i], b) for i, b in zip(indices, bits, strict=True)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, record: dict, bits: int) -> dict[str, np.ndarray]:
        images = self.images(record, (bits >> 32) % 2**31)
        frames = np.stack([self._pixels(image, record["name"]) for image in images])
        if self.config.flip and bits >> 63:
            frames = frames[:, :, ::-1]
        frames = image_decoding.to_float(frames)
        still = "clip" in record and record["clip"].still
        row = {"first": frames} if still else split_frames(self.config, frames)
        if self.tokenizer is not None:
            captions = record["captions"]
            row["text"] = self._encode_caption(captions[bits % 2**32 % len(captions)])
        return row

    def images(self, record: dict, number: int) -> Sequence[np.ndarray]:
        """The stored frames of a record, `config.frames` of them, or the one of an image; `number`
        chooses where they begin, 0 at the start."""
        clip = record["clip"]
        T = 1 if clip.still else self.config.frames
        slack = max(0.0, clip.end - clip.start - clip.step - (T - 1) * clip.frame)
        begins = clip.start + clip.step * (number % (int(slack / clip.step + 1e-6) + 1))
        return video_io.read_frames(clip.path, [begins + clip.frame * t for t in range(T)])

    def _pixels(self, image: np.ndarray, name: str) -> np.ndarray:
        return image_decoding.decode(
            image,
            name,
            sizes=self.config.target_sizes,
            channels=self.config.channels,
            background=self._background,
        )


class StillDataset(ClipDataset):
    """The images among clips: their input is `first`, a video of one frame."""

    def __init__(self, config: DataConfig, source: Source, tokenizer: Tokenizer | None):
        super().__init__(config, source, tokenizer)
        self.segment_shapes = {"first": (1, *self.image_shape)}


class ClipSource(Source):
    """The readable and long enough clips below `config.path`, or of a manifest.

    Attributes:
      clips: them.
      skipped: the others, (file, reason).

    Raises:
      UvitError: if the path or a file of the manifest does not exist, no clip is usable, or a
        caption is missing and text is on.
    """

    dataset_class = ClipDataset

    def __init__(self, config: DataConfig):
        root = local_path(config.path)
        found = _from_manifest(root) if root.is_file() else _folder(root, config.text)
        if config.text and (bare := [clip.path for clip in found if not clip.captions]):
            raise UvitError(
                f"{bare[0]} has no caption ({len(bare)} of {len(found)} clips), and text is on; "
                "write a .txt or .caption beside it, or set text=False"
            )
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda clip: _usable(clip, config), found))
        self.clips = [one for one in results if isinstance(one, VideoClip)]
        self.skipped = [
            (clip.path, one)
            for clip, one in zip(found, results, strict=True)
            if not isinstance(one, VideoClip)
        ]
        for path, reason in self.skipped[:LISTED]:
            logger.warning("skipped %s: %s", path, reason)
        logger.info("%s: %d clips, %d skipped", root, len(self.clips), len(self.skipped))
        if all(clip.still for clip in self.clips):
            first = f"; {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise UvitError(
                f"{root} has no clip of {config.frames} frames that can be read, of {len(found)} "
                f"videos{first}"
            )
        if len(config.sizes) > 1:
            self.shapes = [clip.shape for clip in self.clips]
        if config.text:
            self.captions = [caption for clip in self.clips for caption in clip.captions]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        clip = self.clips[index]
        return {"clip": clip, "name": str(clip.path), "captions": clip.captions}


def _usable(clip: VideoClip, config: DataConfig) -> VideoClip | str:
    """The clip with its length and rates, or why it cannot be used."""
    try:
        info = video_io.probe(clip.path)
    except (UvitError, OSError) as error:
        return f"it cannot be read ({error})"
    step = 1 / info.fps
    frame = 1 / config.fps if config.fps else step
    end = min(clip.end, info.frames * step)
    if config.stills and info.frames == 1:
        return clip._replace(end=end, step=step, frame=frame, shape=info.shape, still=True)
    if end - clip.start + 1e-6 < step + (config.frames - 1) * frame:
        return (
            f"it has {end - clip.start:.3g} s at {info.fps:.3g} frames per second, too short for "
            f"frames={config.frames}"
        )
    return clip._replace(end=end, step=step, frame=frame, shape=info.shape)


def _folder(root: Path, texts: bool) -> list[VideoClip]:
    if not root.is_dir():
        raise UvitError(f"{root} does not exist; give a folder of videos, or a manifest")
    found, captions = [], []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(f for f in subfolders if not is_system_folder(f))
        frames = [f for f in subfolders if Path(f).suffix == video_io.FRAMES_SUFFIX]
        subfolders[:] = [f for f in subfolders if f not in frames]
        found += [
            Path(folder) / name
            for name in (*files, *frames)
            if not name.startswith(".") and video_io.is_video(Path(name))
        ]
        captions += [Path(folder) / f for f in files if Path(f).suffix.lower() in TEXT_SUFFIXES]
    if not found:
        raise UvitError(
            f"the folder {root} contains no videos ({', '.join(video_io.VIDEO_SUFFIXES)}, …)"
        )
    by_stem, _ = captions_by_stem(captions if texts else [])
    beside = {path: by_stem.get(stem(path)) for path in sorted(found)}
    return [VideoClip(p, (read_caption(t).strip(),) if t else ()) for p, t in beside.items()]


def _from_manifest(file: Path) -> list[VideoClip]:
    if file.suffix.lower() not in (".jsonl", ".csv"):
        raise UvitError(f"{file} is no manifest; it must end in .jsonl or .csv, or be a folder")
    return read_manifest(file, _from_row, remedy="give a folder of videos, or a manifest")


def _from_row(row: dict[str, Any], folder: Path, where: str) -> VideoClip:
    del where
    if not isinstance(row.get("file"), str) or not row["file"]:
        raise UvitError("it names no video; give it the key 'file'")
    path = folder / row["file"]
    if not path.exists():
        raise UvitError(f"{path} does not exist; correct or remove the row")
    captions = row.get("caption") or ()
    captions = (captions,) if isinstance(captions, str) else tuple(captions)
    start, end = (_seconds(row, key) for key in ("start", "end"))
    clip = VideoClip(path, captions, start or 0.0, float("inf") if end is None else end)
    if not 0 <= clip.start < clip.end or not all(isinstance(c, str) for c in captions):
        raise UvitError("start must lie before end, and captions be texts")
    return clip


def _seconds(row: dict, key: str) -> float | None:
    value = row.get(key)
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UvitError(f"{key}={value!r} is not a number of seconds") from None
