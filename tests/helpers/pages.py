"""Reads README.md and docs/*.md: code blocks, commands, links, anchors."""

import dataclasses
import re
import shlex
from pathlib import Path

from tests.helpers.running import ROOT

GENERATED = "api.md"  # by tools/api_page.py; not committed
PAGES = sorted(
    ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if p.name != GENERATED)]
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
      line: its line number on the page, from 1. text: the code.
      kind: `python`, `shell` (indented, or fenced as such), or the fence's language.
      file: the file that it is appended to, from its first line; "" for none.
      not_run: why it is not run, from a comment `<!-- not run: … -->` before it; "" if it is.
    """

    line: int
    text: str
    kind: str
    file: str
    not_run: str


def read(page: str) -> str:
    """A page's text."""
    return (ROOT / page).read_text()


def blocks(page: str) -> list[Block]:
    """A page's fenced and indented blocks, in order."""
    found: list[Block] = []
    lines = read(page).splitlines()
    reason, i = "", 0
    while i < len(lines):
        line, start = lines[i], i
        if comment := re.fullmatch(r"<!-- not run: (.+) -->", line):
            reason = comment.group(1)
        elif line.startswith("```"):
            end = lines.index("```", i + 1)
            found.append(_block(start + 2, lines[i + 1 : end], line[3:], reason))
            reason, i = "", end
        elif line.startswith("    ") and line.strip() and not (i and lines[i - 1].strip()):
            end = i
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found.append(_block(start + 1, [li[4:] for li in lines[i:end]], "shell", reason))
            reason, i = "", end - 1
        elif line.strip():
            reason = ""
        i += 1
    return found


def _block(line: int, lines: list[str], kind: str, reason: str) -> Block:
    file = re.fullmatch(r"# ([\w/.]+\.py)", lines[0])
    return Block(line, "\n".join(lines) + "\n", kind, file.group(1) if file else "", reason)


def commands(text: str) -> list[list[str]]:
    """The commands `python -m experiments.…` in a text, split into words, up to `|`, `&&` or `#`;
    also the commands that launch scripts run."""
    joined = re.sub(r"\\\s*\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        for part in line.split(" && "):
            if match := re.search(r"python -m (experiments\.\w+.*)", part):
                found.append(shlex.split(match.group(1), comments=True))
            elif match := re.search(r"tools/launch/\w+\.sh (.*)", part):
                words = shlex.split(match.group(1), comments=True)
                if any(word.startswith("--config=") for word in words):
                    words = words[next(i for i, w in enumerate(words) if w.startswith("--")) :]
                    found.append(["experiments.train", *words])
    return found


def links(page: str) -> list[str]:
    """The targets of a page's links and images, outside code."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")) for title in titles]
    return {title.strip().replace(" ", "-") for title in plain}
