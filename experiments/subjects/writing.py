"""Judges what a comparison has and writes results.csv, manifest.json, tables.md and report.html."""

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.subjects import tables
from experiments.subjects.judging import judged, score
from experiments.subjects.questions import nobody
from experiments.subjects.report_page import page
from experiments.subjects.results import Manifest, Method, Row, text
from experiments.subjects.workspace import Workspace
from uvit_jax.config import to_dict
from uvit_jax.io import write_text
from uvit_jax.models.cost import forward_cost


def write(space: Workspace) -> dict[str, Any]:
    """Judges all pictures there are and writes the table, the manifest and the page."""
    answers = {
        (method, setting): space.answers(method, setting)
        for setting in space.config.settings
        for method in space.methods()
        if space.answered(method, setting)
    }
    rows = _rows(space, answers)
    manifest = _manifest(space, rows)
    settings = {name: space.questions(name) for name in space.config.settings}
    pictures = tables.grids(settings, answers, manifest.methods)
    write_text(space.workdir / "results.csv", text(rows))
    manifest.write(space.workdir / "manifest.json")
    write_text(space.workdir / "tables.md", tables.markdown(rows, manifest))
    write_text(space.workdir / "report.html", page(rows, manifest, pictures))
    return {
        "rows": len(rows),
        "methods": list(manifest.methods),
        "report": str(space.workdir / "report.html"),
    }


def _rows(space: Workspace, answers: Mapping[tuple[str, str], np.ndarray]) -> list[Row]:
    """All rows of what has been answered, by method and setting, anchors included."""
    found: list[Row] = []
    main = space.config.main
    for (method, setting), pictures in answers.items():
        asked, style = space.questions(setting), space.style(method)
        seen = judged(space.judge, asked, pictures)
        found += tables.rows_of(method, style, asked, seen, main=main)
        found += tables.diversity_rows(method, style, asked, pictures, main)
    for name, arm in space.config.arms.items():
        if arm.method == "lora" and space.answered(name, main):
            found += _curve_rows(space, name)
    return found


def _curve_rows(space: Workspace, name: str) -> list[Row]:
    """The way of a LoRA arm: after how many steps what, and at best."""
    judge, main, style = space.judge, space.config.main, space.style(name)
    asked, found = space.questions(main), []
    by_step, scores = {}, {}
    for step in space.grid(name).steps:
        answers = space.store.read(f"{name}@{step}", main)
        by_step[step] = judged(judge, asked, answers)
        scores[step] = score(judge, by_step[step]).reshape(answers.shape[:2])
        setting = f"lora_step={step}"
        found += tables.rows_of(name, style, asked, by_step[step], main=main, setting=setting)
    identity = [metric for metric in judge.metrics if metric.startswith("identity")][:1]
    prompt = [m for m, about in judge.metrics.items() if about.role == "text"][:1]
    unnamed = nobody(asked, space.config.word)
    for step in (0, *space.grid(name).steps):
        seen = judged(judge, unnamed, space.store.read(f"{name}@{step}~nobody", main))
        setting = f"forgetting={step}"
        rows = tables.rows_of(name, style, unnamed, seen, main=main, setting=setting)
        found += [dataclasses.replace(r, metric="pres") for r in rows if r.metric in identity]
        found += [r for r in rows if r.metric in prompt]
    chosen = np.empty((len(asked), space.config.samples), int)
    for group in {q.group for q in asked}:
        own = [i for i, q in enumerate(asked) if q.group == group]
        chosen[own] = max(scores, key=lambda step, own=own: scores[step][own].mean())
    best = {
        metric: np.array([by_step[step][metric][i] for i, step in enumerate(chosen.flat)])
        for metric in judge.metrics
    }
    found += tables.rows_of(f"{name}_best", style, asked, best, main=main)
    return found


def _manifest(space: Workspace, rows: Sequence[Row]) -> Manifest:
    config = space.config
    present = {row.method for row in rows}
    methods = {}
    for name, arm in config.arms.items():
        costs = dict(space.store.noted(f"costs/{name}") or {})
        costs.pop("recipe", None)
        costs = {k: tuple(v) if isinstance(v, list) else v for k, v in costs.items()}
        for method, compose in space.variants(name).items():
            methods[method] = Method(title=f"{arm.title}, {compose}")
        methods[name] = Method(title=arm.title, **costs)
        best = f"{arm.title}, each subject's best step (an oracle's choice)"
        methods[f"{name}_best"] = Method(title=best, anchor=True)
    methods |= {n: Method(title=t, anchor=True) for n, t in tables.ANCHORS.items()}
    methods = {name: method for name, method in methods.items() if name in present}
    metrics = {**space.judge.metrics, "diversity": tables.DIVERSITY, "pres": tables.PRES}
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
        timing="wall seconds without compilation: an image in batches of "
        f"{config.batch_size}, cached and uncached in turn; fine-tuning by the subject, "
        f"{config.at_once} at once",
        methods=methods,
        metrics={n: m for n, m in metrics.items() if n in used},
        baseline=config.baseline if config.baseline in methods else next(iter(methods)),
        notes=config.notes,
    )


def _commit() -> str:
    """The code's commit, "unknown" outside of a checkout."""
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
