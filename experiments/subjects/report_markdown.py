"""The tables of a comparison as Markdown."""

from collections.abc import Sequence

import numpy as np

from experiments.subjects import report_summary as summary
from experiments.subjects.results import Manifest, Score
from uvit_jax.evaluation.statistics import Interval


def markdown(rows: Sequence[Score], manifest: Manifest) -> str:
    """Primary comparisons, gates, means with intervals and paired differences, as Markdown."""
    means, problems, lines = summary.means(rows), summary.problems(rows, manifest), []
    tested = summary.primary(rows, manifest)
    if tested:
        lines += ["**Primary comparisons**, p-values adjusted for these alone (Holm)", ""]
        lines += [_line(["", "against", "test", "mean or difference", "p"]), _line(["---"] * 5)]
        for one in tested:
            against = manifest.methods[one.against].title if one.against else "–"
            p = "–" if one.p != one.p else f"{one.p:.3f}"
            shown = one.problem or _shown(one.interval)
            lines.append(_line([one.title, against, one.test, shown, p]))
    found = summary.gates(rows, manifest)
    if found:
        lines += ["", "**Gates of fine-tuned methods**", ""]
        heads = ["", "identity of portraits", "effect of the name", ""]
        lines += [_line(heads), _line(["---", "---:", "---:", "---"])]
        for name, gate in found.items():
            values = ["–" if v is None else f"{v:.2f}" for v in (gate.portraits, gate.name_effect)]
            title, verdict = manifest.methods[name].title, gate.problem or "valid"
            lines.append(_line([title, *values, verdict]))
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
            values = [means.get((cell, method, metric)) for metric in metrics]
            if any(values):
                title = f"*{about.title}*" if about.anchor else about.title
                if problem := problems.get((cell, method)):
                    title += f" ({problem})"
                lines.append(_line([title, *map(_shown, values)]))
    differences = summary.differences(rows, manifest)
    if differences:
        base = manifest.methods[manifest.baseline].title
        lines += ["", f"Against *{base}*, paired by image; secondary, not adjusted:", ""]
        lines += [_line(["setting", "method", "metric", "difference"]), _line(["---"] * 4)]
        for one in differences:
            setting, split, subjects, views = one.cell
            where = f"{setting} ({split}), {subjects} × {views}"
            title, metric = manifest.methods[one.method].title, manifest.metrics[one.metric].title
            lines.append(_line([where, title, metric, _shown(one.interval, "+")]))
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
