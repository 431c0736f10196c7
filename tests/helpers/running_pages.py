"""Runs the code of a page: blocks in order, each appended to the file that it names, if any."""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.pages import Block
from tests.helpers.running import ROOT
from uvit_jax.tokens.segment import KINDS


def run(block: Block, namespace: dict[str, Any], page: str) -> None:
    """Runs a block in the namespace of its page, or of the module whose file it goes to."""
    # As many empty lines before it as on its page, so that tracebacks have the right line.
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
    """Restores the modules that blocks were appended to, and the table of segment kinds."""
    names = {b.file.removesuffix(".py").replace("/", ".") for b in blocks if b.file}
    names = {name for name in names if name.startswith("uvit_jax.")}
    there = {n: importlib.import_module(n) for n in names if (ROOT / _file(n)).exists()}
    kinds = dict(KINDS)
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
        KINDS.clear()
        KINDS.update(kinds)
        for name in names - there.keys():
            sys.modules.pop(name, None)


def _file(name: str) -> str:
    return name.replace(".", "/") + ".py"
