"""Scores the samples of a comparison and writes the results table, manifest, tables and report."""

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.subjects import result_rows
from experiments.subjects.evaluation_cases import class_cases
from experiments.subjects.report_markdown import markdown
from experiments.subjects.report_page import page
from experiments.subjects.results import (
    Manifest,
    MethodInfo,
    Score,
    read_manifest,
    read_scores,
    write_scores,
)
from experiments.subjects.sample_grids import grids
from experiments.subjects.scoring import score_images, tuning_objective
from experiments.subjects.workspace import Workspace
from uvit_jax.config import to_dict
from uvit_jax.io import write_text
from uvit_jax.models.cost import forward_cost

RESULTS = "results.csv.gz"


def write(space: Workspace) -> dict[str, Any]:
    """Scores all stored samples and writes `RESULTS`, manifest.json, tables.md and report.html."""
    images = {
        (method, setting): space.images(method, setting)
        for setting in space.config.settings
        for method in space.methods()
        if space.has_images(method, setting)
    }
    rows = _rows(space, images)
    manifest = _manifest(space, rows)
    settings = {name: space.cases(name) for name in space.config.settings}
    samples = grids(settings, images, manifest.methods)
    write_scores(space.workdir / RESULTS, rows)
    manifest.write(space.workdir / "manifest.json")
    write_text(space.workdir / "tables.md", markdown(rows, manifest))
    write_text(space.workdir / "report.html", page(rows, manifest, samples))
    return {
        "rows": len(rows),
        "methods": list(manifest.methods),
        "report": str(space.workdir / "report.html"),
    }


def write_from_results(folder: Path) -> dict[str, Any]:
    """Writes report.html, without samples, from the results table and manifest in a folder.

    Raises:
      UvitError: if one of the files is missing or damaged.
    """
    rows, manifest = read_scores(folder / RESULTS), read_manifest(folder / "manifest.json")
    write_text(folder / "report.html", page(rows, manifest))
    return {
        "rows": len(rows),
        "methods": list(manifest.methods),
        "report": str(folder / "report.html"),
    }


def _rows(space: Workspace, images: Mapping[tuple[str, str], np.ndarray]) -> list[Score]:
    """All rows, by method and setting, anchors included."""
    found: list[Score] = []
    main = space.config.main
    for (method, setting), samples in images.items():
        cases, style = space.cases(setting), space.style(method)
        scores = score_images(space.scorer, cases, samples)
        found += result_rows.rows_of(method, style, cases, scores, main=main)
        found += result_rows.diversity_rows(method, style, cases, samples, main)
    for name, method in space.config.arms.items():
        if method.method == "lora" and space.has_images(name, main):
            found += _curve_rows(space, name)
    return found


def _curve_rows(space: Workspace, name: str) -> list[Score]:
    """Scores of a LoRA method along its steps: on the subjects, on the class, and at best."""
    scorer, main, style = space.scorer, space.config.main, space.style(name)
    cases, found = space.cases(main), []
    by_step, scores = {}, {}
    for step in space.grid(name).steps:
        images = space.store.read(f"{name}@{step}", main)
        by_step[step] = score_images(scorer, cases, images)
        scores[step] = tuning_objective(scorer, by_step[step]).reshape(images.shape[:2])
        setting = f"lora_step={step}"
        found += result_rows.rows_of(name, style, cases, by_step[step], main=main, setting=setting)
    identity = [metric for metric in scorer.metrics if metric.startswith("identity")][:1]
    prompt = [m for m, about in scorer.metrics.items() if about.role == "text"][:1]
    of_class = class_cases(cases, space.config.word)
    for step in (0, *space.grid(name).steps):
        images = space.store.read(f"{name}@{step}~nobody", main)
        class_scores = score_images(scorer, of_class, images)
        setting = f"forgetting={step}"
        rows = result_rows.rows_of(name, style, of_class, class_scores, main=main, setting=setting)
        found += [dataclasses.replace(r, metric="pres") for r in rows if r.metric in identity]
        found += [r for r in rows if r.metric in prompt]
    chosen = np.empty((len(cases), space.config.samples), int)
    for group in {q.group for q in cases}:
        own = [i for i, q in enumerate(cases) if q.group == group]
        chosen[own] = max(scores, key=lambda step, own=own: scores[step][own].mean())
    best = {
        metric: np.array([by_step[step][metric][i] for i, step in enumerate(chosen.flat)])
        for metric in scorer.metrics
    }
    found += result_rows.rows_of(f"{name}_best", style, cases, best, main=main)
    return found


def _manifest(space: Workspace, rows: Sequence[Score]) -> Manifest:
    config = space.config
    present = {row.method for row in rows}
    methods = {}
    for name, method_config in config.arms.items():
        costs = dict(space.store.noted(f"costs/{name}") or {})
        costs.pop("recipe", None)
        costs = {k: tuple(v) if isinstance(v, list) else v for k, v in costs.items()}
        for method, compose in space.variants(name).items():
            methods[method] = MethodInfo(title=f"{method_config.title}, {compose}")
        methods[name] = MethodInfo(title=method_config.title, **costs)
        best = f"{method_config.title}, each subject's best step (an oracle's choice)"
        methods[f"{name}_best"] = MethodInfo(title=best, anchor=True)
    methods |= {n: MethodInfo(title=t, anchor=True) for n, t in result_rows.ANCHORS.items()}
    methods = {name: method for name, method in methods.items() if name in present}
    metrics = {**space.scorer.metrics, "diversity": result_rows.DIVERSITY, "pres": result_rows.PRES}
    used = {row.metric for row in rows}
    return Manifest(
        title=config.title,
        commit=_commit(),
        config={
            "comparison": to_dict(config),
            "training": {
                name: {
                    "flops": space.network(name).train_flops,
                    "parameters": space.network(name).model.num_params,
                    "forward_macs": forward_cost(space.network(name).run.model).total,
                }
                for name in space.runs
                if space.ready(name)
            },
            "recipes": {
                name: found["recipe"]
                for name in config.arms
                if (found := space.store.noted(f"costs/{name}")) and "recipe" in found
            },
        },
        hardware=f"{jax.device_count()} {jax.devices()[0].device_kind} device",
        timing="wall seconds without compilation: per image in batches of "
        f"{config.batch_size}, cached and uncached alternately; fine-tuning per subject, "
        f"{config.at_once} at once",
        methods=methods,
        metrics={n: m for n, m in metrics.items() if n in used},
        baseline=config.baseline if config.baseline in methods else next(iter(methods)),
        notes=config.notes,
    )


def _commit() -> str:
    """The commit of the code, "unknown" outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
