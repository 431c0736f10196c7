"""Pictures as files: arrays in [-1, 1] to PNG grids."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float (…, H, W, C) in [-1, 1] → uint8, values outside clipped, NaN black."""
    finite = np.clip(np.nan_to_num(np.asarray(images, np.float32), nan=-1.0), -1, 1)
    return np.round((finite + 1) * 127.5).astype(np.uint8)


def grid(
    images: np.ndarray, *, columns: int = 0, captions: list[str] | None = None, cell: int = 96
) -> Image.Image:
    """One picture of many.

    Args:
      images: float (B, H, W, C) in [-1, 1], C 1 or 3.
      columns: 0 makes the grid about square.
      captions: a line under each picture.
      cell: pictures smaller than this are enlarged by a whole factor, pixels left visible.
    """
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    if channels == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    columns = columns or int(np.ceil(count**0.5))
    rows = -(-count // columns)
    factor = max(1, cell // max(height, width))
    gap, line = 2, 12 if captions and any(captions) else 0
    step_x, step_y = width * factor + gap, height * factor + gap + line
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, array in enumerate(pixels):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        picture = Image.fromarray(array[..., :3])
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        if line:
            text = captions[i]
            while text and draw.textlength(text) > step_x - gap:
                text = text[:-1]
            draw.text((x, y + height * factor), text, fill="black")
    return sheet


def save_png(picture: Image.Image, path: str | os.PathLike) -> None:
    """Writes a PNG that appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, format="PNG")
    partial.replace(path)
