"""Draws a small data set of own subjects: six toys in ten scenes, as PNG files with captions.

    python -m tools.draw_toys --out=toys

`toys/train/NAME/*.png` has 24 images of each toy in eight scenes, with captions beside them;
`toys/test/NAME/*.png` four in two other scenes. docs/data.md trains on it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from uvit_jax.errors import UvitError

SIZE, FINE = 128, 4
TRAIN = ("beach", "meadow", "snow", "street", "night", "desk", "desert", "water")
TEST = ("hill", "carpet")
SHAPES = {"train": (TRAIN, 3), "test": (TEST, 2)}
"""Split → its scenes, and the images of each toy in each of them."""

# Boxes and polygons in a toy's coordinates, x to the right and y down, both in [-1, 1].
Part = tuple[str, str, tuple[float, ...]]
TOYS: dict[str, tuple[Part, ...]] = {
    "robot": (
        ("box", "#8a94a6", (-0.5, -0.25, 0.5, 0.6)),
        ("box", "#b9c2d0", (-0.35, -0.85, 0.35, -0.3)),
        ("oval", "#e03131", (-0.25, -0.7, -0.05, -0.5)),
        ("oval", "#e03131", (0.05, -0.7, 0.25, -0.5)),
        ("box", "#ffd43b", (-0.25, 0.0, 0.25, 0.3)),
        ("box", "#495057", (-0.4, 0.6, -0.1, 0.95)),
        ("box", "#495057", (0.1, 0.6, 0.4, 0.95)),
    ),
    "duck": (
        ("oval", "#fcc419", (-0.85, -0.1, 0.6, 0.85)),
        ("oval", "#fcc419", (0.05, -0.8, 0.75, -0.05)),
        ("polygon", "#f76707", (0.65, -0.5, 1.0, -0.35, 0.65, -0.25)),
        ("oval", "#212529", (0.4, -0.6, 0.55, -0.45)),
        ("oval", "#f59f00", (-0.5, 0.1, 0.2, 0.6)),
    ),
    "rocket": (
        ("polygon", "#e03131", (-0.75, 0.85, -0.3, 0.1, 0.3, 0.1, 0.75, 0.85)),
        ("box", "#f1f3f5", (-0.3, -0.45, 0.3, 0.75)),
        ("polygon", "#1971c2", (-0.3, -0.45, 0.0, -0.98, 0.3, -0.45)),
        ("oval", "#1971c2", (-0.17, -0.25, 0.17, 0.1)),
        ("box", "#f76707", (-0.2, 0.75, 0.2, 0.98)),
    ),
    "house": (
        ("box", "#ffe3e3", (-0.7, -0.15, 0.7, 0.9)),
        ("polygon", "#9c36b5", (-0.9, -0.15, 0.0, -0.9, 0.9, -0.15)),
        ("box", "#2f9e44", (-0.15, 0.3, 0.25, 0.9)),
        ("box", "#15aabf", (-0.6, 0.05, -0.3, 0.35)),
        ("box", "#15aabf", (0.35, 0.05, 0.6, 0.35)),
    ),
    "cactus": (
        ("box", "#2b8a3e", (-0.2, -0.85, 0.2, 0.5)),
        ("box", "#2b8a3e", (-0.75, -0.3, -0.2, -0.05)),
        ("box", "#2b8a3e", (-0.75, -0.6, -0.5, -0.05)),
        ("box", "#2b8a3e", (0.2, -0.05, 0.7, 0.2)),
        ("box", "#2b8a3e", (0.45, -0.45, 0.7, 0.2)),
        ("polygon", "#d9480f", (-0.45, 0.45, 0.45, 0.45, 0.3, 0.95, -0.3, 0.95)),
        ("oval", "#f06595", (-0.17, -0.98, 0.17, -0.7)),
    ),
    "car": (
        ("box", "#1864ab", (-0.95, -0.05, 0.95, 0.5)),
        ("polygon", "#4dabf7", (-0.6, -0.05, -0.35, -0.6, 0.35, -0.6, 0.65, -0.05)),
        ("oval", "#212529", (-0.75, 0.3, -0.25, 0.8)),
        ("oval", "#212529", (0.25, 0.3, 0.75, 0.8)),
        ("oval", "#dee2e6", (-0.6, 0.45, -0.4, 0.65)),
        ("oval", "#dee2e6", (0.4, 0.45, 0.6, 0.65)),
        ("box", "#ffd43b", (0.75, 0.05, 0.95, 0.2)),
    ),
}
# Scene → (caption after the name, colour above the horizon, colour below, pattern below).
SCENES = {
    "beach": ("on a beach", "#a5d8ff", "#ffec99", "dots"),
    "meadow": ("in a meadow", "#d0ebff", "#8ce99a", "dots"),
    "snow": ("in the snow", "#ced4da", "#f8f9fa", "none"),
    "street": ("on a street", "#ffe8cc", "#868e96", "lines"),
    "night": ("at night", "#1b1f3b", "#343a40", "none"),
    "desk": ("on a desk", "#fff4e6", "#a0522d", "lines"),
    "desert": ("in the desert", "#ffc9a0", "#e8a35c", "lines"),
    "water": ("under water", "#1c7ed6", "#0b7285", "lines"),
    "hill": ("on a hill", "#e5dbff", "#66a80f", "lines"),
    "carpet": ("on a carpet", "#f3f0ff", "#c2255c", "dots"),
}


def draw(toy: str, scene: str, seed: int) -> Image.Image:
    """An image of a toy in a scene, with a random position, size, tilt and side."""
    rng = np.random.default_rng(seed)
    image = _scene(scene, rng)
    scale = rng.uniform(0.28, 0.38) * SIZE * FINE
    x, y = rng.uniform(0.36, 0.64) * SIZE * FINE, rng.uniform(0.52, 0.62) * SIZE * FINE
    angle, side = np.radians(rng.uniform(-12, 12)), rng.choice((-1, 1))
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def placed(points: np.ndarray) -> list[tuple[float, ...]]:
        return [tuple(p) for p in (points * (side, 1)) @ rotation.T + (x, y)]

    pen = ImageDraw.Draw(image)
    for shape, colour, numbers in TOYS[toy]:
        points = np.array(numbers).reshape(-1, 2)
        pen.polygon(placed(OUTLINES[shape](points)), fill=colour, outline="#343a40", width=FINE)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _box(points: np.ndarray) -> np.ndarray:
    (x0, y0), (x1, y1) = points
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _oval(points: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return points.mean(axis=0) + np.ptp(points, axis=0) / 2 * np.stack([np.cos(t), np.sin(t)], 1)


OUTLINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "box": _box,
    "oval": _oval,
    "polygon": lambda points: points,
}


def _scene(name: str, rng: np.random.Generator) -> Image.Image:
    side = SIZE * FINE
    _, above, below, pattern = SCENES[name]
    image = Image.new("RGB", (side, side), above)
    pen, horizon = ImageDraw.Draw(image), int(side * rng.uniform(0.5, 0.65))
    pen.rectangle((0, horizon, side, side), fill=below)
    for _ in range(14):
        u, v = rng.uniform(0, side), rng.uniform(horizon, side)
        if pattern == "dots":
            pen.ellipse((u, v, u + 3 * FINE, v + 2 * FINE), fill=above)
        elif pattern == "lines":
            pen.line((u, v, u + 12 * FINE, v), fill=above, width=FINE)
    return image


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("toys"), help="a new folder")
    out = parser.parse_args().out
    if out.exists():
        raise UvitError(f"{out} exists; remove it or choose another --out")
    for split, (scenes, each) in SHAPES.items():
        for number, toy in enumerate(TOYS):
            folder = out / split / toy
            folder.mkdir(parents=True)
            for place, scene in enumerate(scenes):
                for i in range(each):
                    seed = int(f"{len(split)}{number}{place}{i}")
                    draw(toy, scene, seed).save(folder / f"{scene}_{i}.png")
                    (folder / f"{scene}_{i}.txt").write_text(f"@1 {SCENES[scene][0]}")
    print(f"{out}: {len(TOYS)} toys, {len(list(out.rglob('*.png')))} images")


if __name__ == "__main__":
    main()
