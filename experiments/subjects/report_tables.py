"""The tables of the report, as HTML."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from experiments.subjects import report_summary as summary
from experiments.subjects.clusters import break_even
from experiments.subjects.report_plots import words
from experiments.subjects.results import Manifest, MethodInfo, Score
from uvit_jax.evaluation.statistics import Interval, mean_interval


def means(
    rows: Sequence[Score],
    found: Mapping[tuple, Interval],
    manifest: Manifest,
    cell: summary.Cell,
) -> str:
    """The means of one cell: a row per method, anchors last, a column per metric."""
    methods = [m for m in manifest.ordered() if any(k[:2] == (cell, m) for k in found)]
    metrics = [m for m in manifest.metrics if any(k == (cell, k[1], m) for k in found)]
    rivals = [m for m in methods if not manifest.methods[m].anchor]
    best = {}
    for metric in metrics:
        sign = 1 if manifest.metrics[metric].higher_is_better else -1
        measured = [m for m in rivals if (cell, m, metric) in found]
        known = {m: sign * found[cell, m, metric].mean for m in measured}
        best[metric] = {m for m in known if len(known) > 1 and known[m] == max(known.values())}
    architectures = {row.method: row.architecture for row in rows}
    problems = summary.problems(rows, manifest)
    body = []
    for method in methods:
        cells = [_name(manifest, method, architectures.get(method, ""))]
        if problem := problems.get((cell, method)):
            cells[0] += f'<span class="ci down">{escape(problem)}</span>'
        for metric in metrics:
            interval = found.get((cell, method, metric))
            cells.append(_interval(interval, bold=method in best[metric]))
        body.append((method, cells))
    heads = [f"{_title(manifest, m)} {_arrow(manifest, m)}" for m in metrics]
    return _table(_caption(cell), ["", *heads], body, manifest)


def differences(rows: Sequence[Score], manifest: Manifest) -> str:
    """Each method minus the baseline, paired by image."""
    found = summary.differences(rows, manifest)
    if not found:
        return ""
    baseline = escape(manifest.methods[manifest.baseline].title)
    text = (
        f"<p>Each method minus {baseline}, for the same subject, prompt and seed, averaged by "
        "subject; 95 % intervals by resampling subjects and networks. <b>Bold</b> where they "
        "exclude zero. These comparisons are secondary, not adjusted for their number.</p>"
    )
    by_place: dict[tuple, dict[str, str]] = {}
    metrics = list(dict.fromkeys(d.metric for d in found))
    for d in found:
        better = 1 if manifest.metrics[d.metric].higher_is_better else -1
        shown = _interval(d.interval, bold=d.interval.excludes_zero, better=better)
        by_place.setdefault((d.cell, d.method), {})[d.metric] = shown
    parts, cells = [text], list(dict.fromkeys(cell for cell, _ in by_place))
    for cell in cells:
        body = [
            (method, [escape(manifest.methods[method].title), *(row.get(m, "–") for m in metrics)])
            for (where, method), row in by_place.items()
            if where == cell
        ]
        heads = ["", *(_title(manifest, m) for m in metrics)]
        parts.append(_table(f"{words(cell[0])}: {_caption(cell)}", heads, body, manifest))
    return "".join(parts)


def primary(rows: Sequence[Score], manifest: Manifest) -> str:
    """The comparisons that were fixed in advance, with p-values."""
    body = []
    for one in summary.primary(rows, manifest):
        against = manifest.methods[one.against].title if one.against else "–"
        value = f"<b>{escape(one.problem)}</b>" if one.problem else _interval(one.interval)
        cells = [escape(one.title), escape(against), one.test, value, _p(one.p)]
        body.append((manifest.baseline, cells))
    if not body:
        return ""
    text = (
        "<p>Fixed in the config before there were results. p is adjusted for these alone (Holm); "
        "of Student's t, with the spread over networks and subjects.</p>"
    )
    heads = ["", "against", "test", "mean or difference", "p"]
    return f"{text}{_table('Primary comparisons', heads, body, manifest)}"


def gates(rows: Sequence[Score], manifest: Manifest) -> str:
    """What fine-tuned methods have to pass."""
    body = []
    for name, gate in summary.gates(rows, manifest).items():
        values = ["–" if v is None else f"{v:.2f}" for v in (gate.portraits, gate.name_effect)]
        verdict = (
            f'<span class="{"down" if gate.problem else "up"}">{gate.problem or "valid"}</span>'
        )
        body.append((name, [escape(manifest.methods[name].title), *values, verdict]))
    if not body:
        return ""
    text = (
        "<p>Before a fine-tuned method counts, it has to draw its references again (identity of at "
        f"least {summary.PORTRAITS}), and its name has to matter: identity in scenes at least "
        f"{summary.NAME_EFFECT} above that with an unused name. A method that fails is no valid "
        "LoRA, which is not a loss.</p>"
    )
    heads = ["", "identity of portraits", "effect of the name", ""]
    return f"{text}{_table('Gates', heads, body, manifest)}"


def worst(rows: Sequence[Score], manifest: Manifest, metric: str, k: int) -> str:
    """The k subjects with the lowest means, by method."""
    found = summary.worst_subjects(rows, manifest, metric, k)
    body = [
        (
            method,
            [
                escape(manifest.methods[method].title),
                *(f'{value:.3f}<span class="ci">{escape(s)}</span>' for s, value in found[method]),
            ],
        )
        for method in manifest.ordered()
        if method in found
    ]
    if not body:
        return ""
    most = max(len(cells) for _, cells in body)
    body = [(method, [*cells, *["–"] * (most - len(cells))]) for method, cells in body]
    heads = ["", *(f"{i + 1}." for i in range(most - 1))]
    caption = f"{_title(manifest, metric)}, {words(manifest.setting)}, split {manifest.split}"
    return _table(caption, heads, body, manifest)


def cost(manifest: Manifest) -> str:
    """Time, FLOPs and memory, and the number of images at which fine-tuning breaks even."""
    timed = [m for m in manifest.ordered() if manifest.methods[m].image_seconds]
    if not timed:
        return ""
    base = manifest.methods[manifest.baseline]
    body = []
    for name in timed:
        m = manifest.methods[name]
        pays = m.finetune_seconds and base.image_seconds and not base.finetune_seconds
        cells = [
            escape(m.title),
            _times(m.finetune_seconds),
            _times(m.image_seconds),
            _break_even(break_even(m.finetune_seconds, base.image_seconds, m.image_seconds))
            if pays
            else "–",
            _uncached(m),
            _seconds(m.compile_seconds) if m.compile_seconds else "–",
            _flops(m),
            _scaled(m.train_flops, 1000, _FLOPS),
            _scaled(m.tuning_flops, 1000, _FLOPS),
            f"{m.parameters / 1e6:.2f} M" if m.parameters else "–",
            _bytes(m.memory_bytes),
            _bytes(m.subject_bytes),
        ]
        body.append((name, cells))
    heads = [
        "",
        "fine-tuning per subject",
        "time per image",
        "break-even n*",
        "per image without cache",
    ]
    heads += ["compilation", "FLOPs (fine-tuning / image)", "FLOPs of training"]
    heads += ["FLOPs of tuning, once", "parameters", "memory", "stored per subject"]
    text = (
        "<p>Times exclude compilation. n* is the number of images of a subject from which "
        "fine-tuning is faster than references in context: t_finetune / (t_context − t_lora), with "
        "Fieller's interval; ∞ where images in context are no slower."
        "</p>"
    )
    return f"{text}{_table(manifest.timing, heads, body, manifest)}"


def _table(
    caption: str,
    heads: Sequence[str],
    body: Sequence[tuple[str, Sequence[str]]],
    manifest: Manifest,
) -> str:
    """An HTML table. Heads and cells are HTML, the caption is text; a row is (method, cells)."""
    lines, before = [], False
    for method, (first, *rest) in body:
        anchor = manifest.methods[method].anchor
        kinds = " ".join(["anchor"] * anchor + ["rule"] * (anchor and not before and bool(lines)))
        before = anchor
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr class="{kinds}"><th scope="row">{first}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return (
        f'<p class="soft">{escape(caption)}</p><div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _name(manifest: Manifest, method: str, architecture: str) -> str:
    title = escape(manifest.methods[method].title)
    return f'{title}<span class="ci">{escape(architecture)}</span>' if architecture else title


def _title(manifest: Manifest, metric: str) -> str:
    return escape(manifest.metrics[metric].title)


def _arrow(manifest: Manifest, metric: str) -> str:
    return "↑" if manifest.metrics[metric].higher_is_better else "↓"


def _caption(cell: summary.Cell) -> str:
    _, split, subjects, views = cell
    many = "subject" if subjects == 1 else "subjects"
    each = "reference" if views == 1 else "references"
    return f"split {split}, {subjects} {many}, {views} {each} of each"


def _interval(interval: Interval | None, *, bold: bool = False, better: int = 0) -> str:
    """better: the sign of an improvement, for differences; 0 for means."""
    if interval is None:
        return "–"
    signed = bool(better)
    mean = _number(interval.mean, signed)
    if signed and interval.excludes_zero:
        mean = f'<span class="{"up" if interval.mean * better > 0 else "down"}">{mean}</span>'
    mean = f"<b>{mean}</b>" if bold else mean
    if math.isnan(interval.low):
        return f'{mean}<span class="ci">one subject</span>'
    low, high = (_number(v, signed) for v in (interval.low, interval.high))
    return f'{mean}<span class="ci">{low} to {high}</span>'


def _number(value: float, signed: bool = False) -> str:
    digits = 3 if abs(value) < 10 else 1
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def _p(p: float) -> str:
    if p != p:
        return "–"
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def _times(times: Sequence[float]) -> str:
    if not times:
        return "–"
    interval = mean_interval(times)
    if interval.count == 1:
        return f'{_seconds(interval.mean)}<span class="ci">measured once</span>'
    low, high = min(times), max(times)
    spread = f"{_seconds(low)} to {_seconds(high)}, {len(times)} times"
    return f'{_seconds(interval.mean)}<span class="ci">{spread}</span>'


def _uncached(method: MethodInfo) -> str:
    """Times without cached references, and their ratio to those with them."""
    shown = _times(method.uncached_seconds)
    if not method.uncached_seconds or not method.image_seconds:
        return shown
    ratio = np.mean(method.uncached_seconds) / np.mean(method.image_seconds)
    return f'{shown}<span class="ci">{ratio:.2f} × as long</span>'


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _flops(method: MethodInfo) -> str:
    pair = [method.finetune_flops, method.image_flops]
    return " / ".join(_scaled(v, 1000, _FLOPS) for v in pair)


_FLOPS = ("", "k", "M", "G", "T", "P", "E")


def _bytes(value: float) -> str:
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    if not value:
        return "–"
    power = min(int(math.log(value, step)), len(units) - 1)
    return f"{value / step**power:.3g}{units[power]}"


def _break_even(interval: Interval) -> str:
    shown = [
        "∞" if math.isinf(v) else "?" if math.isnan(v) else f"{v:.0f}" if v >= 10 else f"{v:.1f}"
        for v in (interval.mean, interval.low, interval.high)
    ]
    return f'{shown[0]}<span class="ci">{shown[1]} to {shown[2]}</span>'
