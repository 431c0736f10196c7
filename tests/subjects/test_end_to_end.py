"""A whole comparison of networks of two steps: methods run one after another, and its files."""

import json

import pytest

from configs import subjects
from experiments.subjects.report import write
from experiments.subjects.results import read_manifest, read_scores
from experiments.subjects.study import Comparison
from experiments.subjects.study_config import parse_compare
from experiments.subjects.workspace import Workspace


@pytest.mark.slow
def test_methods_run_one_after_the_other_make_one_report(tmp_path):
    config = subjects.get_config("quick")
    for given in config["networks"].values():
        given["train"] |= dict(steps=2, batch_size=4)
        given["model"]["backbone"] |= dict(width=32, num_heads=2, depth=2, unroll=1)
        given["sample"]["sampler"]["steps"] = 2
    config |= dict(
        settings={name: dict(subjects=2, prompts=1) for name in ("identities_2v", "two_subjects")},
        grid=dict(ranks=(2,), rates=(1e-3,), steps=(1, 2)),
        prior=4,
        tolerance=9.0,
    )
    first = Comparison(parse_compare(config), tmp_path, ["unified", "dit_lora"])()
    assert {"unified", "dit_lora", "dit_lora_sum", "dit_lora_best"} <= set(first["methods"])
    pictures = (tmp_path / "pictures/unified/two_subjects.npz").read_bytes()
    both = Comparison(parse_compare(config), tmp_path, ["dit_full"])()
    assert "dit_full" in both["methods"] and both["rows"] > first["rows"]
    assert (tmp_path / "pictures/unified/two_subjects.npz").read_bytes() == pictures

    results = (tmp_path / "results.csv.gz").read_bytes()
    write(Workspace(parse_compare(config), tmp_path))
    assert (tmp_path / "results.csv.gz").read_bytes() == results

    rows = read_scores(tmp_path / "results.csv.gz")
    assert {"single", "views", "multi", "lora_step=2", "forgetting=0"} <= {r.setting for r in rows}
    assert len({r.key for r in rows}) == len(rows) == both["rows"]
    manifest = read_manifest(tmp_path / "manifest.json")
    lora, unified = manifest.methods["dit_lora"], manifest.methods["unified"]
    assert lora.subject_bytes > 0 and len(lora.finetune_seconds) == 1 and lora.finetune_flops > 0
    assert len(unified.image_seconds) == len(unified.uncached_seconds) == 3
    assert json.loads((tmp_path / "compare.json").read_text())["world"] == "totems"
    report = (tmp_path / "report.html").read_text()
    assert "Oracle" in report and report.count("data:image/png") > 30
