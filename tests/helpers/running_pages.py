"""Runs a page as a reader would: blocks in order, those with a file's name into that file."""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.pages import Block
from tests.helpers.running import ROOT


def run(block: Block, namespace: dict[str, Any], page: str) -> None:
    """Runs a block in the namespace of its page, or of the module whose file it goes to."""
    # As many empty lines before it as it has on its page, so that tracebacks tell the line.
    code = compile("\n" * (block.line - 1) + block.text, page, "exec", dont_inherit=True)
    if block.not_run:
        return
    if not block.file:
        exec(code, namespace)
        return
    if not (ROOT / block.file).exists() and not block.file.startswith("uvit_jax/"):
        path = Path(block.file)  # below the current folder, which is a temporary one
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return
    name = block.file.removesuffix(".py").replace("/", ".")
    if not (ROOT / block.file).exists():
        sys.modules[name] = types.ModuleType(name)
    exec(code, vars(importlib.import_module(name)))


@contextmanager
def pasted(blocks: list[Block]) -> Iterator[None]:
    """Gives the modules that blocks go to back as they were."""
    names = {b.file.removesuffix(".py").replace("/", ".") for b in blocks if b.file}
    names = {name for name in names if name.startswith("uvit_jax.")}
    there = {n: importlib.import_module(n) for n in names if (ROOT / _file(n)).exists()}
    before = {name: dict(vars(module)) for name, module in there.items()}
    tables = {
        (name, key): value.copy()
        for name, space in before.items()
        for key, value in space.items()
        if isinstance(value, dict | list) and not key.startswith("__")
    }
    try:
        yield
    finally:
        for name, module in there.items():
            vars(module).clear()
            vars(module).update(before[name])
        for (name, key), value in tables.items():
            table = before[name][key]
            table.clear()
            table.update(value) if isinstance(table, dict) else table.extend(value)
        for name in names - there.keys():
            sys.modules.pop(name, None)


def _file(name: str) -> str:
    return name.replace(".", "/") + ".py"
