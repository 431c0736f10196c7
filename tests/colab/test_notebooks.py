"""The notebooks run from top to bottom at their small size."""

import os
import re

import nbclient
import nbformat
import pytest

from tests.helpers import pages
from tests.helpers.running import ROOT

NOTEBOOKS = sorted(path.name for path in (ROOT / "colab").glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "colab" / name, as_version=4)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("UVIT_JAX_NOTEBOOK", "small")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read(name)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises on the first error
    printed = " ".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )
    assert "jax " in printed  # the devices and the version


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_can_be_opened_and_read(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (ROOT / "colab" / name).stat().st_size < 1.5e6
    first = notebook.cells[0].source
    assert f"colab.research.google.com/github/uvit-jax/uvit_jax/blob/main/colab/{name}" in first
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "visualize_array_sharding" in code and 'get("UVIT_JAX_NOTEBOOK") == "small"' in code
    # Outputs are stored by tools/store_notebooks.py.
    stored = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert stored and all(output.output_type != "error" for output in stored)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            assert (ROOT / "colab" / link.partition("#")[0]).exists(), f"{name} links to {link}"
    for words in pages.commands(text.replace("`", "")):
        assert (ROOT / f"{words[0].replace('.', '/')}.py").exists()
