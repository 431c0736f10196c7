"""README.md and docs/*.md: code runs, commands parse, links lead somewhere, pictures are there."""

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
RUN.remove("docs/api.md")  # signatures, made from the code


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
        assert target.exists(), f"{page} links to {link}, which is not there"
        if anchor:
            assert anchor in pages.anchors(target), f"{page} links to {link}: no such heading"
        if target.suffix == ".png":
            Image.open(target).verify()


def test_the_index_has_every_page_and_every_notebook():
    linked = {(ROOT / "docs" / link).resolve() for link in pages.links("docs/README.md")}
    there = {p for p in (ROOT / "docs").glob("*.md") if p.name != "README.md"}
    assert {*there, *(ROOT / "colab").glob("*.ipynb")} <= linked


def test_other_files_that_pages_name_are_there():
    """Names in backticks such as `uvit_jax/models/presets/uvit.py`, from the root."""
    for page in pages.PAGES:
        text = re.sub(r"```.*?```", "", pages.read(page), flags=re.DOTALL)
        for name in re.findall(r"`((?:uvit_jax|configs|experiments|tests|tools)/[\w/.]*)`", text):
            assert Path(ROOT / name).exists(), f"{page} names {name}, which is not there"


def test_what_is_drawn_is_what_models_are():
    from tools import draw_layouts

    found = draw_layouts.layouts()
    assert found.keys() == draw_layouts.configs().keys() and len(found) == 5
    assert [layout.num_tokens for layout in found.values()] == [258, 256, 336, 1305, 1102]
    for layout in found.values():
        shown = [draw_layouts.squares(layout, s) for s in layout.tokens]
        assert all(1 <= n <= s.num_tokens for n, s in zip(shown, layout.tokens, strict=True))
    assert draw_layouts.OUT == ROOT / "docs/images/layouts.png"


def test_the_api_page_is_up_to_date():
    from tools import api_page

    current = api_page.page() == pages.read("docs/api.md")
    assert current, "run python tools/api_page.py"


def test_results_that_pages_keep_are_readable():
    lines = (ROOT / "docs/scaling/capacity.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line) for line in lines)
