"""`experiments.ablate` on runs of seconds: shared runs, resumption, errors before anything runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments.ablation.runs
from experiments import ablate
from experiments.ablation.measurement import RunMeasurer
from tests.helpers.running import ROOT
from uvit_jax.errors import UvitError

CONFIG = ROOT / "tests/configs/tiny_ablations.py"


def run(workdir, *args):
    """What `--json` says after a whole ablation."""
    results = workdir.parent / "results.json"
    args = (f"--config={CONFIG}", f"--workdir={workdir}", f"--json={results}", *args)
    assert ablate.main(list(map(str, args))) == 0
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ablation") / "whole"
    return workdir, run(workdir)


def numbers(results):
    """Every number but the seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in results["rows"]]


def test_every_run_is_trained_once_and_is_in_every_group(undisturbed):
    workdir, results = undisturbed
    runs = sorted(str(p.parent.relative_to(workdir)) for p in workdir.glob("runs/*/*/config.json"))
    names = ("base", "rate-fast")
    assert runs == [f"runs/{name}/seed{seed}" for name in names for seed in (0, 1)]
    by_group = {g: [r for r in numbers(results) if r["group"] == g] for g in ("rate", "time")}
    shared = [{**r, "group": "rate", "variant": "slow"} for r in by_group["time"]]
    assert shared == [r for r in by_group["rate"] if r["variant"] == "slow"]
    # Two checkpoints' losses and one distance, two seeds, three places in the tables.
    assert len(results["rows"]) == 3 * 2 * 3
    assert all(np.isfinite(row["value"]) for row in results["rows"])


def test_differences_are_paired_by_seed(undisturbed):
    _, results = undisturbed
    last = {
        (r["variant"], r["seed"]): r["value"]
        for r in results["rows"]
        if r["step"] == 4 and r["metric"] == "validation_loss" and r["group"] == "rate"
    }
    differences = [last["fast", seed] - last["slow", seed] for seed in (0, 1)]
    found = results["summary"]["rate"]["fast"]["metrics"]["validation_loss"]
    assert found["difference"]["mean"] == pytest.approx(np.mean(differences), rel=1e-6)
    assert found["difference"]["count"] == 2 and found["difference"]["low"] < np.mean(differences)
    published = results["summary"]["time"]["token"]
    assert published["metrics"]["validation_loss"]["difference"] is None


def test_tables_and_images(undisturbed):
    workdir, results = undisturbed
    with (workdir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["value"]) for r in rows] == [r["value"] for r in results["rows"]]
    table = (workdir / "table.md").read_text()
    assert "slow (baseline)" in table and "Student's t" in table and "4 of 4 runs" in table
    sheets = ("base", "rate-fast", "rate", "time")
    sizes = {name: Image.open(workdir / "samples" / f"{name}.png").size for name in sheets}
    assert sizes["rate"][1] > 1.5 * sizes["time"][1]  # two rows and one
    pytest.importorskip("matplotlib")
    assert Image.open(workdir / "curves.png").size[0] > 500


@pytest.mark.slow
def test_a_killed_ablation_resumes_with_the_same_results(undisturbed, tmp_path, monkeypatch):
    workdir = tmp_path / "killed"
    calls = []

    def dies(self, job, path, known):
        calls.append(job.title)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, job, path, known)

    real = RunMeasurer.__call__
    monkeypatch.setattr(RunMeasurer, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        run(workdir)
    assert "1 of 4 runs" in (workdir / "table.md").read_text()
    # All of the killed run but its first checkpoint is lost.
    killed = workdir / "runs/rate-fast/seed0"
    (killed / "checkpoints/4").rename(tmp_path / "lost")
    monkeypatch.setattr(RunMeasurer, "__call__", real)
    assert numbers(run(workdir)) == numbers(undisturbed[1])

    trained = []
    monkeypatch.setattr(experiments.ablation.runs, "train", lambda *args: trained.append(args))
    assert numbers(run(workdir, "--group=time")) == [
        row for row in numbers(undisturbed[1]) if row["group"] == "time"
    ]
    assert not trained


def test_bad_configs_raise_before_anything_runs(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.ablation.runs, "train", None)

    def fails(message, *args, workdir=tmp_path / "new"):
        with pytest.raises(UvitError, match=message):
            run(workdir, *args)
        assert not (tmp_path / "new").exists()

    def variant(changes):
        return f"--config.groups.time={{'token': {{}}, 'x': {changes}}}"

    fails("'tim'; did you mean 'time'", "--group=rate,tim")
    fails("group time, variant x: .*skp is not a known key", variant({"model.backbone.skp": 1}))
    fails("variant x: .*'addd'", variant({"model.backbone.skip": "addd"}))
    fails("variant x: config.train.steps ", variant({"train.steps.x": 1}))
    fails("variant x: .*base's data", variant({"data.flip": False}))
    fails("baseline.time must name a variant", "--config.baseline.time=adaln")
    fails("seeds must be at least 1", "--seeds=0")
    fails("is empty|cannot open", "--config.metrics.split=validation")
    fails("unknown encoder 'pixel'.*metrics.samples=0", "--config.metrics.encoder=pixel")
    fails("metrics.probe needs references.*False", "--config.metrics.probe=True")
    fails("groups is missing", f"--config={ROOT / 'tests/configs/tiny.py'}")

    before = {p: p.stat().st_mtime_ns for p in Path(undisturbed[0]).rglob("*") if p.is_file()}
    depth = "--config.groups.rate={'slow': {}, 'fast': {'model.backbone.depth': 4}}"
    for message, flag in (
        ("differs in optimizer.learning_rate", "--config.optimizer.learning_rate=0.5"),
        ("differs in metrics.validation", "--config.metrics.validation=32"),
        ("differs in sample.clip", "--config.sample.clip=0.0"),
        ("rate/fast seed 0: .*differs in model", depth),
    ):
        fails(message, flag, workdir=undisturbed[0])
    (tmp_path / "stray").touch()
    fails("holds no ablation", workdir=tmp_path)
    assert before == {
        p: p.stat().st_mtime_ns for p in Path(undisturbed[0]).rglob("*") if p.is_file()
    }
