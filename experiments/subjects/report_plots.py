"""The plots of the report, as inline SVG in the text colour of the page.

Each is a pure function of rows and manifest. They need matplotlib (the extra `plots`).
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.subjects import report_summary as summary
from experiments.subjects.clusters import crossed, pareto_front
from experiments.subjects.results import Manifest, MethodInfo, Score
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.statistics import Interval

# Okabe & Ito's colours: distinct for colour-blind readers, visible in light and dark themes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", "#a3a300")
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
ANCHORS = (
    *(("o", "○"), ("s", "□"), ("^", "△"), ("D", "◇"), ("v", "▽")),
    *(("x", "✕"), ("*", "☆"), ("p", "⬠")),
)
_INK = "#010203"  # stands for the page's text colour
_GREY = "#808080"


def look(manifest: Manifest) -> dict[str, tuple[str, str, str]]:
    """(colour, matplotlib marker, marker as a character) by method; anchors are hollow and grey."""
    found, competitors, anchors = {}, 0, 0
    for name, method in manifest.methods.items():
        if method.anchor:
            found[name], anchors = (_GREY, *ANCHORS[anchors % len(ANCHORS)]), anchors + 1
        else:
            marker = MARKERS[competitors % len(MARKERS)]
            found[name] = (COLOURS[competitors % len(COLOURS)], *marker)
            competitors += 1
    return found


def pareto(
    rows: Sequence[Score], manifest: Manifest, identity: str, text: str, *, anchors: bool = True
) -> str:
    """Identity against prompt-following in the manifest's setting, with intervals and the Pareto
    front of the methods; "" without data.

    anchors: whether to include them, which compresses the scale of the methods.
    """
    points: dict[str, tuple[Interval, Interval]] = {}
    for name, about in manifest.methods.items():
        if about.anchor and not anchors:
            continue
        found = [
            [r for r in rows if (r.method, r.metric) == (name, metric) and is_main(r, manifest)]
            for metric in (text, identity)
        ]
        if all(found):
            points[name] = tuple(
                crossed(
                    [r.value for r in part], [r.subject for r in part], [r.network for r in part]
                ).interval
                for part in found
            )
    if not points:
        return ""
    figure, axis = _figure()
    looks = look(manifest)
    for name, (x, y) in points.items():
        colour, marker, _ = looks[name]
        hollow = manifest.methods[name].anchor
        axis.errorbar(
            *(x.mean, y.mean),
            xerr=_errors([x]),
            yerr=_errors([y]),
            marker=marker,
            color=colour,
            markerfacecolor="none" if hollow else colour,
            markersize=7,
            linewidth=1,
            capsize=0,
            zorder=2 if hollow else 3,
        )
    rivals = [name for name in points if not manifest.methods[name].anchor]
    signs = [1 if manifest.metrics[m].higher_is_better else -1 for m in (text, identity)]
    if len(rivals) > 1:
        means = np.array([[i.mean for i in points[name]] for name in rivals])
        front = means[pareto_front(means * signs)]
        front = front[front[:, 0].argsort()]
        axis.plot(front[:, 0], front[:, 1], "--", color=_INK, linewidth=1, alpha=0.5, zorder=1)
    axis.set_xlabel(manifest.metrics[text].title)
    axis.set_ylabel(manifest.metrics[identity].title)
    return _svg(figure, "Identity against prompt-following")


def curve(rows: Sequence[Score], manifest: Manifest, axis_name: str, metric: str) -> str:
    """A metric along an axis, a line per method, its interval as a band; "" without data."""
    found = summary.curves(rows, manifest, axis_name, metric)
    found = {name: found[name] for name in manifest.methods if name in found}
    if not any(len(line) > 1 for line in found.values()):
        return ""
    figure, axis = _figure()
    looks = look(manifest)
    positions = sorted({position for line in found.values() for position, _ in line})
    for name, line in found.items():
        colour, marker, _ = looks[name]
        hollow = manifest.methods[name].anchor
        x, y = [position for position, _ in line], [interval.mean for _, interval in line]
        low, high = (
            [getattr(i, end) if np.isfinite(i.low) else i.mean for _, i in line]
            for end in ("low", "high")
        )
        axis.plot(
            x,
            y,
            marker=marker,
            color=colour,
            markersize=5,
            markerfacecolor="none" if hollow else colour,
            linestyle=":" if hollow else "-",
            linewidth=1 if hollow else 1.8,
        )
        if not hollow:
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if axis_name in ("views", "subjects") or len(positions) <= 6:
        axis.set_xticks(positions, [f"{p:g}" for p in positions])
    axis.set_xlabel(words(axis_name))
    axis.set_ylabel(manifest.metrics[metric].title if metric in manifest.metrics else metric)
    return _svg(figure, f"{metric} along {words(axis_name)}")


def cost(manifest: Manifest) -> str:
    """Total seconds against the number of images of a subject, fine-tuning included."""
    timed = {n: m for n, m in manifest.methods.items() if m.image_seconds and not m.anchor}
    if not timed:
        return ""
    figure, axis = _figure()
    images = np.geomspace(1, _far(timed), 60)
    for name, method in timed.items():
        tuning = float(np.mean(method.finetune_seconds)) if method.finetune_seconds else 0.0
        seconds = tuning + images * float(np.mean(method.image_seconds))
        axis.plot(images, seconds, color=look(manifest)[name][0], linewidth=1.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("images of a subject")
    axis.set_ylabel("seconds in all, fine-tuning included")
    return _svg(figure, "Seconds against images of a subject")


def words(name: str) -> str:
    """The readable name of a setting or axis: `context_tokens` as `context tokens`."""
    return _WORDS.get(name, name.replace("_", " "))


_WORDS = {
    "lora_step": "LoRA step",
    "forgetting": "fine-tuning step, on base classes",
    "count": "number of subjects, one reference each",
    "distractors": "references of others",
    "two_subjects_left": "two subjects, “on the left of”",
    "two_subjects_right": "two subjects, “on the right of”",
    "three_subjects_left": "three subjects, in the words of two",
    "compositions": "one subject's front on the back of another",
}


def _far(timed: Mapping[str, MethodInfo]) -> float:
    """The largest number of images on the axis, past the break-even points."""
    tuning = [float(np.mean(m.finetune_seconds)) for m in timed.values() if m.finetune_seconds]
    image = min(float(np.mean(m.image_seconds)) for m in timed.values())
    return float(np.clip(10 * max(tuning, default=0) / image, 100, 1e5))


def is_main(row: Score, manifest: Manifest) -> bool:
    """Whether a row is of the manifest's setting and split."""
    return (row.setting, row.split) == (manifest.setting, manifest.split)


def _errors(intervals: Sequence[Interval]) -> list[list[float]]:
    """Error bars as matplotlib takes them: lengths below and above; 0 for unknown intervals."""
    low = [np.nan_to_num(i.mean - i.low) for i in intervals]
    return [low, [np.nan_to_num(i.high - i.mean) for i in intervals]]


def _figure() -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UvitError(
            "the report needs matplotlib, which is not installed: pip install 'uvit-jax[plots]'"
        ) from None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.3))
        figure.subplots_adjust(left=0.15, right=0.97, bottom=0.15, top=0.97)
        axis = figure.subplots()
        axis.grid(alpha=0.18, color=_INK)
        axis.set_axisbelow(True)
    return figure, axis


_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "uvit_jax",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
}


def _svg(figure: Any, title: str) -> str:
    """A figure as an SVG element of flexible width."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        # No date, so that equal data give equal bytes.
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids must be unique within the page.
    mark = f"p{zlib.crc32(svg.encode()):x}"
    svg = re.sub(r'id="([^"]+)"', rf'id="{mark}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}-", svg)
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{title}">{rest}'
