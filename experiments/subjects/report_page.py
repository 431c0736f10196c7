"""A comparison as one HTML page that needs nothing else: no script, no other file, no network.

html = page(results.rows, manifest, pictures)
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import groupby

import numpy as np

from experiments.subjects import report_plots as plots
from experiments.subjects import report_summary as summary
from experiments.subjects import report_tables as tables
from experiments.subjects.report_style import CSS
from experiments.subjects.results import Manifest, Row
from uvit_jax.errors import UvitError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PictureRow:
    """One question and its answers, floats (H, W, C) in [-1, 1].

    Attributes:
      subject, prompt: what was asked for. references: what was given.
      generations: by method, one or more pictures.
    """

    subject: str
    prompt: str
    references: Sequence[np.ndarray]
    generations: Mapping[str, Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PictureGrid:
    """Rows of pictures under one title, with a sentence about them."""

    title: str
    rows: Sequence[PictureRow]
    note: str = ""


def page(rows: Sequence[Row], manifest: Manifest, pictures: Sequence[PictureGrid] = ()) -> str:
    """The page.

    Args:
      rows: of `results.Results`. manifest: how they were made. pictures: grids to show.

    Returns:
      HTML, self-contained. The same arguments give the same text.

    Raises:
      UvitError: if there are no rows, a method or metric of theirs is not in the manifest, or
        matplotlib is missing.
    """
    _check(rows, manifest, pictures)
    sections = [
        ("pictures", "Pictures", _pictures(manifest, pictures)),
        ("results", "Results", _results(rows, manifest)),
        ("plots", "Identity against prompt-following", _trade(rows, manifest)),
        ("differences", "Paired differences", tables.differences(rows, manifest)),
        ("curves", "Curves", _curves(rows, manifest)),
        ("cost", "Cost", _cost(manifest)),
        ("subjects", "Subjects that go worst", _worst(rows, manifest)),
        ("made", "How this was made", _made(rows, manifest)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    notes = "".join(f'<div class="note">{escape(note)}</div>' for note in manifest.notes)
    subjects = len({row.subject for row in rows})
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(manifest.title)}</title>"
        '<link rel="icon" href="data:,">'  # browsers ask for one
        f"<style>{CSS}</style></head><body><main><header><h1>{escape(manifest.title)}</h1>"
        f'<p class="soft">{len(rows):,} measurements of {subjects} subjects, commit '
        f"{escape(manifest.commit[:12])}, {escape(manifest.hardware)}.</p>{notes}"
        f"<nav>{links}</nav></header>{body}</main></body></html>\n"
    )


def _check(rows: Sequence[Row], manifest: Manifest, pictures: Sequence[PictureGrid]) -> None:
    if not rows:
        raise UvitError("there are no results to show; run the comparison first")
    methods = {row.method for row in rows}
    methods |= {name for grid in pictures for row in grid.rows for name in row.generations}
    if unknown := sorted(methods - set(manifest.methods)):
        raise UvitError(f"the manifest describes no method {unknown[0]!r}, which has results")
    if unknown := sorted({row.metric for row in rows} - set(manifest.metrics)):
        raise UvitError(f"the manifest describes no metric {unknown[0]!r}, which has results")


def _results(rows: Sequence[Row], manifest: Manifest) -> str:
    means = summary.means(rows)
    parts = [
        "<p>Means over subjects with 95 % intervals of a bootstrap over subjects, whose images "
        "are not independent. The best of the methods is bold; anchors, which show where a "
        "figure's scale begins and ends, stand apart below.</p>"
    ]
    for setting, found in groupby(summary.cells(rows, manifest), key=lambda cell: cell[0]):
        parts.append(f"<h3>{escape(plots.words(setting).capitalize())}</h3>")
        parts += [tables.means(rows, means, manifest, cell) for cell in found]
    return "".join(parts)


def _trade(rows: Sequence[Row], manifest: Manifest) -> str:
    by_role = _by_role(manifest)
    drawn = [
        plots.pareto(rows, manifest, identity, text, anchors=anchors)
        for text in by_role["text"][:1]
        for identity in by_role["identity"]
        for anchors in (True, False)
    ]
    note = (
        f"Setting {plots.words(manifest.setting)}, split {manifest.split}; further up and to the "
        "right is better. Bars are 95 % intervals; the dashed line joins the methods that no other "
        "beats in both."
    )
    notes = (note, "The same without anchors.")
    figures = _figures([(svg, notes[i % 2]) for i, svg in enumerate(drawn)])
    shown = {row.method for row in rows if plots.is_main(row, manifest)}
    return figures and f"{_legend(manifest, shown)}{figures}"


def _curves(rows: Sequence[Row], manifest: Manifest) -> str:
    parts, shown = [], set()
    for axis in summary.axes(rows, manifest):
        metrics = [
            metric
            for metric, about in manifest.metrics.items()
            if about.role != "other" or axis not in ("views", "subjects")
        ]
        drawn = [(plots.curve(rows, manifest, axis, metric), "") for metric in metrics]
        if figures := _figures(drawn):
            shown |= summary.methods_along(rows, manifest, axis)
            parts.append(f"<h3>Along {escape(plots.words(axis))}</h3>{figures}")
    return "".join([_legend(manifest, shown), *parts]) if parts else ""


def _cost(manifest: Manifest) -> str:
    table = tables.cost(manifest)
    if not table:
        return ""
    note = "Fine-tuning is paid once a subject, and then every image."
    shown = {name for name, about in manifest.methods.items() if about.image_seconds}
    return f"{table}{_legend(manifest, shown)}{_figures([(plots.cost(manifest), note)])}"


def _worst(rows: Sequence[Row], manifest: Manifest, k: int = 5) -> str:
    identity = _by_role(manifest)["identity"][:1]
    return "".join(tables.worst(rows, manifest, metric, k) for metric in identity)


def _figures(drawn: Sequence[tuple[str, str]]) -> str:
    """Those plots that are not empty, each with its note."""
    figures = "".join(
        f"<figure>{svg}{f'<figcaption>{escape(note)}</figcaption>' if note else ''}</figure>"
        for svg, note in drawn
        if svg
    )
    return figures and f'<div class="plots">{figures}</div>'


def _legend(manifest: Manifest, shown: Collection[str]) -> str:
    """Of the methods that its plots show."""
    lines = "".join(
        f'<li><span style="color:{colour}">{mark}</span> '
        f"{escape(manifest.methods[name].title)}</li>"
        for name, (colour, _, mark) in plots.look(manifest).items()
        if name in shown
    )
    return f'<ul class="legend">{lines}</ul>'


def _pictures(manifest: Manifest, pictures: Sequence[PictureGrid]) -> str:
    return "".join(tables.pictures(manifest, grid) for grid in pictures if grid.rows)


def _made(rows: Sequence[Row], manifest: Manifest) -> str:
    facts = [
        ("Commit", manifest.commit),
        ("Hardware", manifest.hardware),
        ("Times", manifest.timing),
    ]
    for name, about in manifest.metrics.items():
        parts = [name, about.encoder and f"encoder {about.encoder}", about.note]
        parts.append("higher is better" if about.higher_is_better else "lower is better")
        facts.append((about.title, "; ".join(filter(None, parts))))
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    seeds = len({row.seed for row in rows})
    config = escape(json.dumps(manifest.config, indent=1, default=str))
    return (
        f"<dl>{listed}<dt>Seeds</dt><dd>{seeds}</dd></dl>"
        f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
    )


def _by_role(manifest: Manifest) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"identity": [], "text": [], "other": []}
    for name, about in manifest.metrics.items():
        found[about.role].append(name)
    return found
