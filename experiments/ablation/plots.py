"""Plots of an ablation: curves over training steps, and samples of all variants side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.ablation.measurement import SAMPLES
from experiments.ablation.run_records import RunRecords
from experiments.ablation.variants import AblationPlan
from uvit_jax import io
from uvit_jax.errors import UvitError


def curves(plan: AblationPlan, records: RunRecords, path: Path) -> None:
    """Plots `metrics.curve` over training steps, a panel per group: each variant's mean over its
    seeds, with a band from minimum to maximum.

    Raises:
      UvitError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UvitError(
            "curves need matplotlib, which is not installed: pip install 'uvit-jax[plots]'"
        ) from None
    groups, metric = plan.config.groups, plan.config.metrics.curve
    figure = Figure(figsize=(5.0 * len(groups), 4.0), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, (group, variants) in zip(axes, groups.items(), strict=True):
        for variant in variants:
            name = plan.names[group, variant]
            steps, values_SR = _points(records, name, metric)
            baseline = variant == plan.config.baseline[group]
            (line,) = axis.plot(
                steps,
                [np.mean(v) for v in values_SR],
                label=f"{variant} (baseline)" if baseline else variant,
                linewidth=2.5 if baseline else 1.5,
                marker="o",
                markersize=3,
            )
            low, high = [min(v) for v in values_SR], [max(v) for v in values_SR]
            axis.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_title(group)
        axis.set_xlabel("training step")
        if "loss" in metric:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:.3g}")
            axis.yaxis.set_minor_formatter("{x:.3g}")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    axes[0].set_ylabel(f"{metric} (mean and range over seeds)")
    with io.atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def sheets(plan: AblationPlan, workdir: Path) -> None:
    """Writes `samples/<run>.png`, a grid of each variant's samples, and `samples/<group>.png`, with
    a row for each variant of the group.

    All are of the first measured seed, with the same noise and conditions.
    """
    found: dict[str, np.ndarray] = {}
    for job in plan.jobs:
        file = workdir / job.folder / SAMPLES
        if job.name not in found and file.exists():
            with np.load(file) as arrays:
                found[job.name] = arrays["image"]
    found = {name: images for name, images in found.items() if len(images)}
    for name, images in found.items():
        io.save_png(io.grid(images), workdir / "samples" / f"{name}.png")
    for group, variants in plan.config.groups.items():
        rows = {v: found[plan.names[group, v]] for v in variants if plan.names[group, v] in found}
        if rows:
            columns = min(len(images) for images in rows.values())
            captions = [c for variant in rows for c in (variant, *[""] * (columns - 1))]
            stacked = np.concatenate([images[:columns] for images in rows.values()])
            sheet = io.grid(stacked, columns=columns, captions=captions)
            io.save_png(sheet, workdir / "samples" / f"{group}.png")


def _points(records: RunRecords, name: str, metric: str) -> tuple[list[int], Sequence[list[float]]]:
    """The steps of a variant, ascending, and the values of its seeds at each."""
    points: dict[int, list[float]] = {}
    for (known, _), record in sorted(records.items()):
        for row in record.rows if known == name else ():
            if row.metric == metric:
                points.setdefault(row.step, []).append(row.value)
    return sorted(points), [points[step] for step in sorted(points)]
