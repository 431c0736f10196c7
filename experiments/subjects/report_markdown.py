"""The tables of a comparison as Markdown."""

from collections.abc import Sequence

import numpy as np

from experiments.subjects import report_summary as summary
from experiments.subjects import report_tables
from experiments.subjects.results import Manifest, Score
from uvit_jax.evaluation.statistics import Interval


def markdown(rows: Sequence[Score], manifest: Manifest) -> str:
    """Means with intervals over subjects, and paired differences to the baseline, as Markdown."""
    means, lines = summary.means(rows), []
    for cell in summary.cells(rows, manifest):
        setting, split, subjects, views = cell
        metrics = [m for m in manifest.metrics if any(k[0] == cell and k[2] == m for k in means)]
        heads = [
            f"{manifest.metrics[m].title} {_ARROWS[manifest.metrics[m].higher_is_better]}"
            for m in metrics
        ]
        lines += ["", f"**{setting}** ({split}), {subjects} × {views} references", ""]
        lines += [_line(["", *heads]), _line(["---", *["---:"] * len(heads)])]
        for method, about in manifest.methods.items():
            found = [means.get((cell, method, metric)) for metric in metrics]
            if any(found):
                title = f"*{about.title}*" if about.anchor else about.title
                lines.append(_line([title, *map(_shown, found)]))
    found = summary.differences(rows, manifest)
    if found:
        base = manifest.methods[manifest.baseline].title
        adjusted = report_tables.adjusted_for(found, manifest)
        lines += [
            "",
            f"Against *{base}*, paired by image. p-values are adjusted (Holm) {adjusted}:",
            "",
        ]
        lines += [_line(["setting", "method", "metric", "difference", "p"]), _line(["---"] * 5)]
        for one in found:
            setting, split, subjects, views = one.cell
            where = f"{setting} ({split}), {subjects} × {views}"
            title, metric = manifest.methods[one.method].title, manifest.metrics[one.metric].title
            lines.append(_line([where, title, metric, _shown(one.interval, "+"), f"{one.p:.3f}"]))
    return "\n".join(lines).strip() + "\n"


_ARROWS = {True: "↑", False: "↓"}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "–"
    if np.isnan(interval.low):
        return f"{interval.mean:{sign}.2f}"
    return f"{interval.mean:{sign}.2f} ({interval.low:{sign}.2f} to {interval.high:{sign}.2f})"
