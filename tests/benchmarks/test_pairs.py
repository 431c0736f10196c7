"""The benchmarks compare two implementations of one network with the same weights."""

import json

import numpy as np
import pytest

from benchmarks import pairs

pytest.importorskip("torch", reason="PyTorch is the extra `interop`")

TINY = pairs.Shape(size=8, width=32, depth=2, num_heads=2, batch_size=2)


def test_ratios_are_taken_within_pairs():
    taken = {
        "ours": {"wall": [1.0, 2.0, 4.0], "cpu": [1.0, 1.0, 1.0]},
        "theirs": {"wall": [3.0, 2.0, 8.0], "cpu": [2.0, 2.0, 2.0]},
    }
    rows = pairs.summary(taken)
    assert rows["wall"] == dict(ours=2, theirs=3, ratio=2, ratio_least=1, ratio_most=3)
    assert rows["cpu"]["ratio"] == 2


def test_the_order_alternates():
    order = []
    taken = pairs.measure(lambda: order.append("ours"), lambda: order.append("theirs"), 2)
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    assert len(taken["ours"]["wall"]) == len(taken["theirs"]["cpu"]) == 2


def test_train_steps_are_equal_with_the_cpu_options():
    from benchmarks import train_step

    params = pairs.converted(TINY.theirs(), TINY.num_heads)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    fast = dict(attention="blocked", products="flat", unroll=2)
    steps = [train_step.ours(TINY, images, params, **options) for options in ({}, fast)]
    losses = [[step() for _ in range(3)] for step in steps]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_sampling_reports_the_difference_of_the_networks(tmp_path, monkeypatch, capsys):
    from benchmarks import sample

    monkeypatch.setattr(pairs, "set_threads", lambda count: None)  # keeps pytest's own threads
    sizes = "--size=8 --width=32 --depth=2 --num_heads=2 --batch_size=2 --attention=blocked"
    file = tmp_path / "out.json"
    assert sample.main([*sizes.split(), "--pairs=2", f"--json={file}"]) == 0
    report = json.loads(file.read_text())
    assert report["difference"] < 1e-5
    assert len(report["seconds"]["ours"]["wall"]) == 2
    assert "PyTorch / ours" in capsys.readouterr().out
