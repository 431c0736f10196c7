"""A comparison as one self-contained HTML page: no script, no other file, no network.

html = page(rows, manifest, grids)
"""

import json
from collections.abc import Collection, Sequence
from html import escape
from itertools import groupby

from experiments.subjects import report_plots as plots
from experiments.subjects import report_summary as summary
from experiments.subjects import report_tables as tables
from experiments.subjects.results import Manifest, Score
from experiments.subjects.sample_grids import ReportGrid, grid_html
from uvit_jax.errors import UvitError

CSS = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1d2129; --soft: #5b6472;
  --line: #dcdfe4; --card: #ffffff; --anchor: #f1f2f0; --accent: #0b6bb0; --note: #fff6dd;
  --note-line: #e0b84c; --good: #0a7a4b; --bad: #b3361b; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e7eaee; --soft: #9aa4b2;
  --line: #313742; --card: #1b1f26; --anchor: #23272e; --accent: #6db8f2; --note: #2e2814;
  --note-line: #8f7530; --good: #4ecb92; --bad: #f0866c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem clamp(.9rem, 3vw, 2.2rem) 4rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.15rem); line-height: 1.2; margin: 0 0 .5rem;
  letter-spacing: -.015em; }
h2 { font-size: 1.32rem; margin: 3rem 0 .4rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .45rem; }
p { margin: .45rem 0 .9rem; max-width: 75ch; }
.soft, caption, .p { color: var(--soft); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0 0; font-size: .925rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.note { border-left: 4px solid var(--note-line); background: var(--note); padding: .55rem .9rem;
  border-radius: 0 6px 6px 0; margin: .9rem 0; max-width: 75ch; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); margin: .5rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom;
  white-space: normal; min-width: 7.5rem; font-size: .84rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card);
  font-weight: 500; min-width: 8.5rem; white-space: normal; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tr.anchor > * { background: var(--anchor); color: var(--soft); font-style: italic; }
tr.rule > * { border-top: 2px solid var(--soft) !important; }
td b { color: var(--ink); } .ci { display: block; font-size: .78rem; color: var(--soft); }
.up { color: var(--good); } .down { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; margin: .6rem 0 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem; min-width: 0; } figure svg { display: block; width: 100%; height: auto;
  max-width: 34rem; margin: 0 auto; } figcaption { font-size: .85rem; color: var(--soft);
  margin-top: .35rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .875rem; padding: 0;
  margin: .6rem 0; list-style: none; }
.samples table { width: auto; } .samples th, .samples td { padding: .45rem .5rem;
  text-align: left; } .samples thead th { min-width: 0; }
.samples .given { background: var(--anchor); border-right: 2px solid var(--soft); }
.samples th:first-child { position: static; min-width: 0; }
.strip { display: flex; gap: 4px; } .strip img { width: 64px; height: 64px; border-radius: 4px;
  object-fit: contain; display: block; } .pixels { image-rendering: pixelated; }
.prompt { font-weight: 400; min-width: 9rem; max-width: 13rem; white-space: normal;
  font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.2rem;
  font-size: .92rem; } dt { color: var(--soft); } dd { margin: 0; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); padding: .8rem;
  border-radius: 8px; font-size: .8rem; line-height: 1.45; }
@media (max-width: 560px) { th, td { padding: .42rem .55rem; }
  dl { grid-template-columns: minmax(0, 1fr); } dt { margin-top: .4rem; }
  th:first-child { min-width: 6.5rem; } thead th { min-width: 6rem; } }
@media print { .scroll { overflow: visible; } h2 { break-after: avoid; } }
"""
"""The style sheet: light or dark like the reader's system, from 320 pixels of width."""


def page(rows: Sequence[Score], manifest: Manifest, grids: Sequence[ReportGrid] = ()) -> str:
    """Renders the report.

    Args:
      rows: the results table. manifest: how it was made. grids: of samples.

    Returns:
      Self-contained HTML; the same arguments give the same text.

    Raises:
      UvitError: if there are no rows, the manifest lacks one of their methods or metrics, or
        matplotlib is missing.
    """
    _check(rows, manifest, grids)
    sections = [
        ("samples", "Samples", "".join(grid_html(manifest, grid) for grid in grids if grid.rows)),
        ("primary", "Primary comparisons", tables.primary(rows, manifest)),
        ("gates", "Gates of fine-tuning", tables.gates(rows, manifest)),
        ("results", "Results", _results(rows, manifest)),
        ("plots", "Identity against prompt-following", _trade(rows, manifest)),
        ("differences", "Paired differences", tables.differences(rows, manifest)),
        ("curves", "Curves", _curves(rows, manifest)),
        ("cost", "Cost", _cost(manifest)),
        ("subjects", "Worst subjects", _worst(rows, manifest)),
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


def _check(rows: Sequence[Score], manifest: Manifest, grids: Sequence[ReportGrid]) -> None:
    if not rows:
        raise UvitError("there are no results to report; run the comparison first")
    methods = {row.method for row in rows}
    methods |= {name for grid in grids for row in grid.rows for name in row.generations}
    if unknown := sorted(methods - set(manifest.methods)):
        raise UvitError(f"the manifest has no method {unknown[0]!r}, which has results")
    if unknown := sorted({row.metric for row in rows} - set(manifest.metrics)):
        raise UvitError(f"the manifest has no metric {unknown[0]!r}, which has results")


def _results(rows: Sequence[Score], manifest: Manifest) -> str:
    means = summary.means(rows)
    parts = [
        "<p>Means over subjects with 95 % intervals of a bootstrap over subjects, whose images "
        "are not independent, and over networks where there are several. The best method is bold. "
        "Anchors, below the rule, show the range of each metric.</p>"
    ]
    for setting, found in groupby(summary.cells(rows, manifest), key=lambda cell: cell[0]):
        parts.append(f"<h3>{escape(plots.words(setting).capitalize())}</h3>")
        parts += [tables.means(rows, means, manifest, cell) for cell in found]
    return "".join(parts)


def _trade(rows: Sequence[Score], manifest: Manifest) -> str:
    by_role = _by_role(manifest)
    charts = [
        plots.pareto(rows, manifest, identity, text, anchors=anchors)
        for text in by_role["text"][:1]
        for identity in by_role["identity"]
        for anchors in (True, False)
    ]
    note = (
        f"Setting {plots.words(manifest.setting)}, split {manifest.split}; further up and to the "
        "right is better. Bars are 95 % intervals; the dashed line is the Pareto front of the "
        "methods."
    )
    notes = (note, "The same without anchors.")
    plots_html = _plots([(svg, notes[i % 2]) for i, svg in enumerate(charts)])
    plotted = {row.method for row in rows if plots.is_main(row, manifest)}
    return plots_html and f"{_legend(manifest, plotted)}{plots_html}"


def _curves(rows: Sequence[Score], manifest: Manifest) -> str:
    parts, plotted = [], set()
    for axis in summary.axes(rows, manifest):
        metrics = [
            metric
            for metric, about in manifest.metrics.items()
            if about.role != "other" or axis not in ("views", "subjects")
        ]
        charts = [(plots.curve(rows, manifest, axis, metric), "") for metric in metrics]
        if plots_html := _plots(charts):
            plotted |= summary.methods_along(rows, manifest, axis)
            parts.append(f"<h3>Along {escape(plots.words(axis))}</h3>{plots_html}")
    return "".join([_legend(manifest, plotted), *parts]) if parts else ""


def _cost(manifest: Manifest) -> str:
    table = tables.cost(manifest)
    if not table:
        return ""
    note = "Fine-tuning costs once per subject, sampling for every image."
    plotted = {name for name, about in manifest.methods.items() if about.image_seconds}
    return f"{table}{_legend(manifest, plotted)}{_plots([(plots.cost(manifest), note)])}"


def _worst(rows: Sequence[Score], manifest: Manifest, k: int = 5) -> str:
    identity = _by_role(manifest)["identity"][:1]
    return "".join(tables.worst(rows, manifest, metric, k) for metric in identity)


def _plots(charts: Sequence[tuple[str, str]]) -> str:
    """The plots that are not empty, each with its caption."""
    plots_html = "".join(
        f"<figure>{svg}{f'<figcaption>{escape(note)}</figcaption>' if note else ''}</figure>"
        for svg, note in charts
        if svg
    )
    return plots_html and f'<div class="plots">{plots_html}</div>'


def _legend(manifest: Manifest, plotted: Collection[str]) -> str:
    """The legend of the plotted methods."""
    lines = "".join(
        f'<li><span style="color:{colour}">{mark}</span> '
        f"{escape(manifest.methods[name].title)}</li>"
        for name, (colour, _, mark) in plots.look(manifest).items()
        if name in plotted
    )
    return f'<ul class="legend">{lines}</ul>'


def _made(rows: Sequence[Score], manifest: Manifest) -> str:
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
