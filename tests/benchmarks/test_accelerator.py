"""The benchmark of accelerators at toy size: rows, resuming, the table."""

import json

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import Cell
from uvit_jax.errors import UvitError

TRAIN = Cell(model="U-ViT-L/2", program="train", attention="xla", remat="dots")
LARGE = Cell(model="U-ViT-L/2", program="train", attention="xla", remat="none")


def test_a_toy_run_is_resumed_and_makes_a_table(tmp_path, monkeypatch):
    out, taken = tmp_path / "rows.jsonl", []
    measure = accelerator._jax

    def measured(cell, toy):
        taken.append(cell)
        if cell == LARGE:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return measure(cell, toy)

    monkeypatch.setattr(accelerator, "_jax", measured)
    monkeypatch.setattr(accelerator, "cells", lambda models, toy: [TRAIN, LARGE])
    for _ in range(2):
        accelerator.main(["--toy", f"--out={out}"])
    assert taken == [TRAIN, LARGE]  # the second run had nothing left
    row, large = map(json.loads, out.read_text().splitlines())
    assert row["seconds"] > 0 and row["predicted_bytes"] > 0 and row["flops"] > 0
    assert large["error"] == "does not fit the memory"
    table = out.with_suffix(".md").read_text()
    assert table.count("| U-ViT-L/2 | train |") == 2 and "does not fit" in table
    assert accelerator.mfu(row) is None
    known = row | dict(device="NVIDIA H100 80GB HBM3", flops=98.9e12, seconds=1.0, devices=1)
    assert accelerator.mfu(known) == pytest.approx(0.1)


def test_no_row_starts_when_time_is_up(tmp_path, capsys):
    accelerator.main(["--toy", f"--out={tmp_path / 'rows.jsonl'}", "--minutes=0"])
    assert "the same command measures the rest" in capsys.readouterr().out
    with pytest.raises(UvitError, match="--only=U-ViT"):
        accelerator.main(["--toy", f"--out={tmp_path / 'x'}", "--only=U-ViT"])


def test_every_model_has_every_program():
    cells = list(accelerator.cells(list(accelerator.MODELS), toy=True))
    for model in accelerator.MODELS:
        assert {"train", "sample"} <= {cell.program for cell in cells if cell.model == model}


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own(monkeypatch):
    run = accelerator.subprocess.run
    monkeypatch.setattr(
        accelerator.subprocess, "run", lambda command, **rest: run([*command, "--toy"], **rest)
    )
    for cell in (
        TRAIN,
        Cell(model="video U-ViT", program="sample", attention="xla", remat="none"),
        Cell(model="U-ViT-L/2", program="train", framework="torch"),
    ):
        row = accelerator._in_process(cell, 300)
        assert row["seconds"] > 0, row
