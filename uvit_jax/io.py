"""Files: arrays in [-1, 1] as PNG grids, JSON, writing whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path
from uvit_jax.remote import any_path, copy_file, gs_errors, is_gs

# The process's mask of permissions, which can only be read by setting it: once, before any threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float (…, H, W, C) in [-1, 1] → uint8, values outside clipped, NaN black."""
    finite = np.clip(np.nan_to_num(np.asarray(images, np.float32), nan=-1.0), -1, 1)
    return np.round((finite + 1) * 127.5).astype(np.uint8)


def grid(
    images: np.ndarray, *, columns: int = 0, captions: list[str] | None = None, cell: int = 96
) -> Image.Image:
    """One image of many.

    Args:
      images: float (B, H, W, C) in [-1, 1], C 1 or 3.
      columns: 0 makes the grid about square.
      captions: under each image, in up to three lines; what is longer ends in an ellipsis.
      cell: images smaller than this are enlarged by an integer factor, pixels left visible.
    """
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    if channels == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    columns = columns or int(np.ceil(count**0.5))
    rows = -(-count // columns)
    factor = max(1, cell // max(height, width))
    gap, line = 2, 12
    texts = [wrapped(text, width * factor) for text in captions or []]
    below = line * max(map(len, texts), default=0)
    step_x, step_y = width * factor + gap, height * factor + gap + below
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, array in enumerate(pixels):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        cell_image = Image.fromarray(array[..., :3])
        cell_image = cell_image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
        sheet.paste(cell_image, (x, y))
        for number, text in enumerate(texts[i] if texts else ()):
            draw.text((x, y + height * factor + number * line), text, fill="black")
    return sheet


def frames_as_images(samples: np.ndarray) -> np.ndarray:
    """Images as they are; of videos (B, T, H, W, C) the frames of each as one strip (B, H, T·W,
    C)."""
    if samples.ndim == 5:
        B, T, H, W, C = samples.shape
        samples = samples.transpose(0, 2, 1, 3, 4).reshape(B, H, T * W, C)
    return samples


def wrapped(text: str, width: int, most: int = 3) -> list[str]:
    """The text in lines of at most `width` pixels, between words where they fit."""
    length = ImageFont.load_default().getlength
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    kept = lines[:most]
    if len(lines) > most:
        kept[-1] += "…"
    for i, line in enumerate(kept):
        while length(line) > width and len(line) > 1:
            line = line.rstrip("…")[:-1] + "…"
        kept[i] = line
    return kept


def save_png(image: Image.Image, path: str | os.PathLike) -> None:
    """Writes a PNG that appears whole or not at all."""
    with atomic(path) as partial:
        image.save(partial, format="PNG")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text)


def read_json(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      remedy: ends the message of the error.

    Raises:
      UvitError: if it cannot be read, is no JSON, or another value than an object.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UvitError(f"{path} cannot be read ({error.strerror or error}){remedy}") from None
    except (ValueError, RecursionError) as error:  # no text, no JSON, or too many levels or digits
        raise UvitError(f"{path} is damaged ({error}){remedy}") from None
    if not isinstance(value, dict):
        raise UvitError(f"{path} is damaged (it is not a JSON object){remedy}")
    return value


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """The path of a temporary file, which replaces `path` at the end, or is removed on an error.

    What a link leads to is replaced, not the link. A device or a pipe, such as /dev/stdout, is
    yielded itself. A path of `gs://` is written when the file is complete.

    Raises:
      UvitError: on an OSError, such as a full disk; `path` is as before.
    """
    if is_gs(path):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / "file"
            yield partial
            with gs_errors(os.fspath(path)):
                copy_file(partial, any_path(path))
        return
    path = local_path(path)
    with named_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            yield path
            return
        path = path.resolve()
        partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with contextlib.suppress(OSError):  # some file systems have no permissions
                partial.chmod(0o666 & ~_UMASK)  # safetensors writes files for their owner alone
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The path of a new temporary folder, which is renamed to `path` at the end, or is removed on
    an error.

    Raises:
      UvitError: on an OSError, also of a file within, such as that of a full disk.
    """
    partial = path.with_name(f".{path.name}.writing.{os.getpid()}")
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.mkdir()
            yield partial
            partial.rename(path)
        except UvitError as error:
            if isinstance(error.__cause__, OSError):  # it names a file that is removed
                raise error.__cause__ from None
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def named_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises an OSError of the block, such as that of a full disk, as a UvitError with the path."""
    try:
        yield
    except OSError as error:
        # Libraries drop the number of the error, and quote its text.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        remedy = "make space" if full else "check the path and its folder"
        raise UvitError(
            f"{path} cannot be written ({error.strerror or error}); {remedy}, and run the same "
            "command again"
        ) from error
