"""Draws docs/images/layouts.png: the token sequences of five models, from their `Layout`s.

    python tools/draw_layouts.py

Every square is a token; long segments are abbreviated and labelled with their number of tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets import dit, unified, uvit
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.segment import Segment

OUT = Path(__file__).parents[1] / "docs/images/layouts.png"
LATENTS = (32, 32, 4)
COLOURS = {
    "time": "#e9b44c",
    "label": "#d1495b",
    "text": "#7b9e5f",
    "features": "#7b9e5f",
    "patches": "#4a7fb5",
}
MAX_SQUARES = 6  # of a segment


def configs() -> dict[str, dict[str, Any]]:
    """Model configs by title: presets, and two that are written out."""
    backbone = dict(width=512, depth=12, num_heads=8)
    patches = dict(kind="patches", shape=LATENTS, patch_size=2, final_conv="none")
    noisy = dict(role="noisy")
    unidiffuser = dict(
        sequence=("t_image", "t_text", "text", "clip_image", "image"),
        segments=dict(
            t_image=dict(kind="time", time="image"),
            t_text=dict(kind="time", time="text"),
            text=dict(kind="features", shape=(77, 64), **noisy),
            clip_image=dict(kind="features", shape=(1, 512), time="image", **noisy),
            image=patches | noisy,
        ),
        backbone=backbone,
    )
    frames = {f"frame_{i}": patches | noisy | dict(time="video") for i in range(2, 5)}
    video = dict(
        sequence=("text", "time", "frame_1", *frames),
        segments=dict(
            text=dict(kind="features", shape=(77, 768)),
            time=dict(kind="time", time="video"),
            frame_1=patches | dict(role="clean"),
            **frames,
        ),
        backbone=backbone,
    )
    options = dict(patch_size=2)
    caption = dict(shape=(24,), vocab_size=2048)
    references = dict(subjects=2, views=2, text=caption, **options)
    return {
        "U-ViT: everything is a token": uvit.preset("L", LATENTS, num_classes=1000, **options),
        "DiT: time and label modulate the blocks": dit.preset("XL", LATENTS, **options),
        "UniDiffuser: two times, each segment noisy with its own": unidiffuser,
        "References: two subjects, two views each": unified.preset("uvit", LATENTS, **references),
        "Video: frames of one time, the first one given": video,
    }


def layouts() -> dict[str, Layout]:
    """The layouts of `configs`, by title."""
    return {title: parse_model(config).layout() for title, config in configs().items()}


def squares(layout: Layout, segment: Segment) -> int:
    """How many squares a segment has in the figure."""
    return min(segment.num_tokens, MAX_SQUARES if len(layout.tokens) < 5 else MAX_SQUARES // 2)


def groups(layout: Layout) -> Mapping[str, list[str]]:
    """The segments that attend to some segments only, grouped by those."""
    by_sees: dict[str, list[str]] = {}
    for segment in layout.tokens:
        if segment.sees:
            by_sees.setdefault(", ".join(segment.sees), []).append(segment.name)
    return by_sees


def draw() -> None:
    """Draws all layouts into one figure."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    by_title = layouts()
    figure, axes = plt.subplots(len(by_title), 1, figsize=(9, 6.6))
    for axis, (title, layout) in zip(axes, by_title.items(), strict=True):
        row(axis, title, layout)
    figure.text(
        0.02,
        0.012,
        "hatched: noisy, with an output (↑) and the time t      filled: clean data      "
        "pale: condition      M: modulation vector",
        fontsize=8,
        color="#444444",
    )
    figure.subplots_adjust(left=0.02, right=0.995, top=0.97, bottom=0.06, hspace=0.3)
    figure.savefig(OUT, dpi=120, metadata={"Software": None})
    print(OUT)


def row(axis: Any, title: str, layout: Layout) -> None:
    """Draws one layout."""
    from matplotlib.patches import Rectangle

    axis.set(xlim=(0, 27.5), ylim=(-1.5, 3.4), aspect="auto")
    axis.axis("off")
    axis.text(0, 2.75, title, fontsize=10, fontweight="bold")
    axis.text(27.4, 2.75, f"{layout.num_tokens} tokens", fontsize=8, ha="right", color="#444444")
    x = 0.1
    ends = {}
    if layout.adaln:
        start = x
        for segment in layout.adaln:
            square(axis, x, segment)
            axis.text(x + 0.42, -0.55, segment.name, fontsize=7, ha="center")
            x += 1.6
        axis.text(x - 0.5, 0.22, "→", fontsize=11)
        axis.add_patch(Rectangle((x + 0.5, 0), 1.1, 0.84, fc="#bbbbbb", ec="black", lw=0.8))
        axis.text(x + 1.05, 0.4, "M", fontsize=8, ha="center", va="center")
        axis.text((start + x) / 2 + 0.6, -1.25, "enter='adaln'", fontsize=7, ha="center")
        x += 3
    for segment in layout.tokens:
        start, count, drawn = x, segment.num_tokens, squares(layout, segment)
        for i in range(drawn):
            if drawn < count and i == drawn - 1:
                axis.text(x + 0.1, 0.3, "…", fontsize=10)
                x += 0.75
            square(axis, x, segment)
            x += 0.9
        middle = (start + x) / 2
        label = segment.name if count == 1 else f"{segment.name} × {count}"
        axis.text(middle, -0.55, label, fontsize=7, ha="center")
        if segment.role == "noisy":
            axis.text(middle, 1.05, f"↑ t: {segment.time_key}", fontsize=7, ha="center")
        ends[segment.name] = (start, x - 0.1)
        x += 0.62 if count > 1 else 1.0
    for names in groups(layout).values():
        left, right = ends[names[0]][0], ends[names[-1]][1]
        axis.plot([left, left, right, right], [-0.75, -0.95, -0.95, -0.75], color="black", lw=0.8)
        axis.text((left + right) / 2, -1.45, "see only one another", fontsize=7, ha="center")


def square(axis: Any, x: float, segment: Segment) -> None:
    """Draws one token."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    colour = to_rgb(COLOURS[segment.kind])
    pale = tuple(0.45 * c + 0.55 for c in colour)
    face = colour if segment.role == "clean" else pale
    hatch = "/////" if segment.role == "noisy" else None
    edge = colour if hatch else "black"
    axis.add_patch(Rectangle((x, 0), 0.84, 0.84, fc=face, ec=edge, hatch=hatch, lw=0))
    axis.add_patch(Rectangle((x, 0), 0.84, 0.84, fc="none", ec="black", lw=0.8))


if __name__ == "__main__":
    draw()
