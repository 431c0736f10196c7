"""Renders example scenes of the two worlds: docs/images/totems.png and emoji_scenes.png.

    python tools/draw_worlds.py

Each row is a scene: the target, then up to three references of each of its subjects.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from uvit_jax.data.sources.worlds import random_scenes, scenes
from uvit_jax.data.sources.worlds.worlds import WORLDS

SIZE, ROWS, GAP = 64, 6, 4
FOLDER = Path(__file__).parent.parent / "docs" / "images"


def sheet(world: str) -> np.ndarray:
    """uint8 (H, W, 3): two columns of scenes, absent references white."""
    columns = []
    for first in (0, ROWS):
        rows = []
        for index in range(first, first + ROWS):
            scene = random_scenes.draw(world, "test", index, subjects=2, views=2)
            example = scenes.render(scene, SIZE, subjects=2, views=2)
            references = example.references.copy()
            references[~example.present] = 1
            tiles = [example.image, *references.reshape(-1, SIZE, SIZE, 3)]
            tiles = [np.pad(t, ((0, GAP), (0, GAP), (0, 0)), constant_values=1) for t in tiles]
            rows.append(np.concatenate(tiles, axis=1))
        columns.append(np.concatenate(rows))
    image = np.concatenate(columns, axis=1)
    return np.round((image + 1) * 127.5).astype(np.uint8)


if __name__ == "__main__":
    for world in WORLDS:
        Image.fromarray(sheet(world)).save(FOLDER / f"{world}.png", optimize=True)
