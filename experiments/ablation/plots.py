"""An ablation's pictures: curves over training steps, and samples of all variants side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.ablation.measure import SAMPLES
from experiments.ablation.records import Records
from experiments.ablation.variants import Plan
from uvit_jax import io
from uvit_jax.errors import UvitError

METRIC = "validation_loss"
"""What is measured at every kept checkpoint."""


def curves(plan: Plan, records: Records, path: Path) -> None:
    """Draws `validation_loss` over training steps, one panel a group: a line is a variant's mean
    over its seeds, its band reaches from the least to the greatest of them.

    Raises:
      UvitError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UvitError(
            "curves need matplotlib, which is not installed: pip install 'uvit-jax[plots]'"
        ) from None
    groups = plan.config.groups
    figure = Figure(figsize=(5.0 * len(groups), 4.0), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, (group, variants) in zip(axes, groups.items(), strict=True):
        for variant in variants:
            name = plan.names[group, variant]
            steps, values_SR = _points(records, name)
            published = variant == plan.config.baseline[group]
            (line,) = axis.plot(
                steps,
                [np.mean(v) for v in values_SR],
                label=f"{variant} (published)" if published else variant,
                linewidth=2.5 if published else 1.5,
                marker="o",
                markersize=3,
            )
            low, high = [min(v) for v in values_SR], [max(v) for v in values_SR]
            axis.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_title(group)
        axis.set_xlabel("training step")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.yaxis.set_minor_formatter("{x:.3g}")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    axes[0].set_ylabel(f"{METRIC} (mean and range over seeds)")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


def sheets(plan: Plan, workdir: Path) -> None:
    """Writes `samples/<run>.png`, a grid of each variant's samples, and `samples/<group>.png`, in
    which each variant of the group has a row.

    All are of the first seed that has been measured, and begin with the same noise and conditions.
    """
    found: dict[str, np.ndarray] = {}
    for job in plan.jobs:
        file = workdir / job.folder / SAMPLES
        if job.name not in found and file.exists():
            with np.load(file) as arrays:
                found[job.name] = arrays["image"]
    found = {name: pictures for name, pictures in found.items() if len(pictures)}
    for name, pictures in found.items():
        io.save_png(io.grid(pictures), workdir / "samples" / f"{name}.png")
    for group, variants in plan.config.groups.items():
        rows = {v: found[plan.names[group, v]] for v in variants if plan.names[group, v] in found}
        if rows:
            columns = min(len(pictures) for pictures in rows.values())
            captions = [c for variant in rows for c in (variant, *[""] * (columns - 1))]
            stacked = np.concatenate([pictures[:columns] for pictures in rows.values()])
            sheet = io.grid(stacked, columns=columns, captions=captions)
            io.save_png(sheet, workdir / "samples" / f"{group}.png")


def _points(records: Records, name: str) -> tuple[list[int], Sequence[list[float]]]:
    """A variant's steps, ascending, and at each the values of its seeds."""
    points: dict[int, list[float]] = {}
    for (known, _), record in sorted(records.items()):
        for row in record.rows if known == name else ():
            if row.metric == METRIC:
                points.setdefault(row.step, []).append(row.value)
    return sorted(points), [points[step] for step in sorted(points)]
