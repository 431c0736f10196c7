"""A whole comparison of networks of two steps: methods run one after another, and its files."""

import json
import shutil

import pytest

from configs import subjects
from experiments.subjects import report
from experiments.subjects.report import write
from experiments.subjects.results import read_manifest, read_scores
from experiments.subjects.study import Comparison
from experiments.subjects.study_config import parse_compare
from experiments.subjects.workspace import Workspace


@pytest.mark.slow
def test_methods_run_one_after_the_other_make_one_report(tmp_path, monkeypatch):
    config = subjects.get_config("quick")
    for given in config["networks"].values():
        given["train"] |= dict(steps=2, batch_size=4)
        given["model"]["backbone"] |= dict(width=32, num_heads=2, depth=2, unroll=1)
        given["sample"]["sampler"]["steps"] = 2
        given["text_pretraining"]["steps"] = 2
    size = dict(subjects=2, prompts=1)
    config |= dict(
        settings=dict(identities_2v=size, two_subjects_1v=size),
        seeds=(0, 1),
        grid=dict(ranks=(2,), rates=(1e-3,), priors=(0.0, 1.0), steps=(1, 2)),
        prior=4,
        tolerance=9.0,
    )
    config["arms"]["uvit_words"]["grid"] = dict(ranks=(2,), rates=(1e-3,), steps=(2,))
    config["arms"]["uvit_lora"]["compose"] = ("fused", "sum")
    for method in ("uvit_lora", "uvit_words"):
        config["arms"][method]["settings"] = ("identities_2v", "two_subjects_1v")
    work = tmp_path / "work"
    first = Comparison(parse_compare(config), work, ["unified", "uvit_lora"])()
    assert {"unified", "uvit_lora", "uvit_lora_sum", "uvit_lora_best"} <= set(first["methods"])
    pictures = (work / "pictures/s1/unified/two_subjects_1v.npz").read_bytes()
    both = Comparison(parse_compare(config), work, ["uvit_words"])()
    assert "uvit_words" in both["methods"] and both["rows"] > first["rows"]
    assert (work / "pictures/s1/unified/two_subjects_1v.npz").read_bytes() == pictures

    results = (work / "results.csv.gz").read_bytes()
    write(Workspace(parse_compare(config), work))
    assert (work / "results.csv.gz").read_bytes() == results
    with monkeypatch.context() as patched:  # without samples, nothing is scored, nor lost
        patched.setattr(report, "score_images", None)
        shutil.move(work / "pictures", tmp_path / "pictures")
        write(Workspace(parse_compare(config), work))
        assert (work / "results.csv.gz").read_bytes() == results
        shutil.move(tmp_path / "pictures", work / "pictures")

    rows = read_scores(work / "results.csv.gz")
    settings = {"single", "views", "count", "portraits", "unused_name", "lora_step=2"}
    assert settings <= {r.setting for r in rows} and "preferred" in {r.metric for r in rows}
    assert len({r.key for r in rows}) == len(rows) == both["rows"]
    assert {r.network for r in rows if r.method == "uvit_lora"} == {0, 1}
    assert {r.network for r in rows if r.method == "uvit_words"} == {0}
    manifest = read_manifest(work / "manifest.json")
    lora, unified = manifest.methods["uvit_lora"], manifest.methods["unified"]
    assert lora.subject_bytes > 0 and len(lora.finetune_seconds) == 1 and lora.finetune_flops > 0
    assert lora.tuning_flops > lora.finetune_flops and lora.finetuned
    assert len(unified.image_seconds) == len(unified.uncached_seconds) == 3
    assert json.loads((work / "compare.json").read_text())["world"] == "totems"
    html = (work / "report.html").read_text()
    assert "Oracle" in html and html.count("data:image/png") > 30
    assert "no valid LoRA" in html

    # The finished networks give the same samples without training.
    (folder := tmp_path / "networks").mkdir()
    for file in (work / "networks").glob("uvit_context_*.safetensors"):
        shutil.copy(file, folder)
    given = {file.stem: file for file in folder.iterdir()}
    again = Comparison(parse_compare(config), tmp_path / "again", networks=given)()
    assert "uvit_lora" not in again["methods"]
    assert (tmp_path / "again/pictures/s1/unified/two_subjects_1v.npz").read_bytes() == pictures

    # Results outlive the samples and networks that they are of.
    for folder in ("pictures", "networks"):
        shutil.rmtree(work / folder)
    again = Comparison(parse_compare(config), work, networks=given)()
    assert set(again["methods"]) == set(both["methods"]) and again["rows"] == both["rows"]
    assert read_manifest(work / "manifest.json").methods["uvit_lora"] == lora
    assert {r.key: r.value for r in read_scores(work / "results.csv.gz")} == {
        r.key: r.value for r in rows
    }
