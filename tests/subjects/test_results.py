"""The long table keeps every number once, goes on where it stopped, and tells what is wrong."""

import dataclasses

import pytest

from experiments.subjects.results import COLUMNS, Manifest, Results, Row, read, read_manifest
from tests.helpers import comparisons
from uvit_jax.errors import UvitError


def row(**more):
    values = dict(method="unified", architecture="uvit", setting="single", split="test")
    values |= dict(subjects=1, views=2, subject="totem-1", prompt='a "red", @1', seed=0)
    return Row(**{**values, "metric": "identity", "value": 0.1 + 0.2, **more})


def test_what_is_written_is_read(tmp_path):
    table = Results(tmp_path / "deep" / "results.csv")
    rows = [row(seed=s, prompt=f'"{s}",\nline ü') for s in range(3)]
    assert table.append(rows) == 3
    again = Results(table.path)
    assert again.rows == rows and again.rows[0].value == 0.1 + 0.2  # to the last bit
    assert list(COLUMNS[:10]) == [
        *("method", "architecture", "setting", "split", "subjects"),
        *("views", "subject", "prompt", "seed", "metric"),
    ]


def test_it_goes_on_where_it_stopped(tmp_path):
    table = Results(tmp_path / "results.csv")
    table.append([row(seed=0), row(seed=1)])
    table = Results(table.path)
    assert table.has(method="unified", seed=1) and not table.has(method="dit_lora")
    before = table.path.read_bytes()
    assert table.append([row(seed=0), row(seed=1)]) == 0
    assert table.path.read_bytes() == before
    assert table.append([row(seed=1), row(seed=2), row(seed=2)]) == 1
    assert [r.seed for r in Results(table.path).rows] == [0, 1, 2]
    with pytest.raises(UvitError, match=r"already, with 0\.3.* and not 5"):
        table.append([row(seed=3), row(seed=0, value=5.0)])
    assert [r.seed for r in Results(table.path).rows] == [0, 1, 2]  # all or none
    with pytest.raises(UvitError, match="did you mean 'metric'"):
        table.has(metrics="x")


def test_a_file_that_was_cut_short_is_never_left(tmp_path, monkeypatch):
    table = Results(tmp_path / "results.csv")
    table.append([row(seed=0)])
    before = table.path.read_bytes()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        table.append([row(seed=1)])
    assert table.path.read_bytes() == before


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda t: t.replace("metric,", "figure,"), "missing or unexpected: figure, metric"),
        (lambda t: t.replace(",0.5", ",much"), "line 2: could not convert"),
        (lambda t: t.replace(",0.5", ""), "line 2: expected 11 values"),
        (lambda t: t.replace(",0.5", ",nan"), "line 2: identity of unified for totem-1 is nan"),
        (lambda t: t + t.splitlines()[1] + "\n", "line 3: the number is there twice"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, change, message):
    path = tmp_path / "results.csv"
    Results(path).append([row(value=0.5, prompt="plain")])
    path.write_text(change(path.read_text()))
    with pytest.raises(UvitError, match=message):
        read(path)


def test_points_of_curves():
    assert row().point is None and row(setting="lora_step=400").point == ("lora_step", 400)
    with pytest.raises(UvitError, match="no number"):
        _ = row(setting="lora_step=many").point
    # Two methods' answers to one question are paired.
    assert row(method="a", architecture="b").image == row().image != row(seed=1).image


def test_a_manifest_is_read_as_it_was(tmp_path):
    manifest = comparisons.manifest()
    manifest.write(tmp_path / "manifest.json")
    assert read_manifest(tmp_path / "manifest.json") == manifest
    with pytest.raises(UvitError, match="did you mean 'unified'"):
        Manifest(**{**vars_of(manifest), "baseline": "unfied"})
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UvitError, match="missing or damaged"):
        read_manifest(tmp_path / "manifest.json")


def vars_of(manifest):
    return {f.name: getattr(manifest, f.name) for f in dataclasses.fields(manifest)}
