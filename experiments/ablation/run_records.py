"""The measurements of an ablation: stored per run, and written as CSV, Markdown and JSON."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.ablation.variants import AblationPlan
from uvit_jax.errors import UvitError
from uvit_jax.evaluation.statistics import Interval, mean_interval, paired_interval
from uvit_jax.io import write_text

RECORD = "ablation.json"
"""The file of the record in a run's workdir."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of a run at one step."""

    step: int
    metric: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All measurements of a run.

    Attributes:
      params: number of parameters. seconds: of training, without compilation and evaluation.
      rows: the measurements, ascending by step.
    """

    params: int
    seconds: float
    rows: tuple[Measurement, ...]

    def at(self, step: int) -> dict[str, float]:
        """The metrics at a step."""
        return {row.metric: row.value for row in self.rows if row.step == step}

    def write(self, path: Path) -> None:
        """Writes it into the workdir of its run."""
        write_text(path / RECORD, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read_record(path: Path) -> RunRecord | None:
    """Reads the record in a run's workdir, None if there is none; UvitError if it is damaged."""
    file = path / RECORD
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        rows = tuple(Measurement(**row) for row in found.pop("rows"))
        return RunRecord(rows=rows, **found)
    except (ValueError, KeyError, TypeError) as error:
        raise UvitError(
            f"{file} is damaged ({error}); remove it and rerun to measure the run again"
        ) from None


RunRecords = Mapping[tuple[str, int], RunRecord]
"""Records by name and seed of the run."""

COLUMNS = ("group", "variant", "seed", "step", "metric", "value", "params", "seconds")


def long_rows(plan: AblationPlan, records: RunRecords) -> list[dict[str, Any]]:
    """All measurements in long format, one row for each (group, variant) of a run."""
    return [
        dict(
            zip(
                COLUMNS,
                (
                    *(group, variant, seed, row.step, row.metric, row.value),
                    *(record.params, round(record.seconds, 1)),
                ),
                strict=True,
            )
        )
        for (group, variant), name in plan.names.items()
        for (known, seed), record in sorted(records.items())
        if known == name
        for row in record.rows
    ]


def summarise(plan: AblationPlan, records: RunRecords) -> dict[str, dict[str, dict[str, Any]]]:
    """By group and variant: `params`, `seeds`, mean `seconds`; by metric the `mean` at the last
    step and the paired `difference` to the group's baseline (None for the baseline), as
    `Interval`s."""
    steps = {job.name: job.run.train.steps for job in plan.jobs}

    def values(name: str) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for (known, seed), record in sorted(records.items()):
            if known == name:
                for metric, value in record.at(steps[name]).items():
                    found.setdefault(metric, {})[seed] = value
        return found

    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for (group, variant), name in plan.names.items():
        baseline = plan.names[group, plan.config.baseline[group]]
        of_baseline = values(baseline)
        mine = values(name)
        metrics = {
            metric: {
                "mean": mean_interval(list(by_seed.values())),
                "difference": None
                if name == baseline
                else paired_interval(by_seed, of_baseline.get(metric, {})),
            }
            for metric, by_seed in mine.items()
        }
        seeds = sorted(seed for known, seed in records if known == name)
        seconds = [records[name, seed].seconds for seed in seeds]
        summary.setdefault(group, {})[variant] = {
            "params": plan.params[name],
            "seeds": seeds,
            "seconds": sum(seconds) / len(seconds) if seconds else None,
            "metrics": metrics,
        }
    return summary


def write_results(plan: AblationPlan, records: RunRecords, workdir: Path) -> dict[str, Any]:
    """Writes `results.csv`, `results.json` and `table.md`, each atomically.

    Returns:
      The content of `results.json`.
    """
    rows, summary = long_rows(plan, records), summarise(plan, records)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(workdir / "results.csv", text.getvalue())
    results = {
        "done": len(records),
        "runs": len(plan.jobs),
        "baseline": {g: plan.config.baseline[g] for g in plan.config.groups},
        "summary": _json(summary),
        "rows": rows,
    }
    write_text(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(workdir / "table.md", table(plan, summary, len(records)))
    return results


def table(plan: AblationPlan, summary: Mapping[str, Any], done: int) -> str:
    """Markdown tables of losses, distances and binding, one per group, a row per variant."""
    jobs = len(plan.jobs)
    lines = [
        f"{done} of {jobs} runs, with up to {plan.config.seeds} seeds. Values are means over "
        "seeds ± half of the 95 % interval (Student's t); Δ is the mean difference to the "
        "baseline, paired by seed, with its own interval, bold where that excludes 0. Lower is "
        "better, of binding/… higher. results.csv has all measurements.",
    ]
    for group, variants in summary.items():
        measured = {metric for variant in variants.values() for metric in variant["metrics"]}
        names = sorted(filter(_tabled, measured), reverse=True)
        baseline = plan.config.baseline[group]
        head = ["variant", "parameters", "seeds", "seconds per run"]
        head += [title for m in names for title in (m, f"Δ to {baseline}")]
        lines += ["", f"### {group}", "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
        for variant, found in variants.items():
            label = f"{variant} (baseline)" if variant == baseline else variant
            seconds = "–" if found["seconds"] is None else f"{found['seconds']:.0f}"
            cells = [label, f"{found['params'] / 1e6:.2f}M", str(len(found["seeds"])), seconds]
            for metric in names:
                here = found["metrics"].get(metric, {})
                cells.append(_shown(here.get("mean")))
                difference = here.get("difference")
                cell = _shown(difference, signed=True)
                cells.append(f"**{cell}**" if difference and difference.excludes_zero else cell)
            lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _tabled(metric: str) -> bool:
    named = metric in ("validation_loss", "fid") or metric.startswith("binding/")
    return named or metric.endswith("_frechet_distance")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(interval: Interval | None, *, signed: bool = False) -> str:
    """`0.0412 ± 0.0007`, with about four significant digits."""
    if interval is None:
        return "–"
    size = max(abs(interval.mean), 0 if math.isnan(interval.low) else interval.half_width)
    digits = max(0, 3 - math.floor(math.log10(size))) if size else 4
    sign = "+" if signed else ""
    mean = f"{interval.mean:{sign}.{digits}f}"
    return mean if interval.count < 2 else f"{mean} ± {interval.half_width:.{digits}f}"


def _json(value: Any) -> Any:
    """Intervals as dicts, NaN as null."""
    if isinstance(value, Interval):
        return _json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: _json(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
