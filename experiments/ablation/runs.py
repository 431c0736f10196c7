"""Runs an ablation: trains and measures missing runs, and updates the results after each.

Its workdir holds `ablation.json` (the base config and the metrics), `runs/NAME/seedK` (each the
workdir of a training run), `results.csv`, `results.json`, `table.md`, `curves.png` and `samples/`.
An interrupted ablation resumes from it.
"""

import gc
import itertools
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from experiments.ablation import plots
from experiments.ablation.measurement import RunMeasurer
from experiments.ablation.run_records import RunRecord, RunRecords, read_record, write_results
from experiments.ablation.variants import AblationPlan, AblationRun, MetricsConfig
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.training.loop import train
from uvit_jax.training.metrics_writer import read_metrics
from uvit_jax.training.run_config import changed_keys
from uvit_jax.training.workdir import Workdir, filled

logger = logging.getLogger(__name__)


def run(plan: AblationPlan, workdir: Path) -> dict[str, Any] | None:
    """Runs what is missing of an ablation and prints a line per run.

    Returns:
      The content of `results.json`, or None if it was stopped by a signal (everything is saved).

    Raises:
      UvitError: if the workdir, or a run in it, belongs to another config (nothing is overwritten),
        or a run fails.
    """
    check(plan, workdir)
    measure = RunMeasurer(plan, workdir)
    main = jax.process_index() == 0
    if main:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "ablation.json", json.dumps(_settings(plan), indent=2) + "\n")
    known = {(job.name, job.seed): read_record(workdir / job.folder) for job in plan.jobs}
    # The record may be from before train.steps was raised.
    records = {
        (job.name, job.seed): found
        for job in plan.jobs
        if (found := known[job.name, job.seed]) and found.at(job.run.train.steps)
    }
    for number, job in enumerate(plan.jobs, start=1):
        path, key = workdir / job.folder, (job.name, job.seed)
        line = f"[{number}/{len(plan.jobs)}] {job.title}"
        if key in records:
            if main:
                print(f"{line}: {_summary(records[key], job)} (measured before)", flush=True)
            continue
        began = time.perf_counter()
        try:
            if train(job.run, path).stopped:
                if main:
                    print(f"{line}: stopped and saved; rerun the command to resume")
                return None
            earlier = known[key].rows if known[key] else ()
            rows = measure(job, path, list(earlier))
        except UvitError as error:
            raise UvitError(f"{job.title}: {error}") from None
        seconds = _seconds(path, job.run.train.batch_size)
        records[key] = RunRecord(params=plan.params[job.name], seconds=seconds, rows=tuple(rows))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("a run is measured")
        if main:
            records[key].write(path)
            _remove_checkpoints(path)
            _write_all(plan, records, workdir)
            took = time.perf_counter() - began
            print(f"{line}: {_summary(records[key], job)} ({took:.0f} s)", flush=True)
        # Frees the compiled programs of this model and their arrays.
        jax.clear_caches()
        gc.collect()
    if not main:
        return {}
    return _write_all(plan, records, workdir)


def check(plan: AblationPlan, workdir: Path) -> None:
    """Raises UvitError if the workdir, or a run's folder in it, belongs to another config."""
    file = workdir / "ablation.json"
    if not file.exists():
        own = {"compiled", "ablation.json.partial"}  # of an ablation that was killed at its start
        if workdir.is_file() or (
            workdir.exists() and any(p.name not in own for p in workdir.iterdir())
        ):
            raise UvitError(
                f"workdir {workdir} is not empty and holds no ablation (no ablation.json); "
                "pass a new folder with --workdir"
            )
        return
    try:
        old = json.loads(file.read_text())
        base = filled(old["base"])
        changed = changed_keys(base, plan.base)
        # Keys that did not exist yet had their default values.
        defaults = {"metrics": to_dict(MetricsConfig()), "sample": base["sample"]}
        for key in ("metrics", "sample"):
            now = _settings(plan)[key]
            before = defaults[key] | old[key]
            changed += [f"{key}.{k}" for k in now if before.get(k) != now[k]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UvitError(f"{file} is damaged: {error}") from None
    if changed:
        raise UvitError(
            f"workdir {workdir} belongs to an ablation of another config; it differs in "
            f"{', '.join(changed)}. Nothing was changed; pass another --workdir"
        )
    for job in plan.jobs:
        path = workdir / job.folder
        try:
            Workdir(path).check(to_dict(job.run))
        except UvitError as error:
            raise UvitError(f"{job.title}: {error}") from None


def _write_all(plan: AblationPlan, records: RunRecords, workdir: Path) -> dict[str, Any]:
    """Writes all tables and plots; returns the content of `results.json`."""
    results = write_results(plan, records, workdir)
    plots.sheets(plan, workdir)
    try:
        plots.curves(plan, records, workdir / "curves.png")
    except UvitError as error:  # no matplotlib: the tables do not need it
        logger.warning("%s", error)
    return results


def _settings(plan: AblationPlan) -> dict[str, Any]:
    """The settings that all measurements depend on, fixed for a workdir."""
    settings = {
        "base": plan.base,
        "metrics": to_dict(plan.config.metrics),
        "sample": plan.base["sample"],
    }
    return json.loads(json.dumps(settings))


def _summary(record: RunRecord, job: AblationRun) -> str:
    last = record.at(job.run.train.steps)
    return ", ".join(f"{name} {value:.4g}" for name, value in last.items())


def _seconds(path: Path, batch_size: int) -> float:
    """Training time of all starts of a run, from its logged rates, without the first step, which
    compiles."""
    rows = read_metrics(path / "metrics.jsonl")
    pairs = itertools.pairwise(rows)
    return sum((b["step"] - a["step"]) * batch_size / b["images_per_second"] for a, b in pairs)


def _remove_checkpoints(path: Path) -> None:
    """Removes all checkpoints of a measured run but the last, from which it could resume."""
    workdir = Workdir(path)
    for step in workdir.steps[:-1]:
        shutil.rmtree(workdir.checkpoints / str(step))
