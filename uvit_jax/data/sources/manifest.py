"""Manifests: a file with one example a line, as JSON objects (`.jsonl`) or a table (`.csv`)."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from uvit_jax.errors import UvitError

T = TypeVar("T")
LISTED = 10
"""How many problems an error lists."""


def read_manifest(
    path: Path, parse: Callable[[dict[str, Any], Path, str], T], *, remedy: str
) -> list[T]:
    """The examples of a manifest.

    Args:
      parse: (row, the manifest's folder, "FILE:LINE") → an example; raises UvitError if it is none.
        Values of a CSV are texts.
      remedy: what to give instead of a file that cannot be read.

    Raises:
      UvitError: if the file cannot be read or has no rows; or if rows are no examples, with the
        first `LISTED` of them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UvitError(f"cannot read {path} ({reason}); {remedy}") from None
    examples, wrong = [], []
    rows = _table(text) if path.suffix.lower() == ".csv" else _json_lines(text)
    for line, row in rows:
        try:
            row = row()
            if not isinstance(row, dict):
                raise UvitError("it must be a JSON object")
            examples.append(parse(row, path.parent, f"{path}:{line}"))
        except (ValueError, UvitError, RecursionError, csv.Error) as error:
            wrong.append(f"line {line}: {error}")
    refuse(path, "lines that are not examples", wrong)
    if not examples:
        raise UvitError(f"{path} has no examples; add a line for each")
    return examples


def refuse(path: Path, what: str, problems: Sequence[str], remedy: str = "correct them") -> None:
    """Raises UvitError if there are problems, with the first `LISTED` of them."""
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        listed = "; ".join(problems[:LISTED])
        raise UvitError(f"{path} has {len(problems)} {what}: {listed}{more}; {remedy}")


def _json_lines(text: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    for line, row in enumerate(text.splitlines(), start=1):
        if row.strip():
            yield line, lambda row=row: json.loads(row)


def _table(text: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    table = csv.DictReader(text.splitlines(keepends=True))
    for row in table:
        yield table.line_num, lambda row=row: row
