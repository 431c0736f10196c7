"""The report holds all results, is self-contained, and is readable in a real browser."""

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from experiments import compare
from experiments.subjects import report_summary as summary
from experiments.subjects.report_markdown import markdown
from experiments.subjects.report_page import page
from tests.helpers import comparisons
from tests.helpers.running import ROOT
from uvit_jax.errors import UvitError

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def rows():
    return comparisons.rows(subjects=6, seeds=2)


@pytest.fixture(scope="module")
def html(rows):
    return page(rows, comparisons.manifest(), comparisons.grids())


def test_it_is_complete_and_self_contained(html):
    assert html.startswith("<!doctype html>") and "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html)
    assert not re.findall(r"url\((?!#)", html) and "@import" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for name in (
        "samples",
        "primary",
        "gates",
        "results",
        "plots",
        "differences",
        "curves",
        "cost",
        "made",
    ):
        assert f'href="#{name}"' in html and f'id="{name}"' in html
    for title in comparisons.TITLES.values():
        assert title in html
    assert "made-up numbers" in html and "not a result" in html


def test_samples_are_embedded_pixel_by_pixel(html):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    grid = comparisons.grids()[0]
    given = sum(len(row.references) for row in grid.rows)
    made = sum(len(images) for row in grid.rows for images in row.generations.values())
    assert len(found) == given + made
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]))))
    assert np.abs(first / 127.5 - 1 - grid.rows[0].references[0].clip(-1, 1)).max() < 0.005


def test_summaries_find_what_was_put_in(rows):
    manifest = comparisons.manifest()
    cell = ("single", "test", 1, 1)
    found = summary.means(rows)[cell, "random_identity", "totems_a_identity"]
    assert found.count == 6 and found.low < found.mean < found.high
    differences = {(d.cell, d.method, d.metric): d for d in summary.differences(rows, manifest)}
    lora = differences[cell, "dit_lora", "totems_a_identity"]
    assert lora.interval.low < -0.05 < lora.interval.high < 0  # as in LEVELS
    assert not any(manifest.methods[d.method].anchor for d in differences.values())
    # Subjects that are shared make the paired interval narrower than that of a mean.
    alone = summary.means(rows)[cell, "dit_lora", "totems_a_identity"]
    assert lora.interval.half_width < alone.half_width
    assert summary.axes(rows, manifest) == [
        *("views", "subjects", "lora_step", "context_tokens", "forgetting")
    ]
    steps = summary.curves(rows, manifest, "lora_step", "totems_a_identity")
    assert set(steps) == {"dit_lora", "unified_lora"}
    line = [interval.mean for _, interval in steps["dit_lora"]]
    assert [place for place, _ in steps["dit_lora"]] == [50, 100, 200, 400] and line == sorted(line)


def test_a_method_that_fails_its_gates_is_no_baseline(rows, html):
    manifest = comparisons.manifest()
    gates = summary.gates(rows, manifest)
    assert set(gates) == set(comparisons.GATES) and not gates["dit_lora"].problem
    assert re.search(r"no valid LoRA: portraits 0\.6\d, not 0\.75, effect of the name", html)
    text = markdown(rows, manifest)
    assert f"{comparisons.TITLES['unified_lora']} (no valid LoRA" in text
    assert f"{comparisons.TITLES['dit_lora']} |" in text
    lora, backbone = summary.primary(rows, manifest)
    assert lora.against == "dit_lora"  # though the other has the higher validation score
    assert lora.interval.low > 0 and lora.p < 0.05 and backbone.p < 0.05
    failing = [r for r in rows if r.setting != "portraits" or r.method != "dit_lora"]
    failing += [
        dataclasses.replace(r, value=0.5)
        for r in rows
        if r.setting == "portraits" and r.method == "dit_lora"
    ]
    lora, backbone = summary.primary(failing, manifest)
    assert lora.problem == "no valid LoRA to compare with" and lora.p != lora.p
    assert backbone.p < 0.05  # adjusted for itself alone


def test_subjects_that_are_not_told_apart_are_marked(rows):
    manifest = comparisons.manifest()
    told = [r for r in rows if r.setting == "multi" and r.method == "unified"]
    told = [dataclasses.replace(r, metric="preferred", value=r.subjects == 2) for r in told]
    problems = summary.problems(told, manifest)
    assert [cell[2] for cell, _ in problems] == [3]
    assert "right arrangement preferred in 0%" in problems[("multi", "test", 3, 1), "unified"]


def test_texts_cannot_break_the_page(rows):
    few = [r for r in rows if r.setting == "single" and r.method in ("unified", "oracle")]
    bad = "<script>alert(1)</script>"
    few = [type(r)(**{**vars(r), "subject": f"{bad}{r.subject}"}) for r in few]
    assert "<script" not in page(few, comparisons.manifest())


def test_missing_rows_and_descriptions_are_errors(rows):
    manifest = comparisons.manifest()
    with pytest.raises(UvitError, match="no results"):
        page([], manifest)
    with pytest.raises(UvitError, match="no method 'other'"):
        page([type(rows[0])(**{**vars(rows[0]), "method": "other"})], manifest)
    with pytest.raises(UvitError, match="no metric 'other'"):
        page([type(rows[0])(**{**vars(rows[0]), "metric": "other"})], manifest)


PROBE = """<!doctype html><meta charset="utf-8"><pre id="found"></pre><script>
const html = %s, found = [];
for (const width of [1280, 400]) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = html;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const images = [...page.images], plots = [...page.querySelectorAll("figure svg")];
    const size = t => parseFloat(frame.contentWindow.getComputedStyle(t).fontSize);
    const text = [...page.querySelectorAll("p, td, th")];
    found.push({
      width, client: root.clientWidth, scroll: root.scrollWidth,
      images: images.length, shown: images.filter(i => i.complete && i.naturalWidth).length,
      plots: plots.length, drawn: plots.filter(s => s.getBoundingClientRect().height > 100).length,
      least: Math.min(...text.map(size)),
    });
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_a_browser_shows_it_without_an_error_and_without_overflow(html, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser to open the page with: none of {', '.join(BROWSERS)}")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE % json.dumps(html).replace("</", "<\\/"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    options += ["--window-size=1400,900", "--enable-logging=stderr", "--dump-dom"]
    options.append(f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run(
        [browser, *options, probe.as_uri()], capture_output=True, text=True, timeout=180
    )
    assert "CONSOLE" not in done.stderr
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    found = {entry["width"]: entry for entry in json.loads(text)}
    assert set(found) == {1280, 400}
    for entry in found.values():
        assert entry["scroll"] <= entry["client"] <= entry["width"]
        assert entry["images"] == entry["shown"] > 0
        assert entry["plots"] == entry["drawn"] > 5
        assert entry["least"] >= 12


def test_a_stored_comparison_is_reported_without_its_networks(tmp_path):
    for name in ("compare.json", "manifest.json", "results.csv.gz"):
        shutil.copy(ROOT / "docs/subjects/second" / name, tmp_path)
    before = (tmp_path / "results.csv.gz").read_bytes()
    args = ["--config=configs/subjects.py", f"--workdir={tmp_path}", "--report"]
    assert compare.main(args) == 0
    assert "Unified sequence" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "results.csv.gz").read_bytes() == before
