"""The results table round-trips exactly and is written atomically; damage is an error."""

import dataclasses

import pytest

from experiments.subjects.results import (
    COLUMNS,
    Manifest,
    Score,
    read_manifest,
    read_scores,
    write_scores,
)
from tests.helpers import comparisons
from uvit_jax.errors import UvitError


def row(**more):
    values = dict(method="unified", architecture="uvit", setting="single", split="test")
    values |= dict(subjects=1, views=2, subject="totem-1", prompt='a "red", @1', seed=0)
    return Score(**{**values, "metric": "identity", "value": 0.1 + 0.2, **more})


@pytest.mark.parametrize("name", ["results.csv", "results.csv.gz"])
def test_what_is_written_is_read(tmp_path, name):
    path = tmp_path / name
    rows = [row(seed=s, prompt=f'"{s}",\nline ü') for s in range(3)]
    write_scores(path, rows)
    again = read_scores(path)
    assert again == rows and again[0].value == 0.1 + 0.2  # to the last bit
    before = path.read_bytes()
    write_scores(path, again)
    assert path.read_bytes() == before
    assert list(COLUMNS[:10]) == [
        *("method", "architecture", "setting", "split", "subjects"),
        *("views", "subject", "prompt", "seed", "metric"),
    ]


def test_tables_from_before_there_were_several_networks_are_read(tmp_path):
    path = tmp_path / "results.csv"
    write_scores(path, [row(prompt="plain")])
    lines = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert read_scores(path) == [row(prompt="plain")]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.csv.gz"
    write_scores(path, [row(seed=0)])
    before = path.read_bytes()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_scores(path, [row(seed=1)])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda t: t.replace("metric,", "figure,"), "missing or unexpected .*: figure, metric"),
        (lambda t: t.replace(",0.5", ",much"), "line 2: could not convert"),
        (lambda t: t.replace(",0.5,", ","), "line 2: expected 12 values"),
        (lambda t: t.replace(",0.5", ",nan"), "line 2: identity of unified for totem-1 is nan"),
        (lambda t: t + t.splitlines()[1] + "\n", "line 3: duplicate"),
    ],
)
def test_damaged_tables_are_errors(tmp_path, change, message):
    path = tmp_path / "results.csv"
    write_scores(path, [row(value=0.5, prompt="plain")])
    path.write_text(change(path.read_text()))
    with pytest.raises(UvitError, match=message):
        read_scores(path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no gzip"])
def test_damaged_archives_are_errors(tmp_path, damage):
    path = tmp_path / "results.csv.gz"
    write_scores(path, [row()])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UvitError, match=r"cannot read .*results\.csv\.gz"):
        read_scores(path)


def test_points_of_curves():
    assert row().point is None and row(setting="lora_step=400").point == ("lora_step", 400)
    with pytest.raises(UvitError, match="needs a number"):
        _ = row(setting="lora_step=many").point
    # Methods are paired by case and seed.
    assert row(method="a", architecture="b").image == row().image != row(seed=1).image


def test_a_manifest_is_read_as_it_was(tmp_path):
    manifest = comparisons.manifest()
    manifest.write(tmp_path / "manifest.json")
    assert read_manifest(tmp_path / "manifest.json") == manifest
    with pytest.raises(UvitError, match="did you mean 'unified'"):
        Manifest(**{**vars_of(manifest), "baseline": "unfied"})
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UvitError, match=r"cannot read .*manifest\.json"):
        read_manifest(tmp_path / "manifest.json")


def vars_of(manifest):
    return {f.name: getattr(manifest, f.name) for f in dataclasses.fields(manifest)}
