"""README.md and docs/*.md: code runs, commands parse, links and images exist."""

import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.helpers import commands, pages, running_pages
from tests.helpers.running import ROOT

RUN = [p for p in pages.PAGES if any(b.kind == "python" for b in pages.blocks(p))]
RUN.remove("docs/changing.md")  # test_changing.py runs that


@pytest.mark.parametrize("page", RUN)
def test_code_runs(page, quickstart, tmp_path, monkeypatch):
    shutil.copytree(quickstart / "workdirs", tmp_path / "workdirs")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page", "config": ConfigDict()}
    for block in pages.blocks(page):
        if block.kind == "python":
            assert not block.file, f"{page}:{block.line} names a file, which only changing.md does"
            running_pages.run(block, namespace, page)


@pytest.mark.parametrize("page", pages.PAGES)
def test_commands_parse(page):
    for block in pages.blocks(page):
        for words in pages.commands(block.text) if block.kind == "shell" else ():
            commands.check(words)


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page):
    for link in pages.links(page):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page} links to {link}, which does not exist"
        if anchor:
            assert anchor in pages.anchors(target), f"{page} links to {link}: no such heading"
        if target.suffix == ".png":
            Image.open(target).verify()


def test_the_index_has_every_page_and_every_notebook():
    linked = {(ROOT / "docs" / link).resolve() for link in pages.links("docs/README.md")}
    existing = {ROOT / "docs" / Path(page).name for page in pages.PAGES} - {ROOT / "docs/README.md"}
    assert {*existing, *(ROOT / "colab").glob("*.ipynb")} <= linked


def test_other_files_that_pages_name_exist():
    """Paths in backticks such as `uvit_jax/models/presets/uvit.py`, relative to the root."""
    for page in pages.PAGES:
        text = re.sub(r"```.*?```", "", pages.read(page), flags=re.DOTALL)
        for name in re.findall(r"`((?:uvit_jax|configs|experiments|tests|tools)/[\w/.]*)`", text):
            assert Path(ROOT / name).exists(), f"{page} names {name}, which does not exist"


def test_the_diagram_of_layouts_has_every_segment():
    from tools import draw_layouts

    layouts = draw_layouts.layouts()
    assert [layout.num_tokens for layout in layouts.values()] == [258, 256, 336, 1305, 1102]
    for layout in layouts.values():
        for segment in layout.tokens:
            assert 1 <= draw_layouts.squares(layout, segment) <= segment.num_tokens


def test_the_api_page_has_every_public_name():
    """`page` raises SystemExit for a name without a docstring, KeyError for one that is gone."""
    from tools import api_page

    headings = re.findall(r"^### (?:\w+\.)?(\w+)$", api_page.page(), flags=re.MULTILINE)
    public = [name for files in api_page.PUBLIC.values() for _, names in files for name in names]
    assert headings == public


def test_results_files_are_readable():
    lines = (ROOT / "docs/scaling/capacity.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line) for line in lines)
    for file in ("docs/ablations/results.csv.gz", "docs/subjects/results.csv.gz"):
        with gzip.open(ROOT / file, "rt") as text:
            assert len(list(csv.DictReader(text))) > 100, file
