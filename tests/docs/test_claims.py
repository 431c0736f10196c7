"""docs/claims.md: every claim has a test, and every test that it names exists."""

import ast
import re

from tests.helpers import pages
from tests.helpers.running import ROOT

PAGE = "docs/claims.md"
NAME = re.compile(r"`?(tests/[\w/]+\.py)::(\w+)`?")


def test_every_named_test_exists():
    names = NAME.findall(pages.read(PAGE))
    assert len(names) > 40
    for file, name in names:
        assert (ROOT / file).exists(), f"{PAGE} names {file}, which does not exist"
        defined = {n.name for n in ast.parse((ROOT / file).read_text()).body if hasattr(n, "name")}
        assert name in defined, f"{PAGE} names {file}::{name}, which does not exist"


def test_every_claim_has_a_test():
    rows = [line for line in pages.read(PAGE).splitlines() if line.startswith("| ")]
    claims = [row for row in rows if row != "| claim | test |"]
    for row in claims:
        assert NAME.search(row), f"no test: {row}"


def test_slow_tests_are_marked():
    for row in pages.read(PAGE).splitlines():
        for file, name in NAME.findall(row) if row.startswith("| ") else ():
            slow = re.search(rf"mark\.slow\ndef {name}\(", (ROOT / file).read_text())
            assert bool(slow) == ("*slow*" in row), row
