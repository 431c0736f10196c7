"""The structure of the code: imports point one way, and names of files and classes differ."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.running import ROOT


def modules():
    """The module names of the package and of the command lines, with their files."""
    found = {}
    for top in ("uvit_jax", "experiments"):
        for path in (ROOT / top).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name, known):
    """Which of these modules a module imports, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in known else node.module for target in full]
        else:
            continue
        yield from (target for target in targets if target in known and target != name)


def folder(name):
    """The folder of a module: `uvit_jax.models`, `experiments.subjects`; files stand for themselves
    at the top of the package, where no folder may depend on another through them."""
    parts = name.split(".")
    if parts[0] == "experiments":
        return ".".join(parts[:2]) if len(parts) > 2 else "experiments"
    return ".".join(parts[:2])


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: set(imports(name, known)) for name in known}


def check_acyclic(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


def test_no_import_cycle_of_files(graph):
    check_acyclic(graph)


def test_no_import_cycle_of_folders(graph):
    folders = {}
    for name, targets in graph.items():
        own = folders.setdefault(folder(name), set())
        own |= {folder(target) for target in targets} - {folder(name)}
    check_acyclic(folders)


def test_the_package_imports_no_command_line_and_no_study(graph):
    for name, targets in graph.items():
        if name.startswith("uvit_jax"):
            assert not {t for t in targets if t.startswith("experiments")}, name


@pytest.mark.parametrize("low", ["diffusion", "parallel", "data"])
def test_lower_folders_import_no_model(graph, low):
    for name, targets in graph.items():
        if name.startswith(f"uvit_jax.{low}."):
            assert not {t for t in targets if t.startswith("uvit_jax.models")}, name


def test_names_say_what_is_inside_without_their_folder():
    names = Counter(path.name for path in modules().values() if path.name != "__init__.py")
    classes = Counter(
        node.name
        for path in modules().values()
        for node in ast.parse(Path(path).read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {n: c for n, c in names.items() if c > 1}
    assert not {n: c for n, c in classes.items() if c > 1}
