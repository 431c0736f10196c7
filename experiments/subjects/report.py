"""Scores the samples of a comparison and writes the results table, manifest, tables and report."""

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.subjects import result_rows
from experiments.subjects.evaluation_cases import class_cases, grouped
from experiments.subjects.report_markdown import markdown
from experiments.subjects.report_page import page
from experiments.subjects.result_rows import RENDERED_ANCHORS
from experiments.subjects.results import (
    Manifest,
    MethodInfo,
    MetricInfo,
    Score,
    read_manifest,
    read_scores,
    write_scores,
)
from experiments.subjects.sample_grids import grids
from experiments.subjects.scoring import score_images, tuning_objective
from experiments.subjects.workspace import Workspace
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.models.cost import forward_cost

RESULTS = "results.csv.gz"
SHOWN = 8
"""Subjects of each setting whose samples the report shows."""


def write(space: Workspace) -> dict[str, Any]:
    """Scores all stored samples and writes `RESULTS`, manifest.json, tables.md and report.html.

    Earlier results of samples that are no longer there, or of networks that are not here, are kept:
    a comparison can be evaluated network by network, on several machines, from a workdir without
    its samples and networks. Rendered anchors, which no network changes, are scored once.
    """
    present = [
        (method, setting, seed)
        for setting in space.config.settings
        for method in space.methods()
        for seed in space.config.seeds
        if space.has_images(method, setting, seed)
    ]
    earlier = _earlier(space)
    scored = {_part(row) for row in earlier.rows if row.method in RENDERED_ANCHORS}
    known = {key for key in present if _parts(space, *key) <= scored}
    images = {key: space.images(*key) for key in present if key not in known}
    rows = _sample_rows(space, images)
    if known and {row.metric for row in rows} - earlier.metrics.keys():  # which anchors lack
        others = {key: space.images(*key) for key in known}
        rows, images = rows + _sample_rows(space, others), images | others
    rows += _finetuned_rows(space)
    manifest = _manifest(space, rows) if rows else earlier.manifest
    if earlier.manifest is not None:
        rows, manifest = _with_earlier(space, rows, manifest, earlier)
    rows = _in_order(space, rows)
    settings = {name: space.cases(name) for name in space.config.settings}
    first: dict[tuple[str, str], np.ndarray] = {}
    for key in present:
        method, setting, _ = key
        if (method, setting) not in first:
            count = sum(map(len, grouped(settings[setting])[:SHOWN]))
            first[method, setting] = images[key] if key in images else space.images(*key, count)
    samples = grids(settings, first, manifest.methods, SHOWN)
    write_scores(space.workdir / RESULTS, rows)
    manifest.write(space.workdir / "manifest.json")
    write_text(space.workdir / "tables.md", markdown(rows, manifest))
    write_text(space.workdir / "report.html", page(rows, manifest, samples))
    return {
        "rows": len(rows),
        "methods": list(manifest.methods),
        "report": str(space.workdir / "report.html"),
    }


class _Earlier(NamedTuple):
    """What a workdir has already: rows, and their manifest; none of both at first."""

    rows: list[Score]
    manifest: Manifest | None

    @property
    def metrics(self) -> Mapping[str, MetricInfo]:
        return {} if self.manifest is None else self.manifest.metrics


def _earlier(space: Workspace) -> _Earlier:
    """The workdir's results.

    Raises:
      UvitError: if they are damaged, or a metric has another encoder now.
    """
    files = [space.workdir / name for name in (RESULTS, "manifest.json")]
    if not all(file.exists() for file in files):
        return _Earlier([], None)
    rows, manifest = read_scores(files[0]), read_manifest(files[1])
    for metric, about in space.scorer.metrics.items():
        encoder = manifest.metrics.get(metric, about).encoder
        if encoder != about.encoder:
            raise UvitError(
                f"{files[0]} has {metric} of {encoder!r}, and it is measured with "
                f"{about.encoder!r} now; move the file away to score the workdir's samples again"
            )
    return _Earlier(rows, manifest)


def _part(row: Score) -> tuple:
    """What is computed as a whole: in `count`, for example, each number of subjects is a part."""
    return row.method, row.network, row.setting, row.split, row.subjects, row.views


def _parts(space: Workspace, method: str, setting: str, seed: int) -> set[tuple]:
    """The parts that the cases of a setting count in."""
    return {
        (method, seed, name, split, len(case.names), case.views)
        for case in space.cases(setting)
        for name, split in result_rows.settings_of(case, space.config.main)
    }


def _in_order(space: Workspace, rows: Sequence[Score]) -> list[Score]:
    """Rows by setting and method as they are in the config, whatever was computed when."""
    config = space.config
    settings = [
        name
        for setting in config.settings
        for case in space.cases(setting)[:1]
        for name, _ in result_rows.settings_of(case, config.main)
    ]
    orders = [
        {name: i for i, name in reversed(list(enumerate(names)))}
        for names in (settings, space.methods())
    ]

    def position(row: Score) -> tuple:
        places = zip(orders, (row.setting, row.method), strict=True)
        return (*(order.get(name, len(order)) for order, name in places), row.key)

    return sorted(rows, key=position)


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


def _sample_rows(
    space: Workspace, images: Mapping[tuple[str, str, int], np.ndarray]
) -> list[Score]:
    """The rows of samples by method, setting and seed, anchors included."""
    found: list[Score] = []
    main = space.config.main
    for (method, setting, seed), samples in images.items():
        cases, style = space.cases(setting, method), space.style(method)
        scores = score_images(space.scorer, cases, samples)
        preferred = space.notes.noted(f"preferred/s{seed}/{method}/{setting}")
        if preferred:
            scores["preferred"] = np.repeat(
                np.array(preferred["preferred"], np.float64), samples.shape[1]
            )
        options = dict(main=main, network=seed)
        found += result_rows.rows_of(method, style, cases, scores, **options)
        found += result_rows.diversity_rows(method, style, cases, samples, **options)
    return found


def _finetuned_rows(space: Workspace) -> list[Score]:
    """The rows of gates and curves of fine-tuned methods."""
    found, main = [], space.config.main
    for name, method in space.config.arms.items():
        if method.method == "context":
            continue
        for seed in space.available(name):
            if space.has_images(name, main, seed):
                found += _gate_rows(space, name, seed)
        for seed in space.available(name)[:1]:  # curves are of one network
            if space.has_images(name, main, seed):
                found += _curve_rows(space, name, seed)
    return found


def _gate_rows(space: Workspace, name: str, seed: int) -> list[Score]:
    """Identity of the references generated again, and of scenes with an unused name."""
    main, style, store = space.config.main, space.style(name), space.store(seed)
    cases = space.cases(main, name)
    sets = {"unused_name": (class_cases(cases, space.config.word), f"{name}~nobody")}
    if space.has_portraits:
        firsts = [part[0] for part in grouped(cases)]
        again = [case for first in firsts for case in space.world.portraits(first)]
        sets["portraits"] = again, f"{name}~portraits"
    found = []
    for setting, (own, stored) in sets.items():
        scores = score_images(space.scorer, own, store.read(stored, main))
        scores = {metric: scores[metric] for metric in _identities(space)}
        options = dict(main=main, setting=setting, network=seed)
        found += result_rows.rows_of(name, style, own, scores, **options)
    return found


def _identities(space: Workspace) -> list[str]:
    return [m for m, about in space.scorer.metrics.items() if about.role == "identity"]


def _curve_rows(space: Workspace, name: str, seed: int) -> list[Score]:
    """Scores of fine-tuning along its steps, with one network: on the subjects, on the class, and
    at best."""
    scorer, main, style, store = (
        space.scorer,
        space.config.main,
        space.style(name),
        space.store(seed),
    )
    cases, found = space.cases(main, name), []
    by_step, scores = {}, {}
    for step in space.grid(name).steps:
        images = store.read(f"{name}@{step}", main)
        by_step[step] = score_images(scorer, cases, images)
        scores[step] = tuning_objective(scorer, by_step[step]).reshape(images.shape[:2])
        options = dict(main=main, setting=f"lora_step={step}", network=seed)
        found += result_rows.rows_of(name, style, cases, by_step[step], **options)
    identity = _identities(space)[:1]
    prompt = [m for m, about in scorer.metrics.items() if about.role == "text"][:1]
    of_class = class_cases(cases, space.config.word)
    for step in space.grid(name).steps:
        class_scores = score_images(scorer, of_class, store.read(f"{name}@{step}~nobody", main))
        options = dict(main=main, setting=f"forgetting={step}", network=seed)
        rows = result_rows.rows_of(name, style, of_class, class_scores, **options)
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
    found += result_rows.rows_of(f"{name}_best", style, cases, best, main=main, network=seed)
    return found


def _manifest(space: Workspace, rows: Sequence[Score]) -> Manifest:
    config, notes = space.config, space.notes
    present = {row.method for row in rows}
    methods, recipes = {}, {}
    for name, arm in config.arms.items():
        if not space.available(name):
            continue
        finetuned = arm.method != "context"
        costs = dict(notes.noted(f"costs/{name}") or {})
        recipe = notes.noted(f"recipes/{name}") or {}
        tuned = notes.noted(f"finetuning/s{space.available(name)[0]}/{name}") or {}
        costs |= {key: value for key, value in tuned.items() if key != "recipe"}
        costs = {k: tuple(v) if isinstance(v, list) else v for k, v in costs.items()}
        costs["tuning_flops"] = recipe.get("tuning_flops", 0.0)
        costs["validation"] = recipe.get("score", 0.0)
        recipes[name] = {"tuned": recipe, "recipe": tuned.get("recipe")}
        for method, compose in space.variants(name).items():
            title = f"{arm.title}, {compose}"
            methods[method] = MethodInfo(title=title, finetuned=finetuned)
        methods[name] = MethodInfo(title=arm.title, finetuned=finetuned, **costs)
        best = f"{arm.title}, each subject's best step (an oracle's choice)"
        methods[f"{name}_best"] = MethodInfo(title=best, anchor=True)
    methods |= {n: MethodInfo(title=t, anchor=True) for n, t in result_rows.ANCHORS.items()}
    methods = {name: method for name, method in methods.items() if name in present}
    metrics = {
        **space.scorer.metrics,
        "preferred": result_rows.PREFERRED,
        "diversity": result_rows.DIVERSITY,
        "pres": result_rows.PRES,
    }
    used = {row.metric for row in rows}
    cells = {}
    for key, one in config.primary.items():
        case = space.cases(one.setting or config.main)[0]
        setting, split = result_rows.settings_of(case, config.main)[0]
        cells[key] = (setting, split, len(case.names), case.views)
    networks = [
        space.network(name, seed)
        for seed in config.seeds
        for name in space.runs
        if space.ready(name, seed)
    ]
    return Manifest(
        title=config.title,
        commit=_commit(),
        config={
            "comparison": to_dict(config),
            "training": {
                network.name: {
                    "flops": network.train_flops,
                    "parameters": network.model.num_params,
                    "forward_macs": forward_cost(network.run.model).total,
                }
                for network in networks
            },
            "recipes": recipes,
        },
        hardware=f"{jax.device_count()} {jax.devices()[0].device_kind} device",
        timing="wall seconds without compilation: per image in batches of "
        f"{config.batch_size}, all methods in turn in one run; fine-tuning per subject, "
        f"{config.at_once} at once",
        methods=methods,
        metrics={n: m for n, m in metrics.items() if n in used},
        baseline=config.baseline if config.baseline in methods else next(iter(methods)),
        primary={k: one for k, one in config.primary.items() if one.method in methods},
        cells=cells,
        notes=config.notes,
    )


def _with_earlier(
    space: Workspace, rows: list[Score], manifest: Manifest, earlier: _Earlier
) -> tuple[list[Score], Manifest]:
    """The results with those of the workdir that were not computed again."""
    computed, before = {_part(row) for row in rows}, earlier.manifest
    rows = rows + [row for row in earlier.rows if _part(row) not in computed]
    known = {**before.methods, **manifest.methods}
    order = [*space.methods(), *known]
    methods = {name: known[name] for name in dict.fromkeys(order) if name in known}
    config = dict(manifest.config)
    for key in ("training", "recipes"):
        config[key] = {**before.config.get(key, {}), **manifest.config.get(key, {})}
    primary = space.config.primary
    return rows, dataclasses.replace(
        manifest,
        config=config,
        methods=methods,
        metrics={**before.metrics, **manifest.metrics},
        baseline=space.config.baseline if space.config.baseline in methods else manifest.baseline,
        primary={key: one for key, one in primary.items() if one.method in methods},
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
