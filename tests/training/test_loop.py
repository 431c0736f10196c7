"""What a run tells of itself, and what it offers: traces, times, a smaller optimizer."""

import copy
import json

import jax
import pytest

from experiments import train
from tests.helpers.running import ROOT, TINY, losses
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.training.clock import ACTIVITIES
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.workdir import Workdir

BFLOAT16 = "--config.optimizer.mu_dtype=bfloat16"


def run(workdir, *args):
    command = (f"--config={ROOT / TINY}", f"--workdir={workdir}", f"--json={workdir}.json", *args)
    assert train.main(command) == 0
    return json.loads(workdir.with_name(workdir.name + ".json").read_text())


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of six steps whose first moment is bfloat16, and of which two steps are traced."""
    workdir = tmp_path_factory.mktemp("traced") / "run"
    steps = ("--config.train.steps=6", "--config.train.profile_steps=(3, 4)")
    return workdir, run(workdir, BFLOAT16, *steps)


def test_seconds_add_up_to_wall_time(traced):
    workdir, summary = traced
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert sum(summary["seconds_by_place"].values()) == pytest.approx(summary["seconds"])
    logged = {name: sum(row[f"seconds/{name}"] for row in rows) for name in ACTIVITIES}
    for place, seconds in logged.items():
        assert 0 <= seconds <= summary["seconds_by_place"][place] + 1e-6
    # What comes after the last row is the last checkpoint and the last grid.
    after = summary["seconds"] - sum(logged.values())
    parts = [summary["seconds_by_place"][p] - logged[p] for p in ("checkpoint", "sample")]
    assert after == pytest.approx(sum(parts), abs=0.2)
    assert logged["compile"] == rows[0]["seconds/compile"] > 0  # in the first step, and only there
    assert logged["start"] > 0 and logged["input"] > 0 and summary["seconds_by_place"]["sample"] > 0


def test_speed_is_that_of_steps_and_input(traced):
    workdir, _ = traced
    config = json.loads((workdir / "config.json").read_text())
    flops = 6 * forward_cost(parse_run(config).model).total
    for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        seconds = row["seconds/step"] + row["seconds/input"]
        assert row["images_per_second"] == pytest.approx(16 / seconds)
        tflops = flops * row["images_per_second"] / 1e12
        assert row["model_tflops_per_second"] == pytest.approx(tflops)


def test_a_trace_holds_the_chosen_steps_and_no_other(traced):
    (trace,) = (traced[0] / "profile").rglob("*.xplane.pb")
    found = jax.profiler.ProfileData.from_file(str(trace))
    steps = {
        dict(event.stats)["step_num"]
        for plane in found.planes
        for line in plane.lines
        for event in line.events
        if event.name.startswith("train") and "step_num" in dict(event.stats)
    }
    assert steps == {3, 4}


def test_a_first_moment_in_bfloat16_resumes_bit_for_bit(traced, tmp_path):
    run(tmp_path / "run", BFLOAT16, "--config.train.steps=3")
    # To trace is free to change, and steps that were before are not an error.
    run(tmp_path / "run", BFLOAT16, "--config.train.steps=6", "--config.train.profile_steps=(2, 3)")
    assert losses(tmp_path / "run") == losses(traced[0])
    assert not (tmp_path / "run" / "profile").exists()
    with pytest.raises(UvitError, match=r"differs in optimizer\.mu_dtype"):
        run(tmp_path / "run", "--config.train.steps=7")


def test_a_workdir_without_a_newer_key_resumes(traced, tmp_path):
    raw = json.loads((traced[0] / "config.json").read_text())
    old = copy.deepcopy(raw)
    del old["model"]["backbone"]["qk_norm"], old["train"]["profile_steps"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    Workdir(tmp_path).check(raw)
    raw["model"]["backbone"]["qk_norm"] = "rms"
    with pytest.raises(UvitError, match=r"differs in model\.backbone\.qk_norm"):
        Workdir(tmp_path).check(raw)


@pytest.mark.parametrize("steps", ["(3,)", "(0, 2)", "(5, 4)", "(19, 21)"])
def test_steps_that_cannot_be_traced(steps, tmp_path):
    match = r"config\.train: profile_steps must be \(first, last\) with 1 <= .*steps=20, got"
    with pytest.raises(UvitError, match=match):
        run(tmp_path / "run", f"--config.train.profile_steps={steps}")
    assert not (tmp_path / "run").exists()
