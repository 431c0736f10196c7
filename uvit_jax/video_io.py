"""Video files: MP4 and the like through PyAV, animated GIF and WebP through Pillow, frame folders.

info = probe(file)                          # VideoInfo: seconds, frames per second
frames = read_frames(file, [0.0, 0.5])      # the frames shown at these seconds
write_video(frames, "video.mp4", fps=8)     # or .gif, .webp
"""

import dataclasses
import fractions
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from uvit_jax import io
from uvit_jax.errors import UvitError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Read through PyAV."""
ANIMATION_SUFFIXES = (".gif", ".webp")
STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Videos of one frame; inside a folder of frames, its frames."""
FRAMES_SUFFIX = ".frames"
"""Of a folder whose images, in the order of their names, are the frames of one video."""
FOLDER_FPS = 24.0
"""The rate of a folder of frames, which does not say it."""
MAX_FRAME_PIXELS = 2**27


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file says of itself.

    Attributes:
      frames: how many it has at this rate. fps: frames per second, on average; of GIF and WebP
        those of the shortest frame.
      shape: (H, W) of its first frame.
    """

    frames: int
    fps: float
    shape: tuple[int, int]


def is_video(path: Path) -> bool:
    """Whether the suffix of a file, or of a folder of frames, is one that is read."""
    suffix = path.suffix.lower()
    return suffix == FRAMES_SUFFIX or suffix in (
        *VIDEO_SUFFIXES,
        *ANIMATION_SUFFIXES,
        *STILL_SUFFIXES,
    )


def probe(path: Path) -> VideoInfo:
    """The length and rate of a video, whose first frame is decoded.

    Raises:
      UvitError: if it cannot be read, saying why, without its name.
    """
    suffix = path.suffix.lower()
    if suffix == FRAMES_SUFFIX:
        frames, fps = len(_frame_files(path)), FOLDER_FPS
    elif suffix in VIDEO_SUFFIXES:
        frames, fps = _probe_av(path)
    else:
        with _opened(path) as image:
            durations = _durations(image)
        # Writers merge equal frames into longer ones: the shortest says the rate.
        shortest = min(durations)
        frames, fps = round(sum(durations) / shortest), 1000 / shortest
    _, _, first = next(iter(_decoded(path, 0.0)))
    return VideoInfo(frames=frames, fps=fps, shape=first.shape[:2])


def read_frames(path: Path, times: Sequence[float]) -> list[np.ndarray]:
    """The frames that a video shows at some times.

    Args:
      path: a file, or a folder of frames.
      times: in seconds from its beginning, ascending.

    Returns:
      uint8 (H, W, 3), one per time. Transparent pixels of GIF and WebP are white.

    Raises:
      UvitError: if it cannot be decoded, or ends before, naming it.
    """
    try:
        return list(_at_times(_decoded(path, times[0]), times))
    except UvitError as error:
        raise UvitError(f"the video {path} cannot be read: {error}; replace or remove it") from None


def write_video(frames: np.ndarray, path: str | os.PathLike, *, fps: float, cell: int = 0) -> None:
    """Writes a video that appears whole or not at all: .mp4 (H.264), .gif, or .webp (lossless).

    Args:
      frames: float (T, H, W, C) in [-1, 1], C 1 or 3.
      fps: frames per second.
      cell: smaller frames are enlarged by an integer factor, pixels left visible.

    Raises:
      UvitError: for another suffix, an odd side in an MP4, or a file that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".mp4", *ANIMATION_SUFFIXES):
        raise UvitError(f"{path}: videos are written as .mp4, .gif or .webp")
    if not 0 < fps <= 1000:
        raise UvitError(f"fps must lie in (0, 1000], got {fps}")
    pixels = io.to_uint8(frames)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    factor = max(1, cell // max(pixels.shape[1:3]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    with io.atomic(path) as partial:
        if suffix == ".mp4":
            _write_mp4(pixels, partial, fps)
            return
        first, *rest = [Image.fromarray(frame) for frame in pixels]
        options = dict(lossless=True) if suffix == ".webp" else {}
        first.save(
            partial,
            format=suffix[1:].upper(),
            save_all=True,
            append_images=rest,
            duration=max(1, round(1000 / fps)),
            loop=0,
            **options,
        )


def _av():
    try:
        import av
    except ImportError:
        raise UvitError(
            "MP4 and the like need PyAV; run `pip install av`, or use GIF, WebP or frames"
        ) from None
    return av


def _probe_av(path: Path) -> tuple[int, float]:
    """Frames, and frames per second."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UvitError("it has no video stream")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            frames = stream.frames
            if not frames:  # the header does not say
                frames = sum(p.pts is not None for p in container.demux(stream))
    except (OSError, ValueError) as error:
        if isinstance(error, UvitError):
            raise
        raise UvitError(_reason(error)) from None
    if not frames or not rate:
        raise UvitError("it has no frames, or does not say their rate")
    return frames, rate


def _decoded(path: Path, start: float) -> Iterator[tuple[float, float, np.ndarray]]:
    """(time, duration, frame) of the frames of a video, from some frame at or before `start`."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        yield from _decoded_av(path, start)
        return
    if suffix == FRAMES_SUFFIX:
        for number, file in enumerate(_frame_files(path)):
            if (number + 1) / FOLDER_FPS > start:
                with _opened(file) as image:
                    yield number / FOLDER_FPS, 1 / FOLDER_FPS, _rgb(image)
        return
    with _opened(path) as image:
        time = 0.0
        durations = _durations(image)
        try:
            for duration, frame in zip(durations, ImageSequence.Iterator(image), strict=False):
                yield time, duration / 1000, _rgb(frame)
                time += duration / 1000
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UvitError(_reason(error)) from None


def _decoded_av(path: Path, start: float) -> Iterator[tuple[float, float, np.ndarray]]:
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_FRAME_PIXELS:
                raise UvitError(f"its frames have more than {MAX_FRAME_PIXELS} pixels")
            base, first = float(stream.time_base), stream.start_time or 0
            duration = 1 / float(stream.average_rate or stream.guessed_rate)
            if start > 1:
                container.seek(first + int(start / base), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None:
                    yield (frame.pts - first) * base, duration, frame.to_ndarray(format="rgb24")
    except (OSError, ValueError) as error:
        if isinstance(error, UvitError):
            raise
        raise UvitError(_reason(error)) from None


def _at_times(
    decoded: Iterable[tuple[float, float, np.ndarray]], times: Sequence[float]
) -> Iterator[np.ndarray]:
    """The last frame that begins at or before each time, up to a quarter of its duration."""
    wanted, shown, ends = list(times), None, 0.0
    for begins, duration, frame in decoded:
        while wanted and shown is not None and wanted[0] + duration / 4 < begins:
            wanted.pop(0)
            yield shown
        if not wanted:
            return
        shown, ends = frame, begins + duration
    while wanted and shown is not None and wanted[0] < ends + 1e-6:
        wanted.pop(0)
        yield shown
    if wanted:
        raise UvitError(f"it ends after {ends:.3g} s, before {wanted[0]:.3g} s")


def _frame_files(folder: Path) -> list[Path]:
    suffixes = (*STILL_SUFFIXES, ".webp")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes)
    if not files:
        raise UvitError("the folder of frames has no images")
    return files


def _opened(path: Path) -> Image.Image:
    """A GIF, WebP, PNG or JPEG whose header was read."""
    try:
        image = Image.open(path, formats=("GIF", "WEBP", "PNG", "JPEG"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UvitError(_reason(error)) from None
    if image.width * image.height > MAX_FRAME_PIXELS:
        raise UvitError(f"its frames have more than {MAX_FRAME_PIXELS} pixels")
    return image


def _durations(image: Image.Image) -> list[float]:
    """Of each frame, in milliseconds; 100 where the file says 0, as browsers do."""
    durations = []
    try:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # WebP says the duration only then
            durations.append(image.info.get("duration") or 100)
        image.seek(0)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UvitError(_reason(error)) from None
    return durations


def _rgb(image: Image.Image) -> np.ndarray:
    try:
        rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise UvitError(_reason(error)) from None
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def _write_mp4(pixels: np.ndarray, path: Path, fps: float) -> None:
    _, height, width, _ = pixels.shape
    if height % 2 or width % 2:
        raise UvitError(f"an MP4 needs even sides, not {height}×{width}; write .webp or .gif")
    av = _av()
    with av.open(str(path), "w", format="mp4") as container:
        rate = fractions.Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
