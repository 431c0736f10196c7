"""A comparison's numbers: one long table, one number a row, and a manifest of how they were made.

    table = Results(workdir / "results.csv")
    if not table.has(method="unified", setting="single"):
        table.append(rows)

A setting is a word (`single`, `multi`, `views`, `compositions`, …), or a point of a curve,
`lora_step=400`: then its number is the place on the axis of that name.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uvit_jax.errors import UvitError, nearest
from uvit_jax.io import write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number.

    Attributes:
      method: an arm or an anchor, such as `unified`. architecture: its backbone.
      setting: see above. split: which data, such as `test`.
      subjects, views: how many subjects were asked for, and how many pictures of each were given.
      subject: who is meant, what images are clustered by; of several subjects all of them.
      prompt: the text, or its name. seed: of the sample.
      metric: what `value` is; it names its encoder.
    """

    method: str
    architecture: str
    setting: str
    split: str
    subjects: int
    views: int
    subject: str
    prompt: str
    seed: int
    metric: str
    value: float

    def __post_init__(self):
        for key in ("method", "setting", "split", "subject", "metric"):
            if not getattr(self, key):
                raise UvitError(f"a row of results has an empty {key}")
        if self.subjects < 0 or self.views < 0:
            raise UvitError("subjects and views of a row of results must not be negative")
        if not math.isfinite(self.value):
            raise UvitError(
                f"{self.metric} of {self.method} for {self.subject} is {self.value}; leave out "
                "what could not be measured"
            )

    @property
    def key(self) -> tuple:
        """All but the value: there is one number for each."""
        return dataclasses.astuple(self)[:-1]

    @property
    def image(self) -> tuple:
        """What was asked for, whoever answered: what methods are paired by."""
        return (
            *(self.setting, self.split, self.subjects, self.views),
            *(self.subject, self.prompt, self.seed),
        )

    @property
    def point(self) -> tuple[str, float] | None:
        """(axis, place) of a setting that is a point of a curve, else None."""
        axis, found, number = self.setting.partition("=")
        try:
            return (axis, float(number)) if found else None
        except ValueError:
            raise UvitError(f"the setting {self.setting!r} has no number after its =") from None


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_TYPES = {field.name: field.type for field in dataclasses.fields(Row)}


class Results:
    """The table in a CSV file, read at once. `rows` are in the file's order.

    Raises:
      UvitError: if the file is no such table, naming the line.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.rows: list[Row] = read(self.path) if self.path.exists() else []
        self._values = {row.key: row.value for row in self.rows}

    def has(self, **where: Any) -> bool:
        """Whether there is a row with these values, such as method and setting."""
        if unknown := sorted(set(where) - set(COLUMNS)):
            raise UvitError(f"results have no column {unknown[0]!r}{nearest(unknown[0], COLUMNS)}")
        return any(all(getattr(row, k) == v for k, v in where.items()) for row in self.rows)

    def append(self, rows: Iterable[Row]) -> int:
        """Adds rows, all or none; those that are there already are left out.

        Returns:
          How many were new.

        Raises:
          UvitError: if one is there with another value.
        """
        new: dict[tuple, Row] = {}
        for row in rows:
            known = self._values.get(row.key, new[row.key].value if row.key in new else None)
            if known is not None and known != row.value:
                raise UvitError(
                    f"{self.path} has {row.metric} of {row.method} for {row.subject} ({row.setting}"
                    f", seed {row.seed}) already, with {known} and not {row.value}; begin a new "
                    "file, or remove those rows"
                )
            if known is None:
                new[row.key] = row
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, text([*self.rows, *new.values()]))
            self.rows.extend(new.values())
            self._values |= {key: row.value for key, row in new.items()}
        return len(new)


def text(rows: Iterable[Row]) -> str:
    """The CSV of rows, values at full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in rows)
    return out.getvalue()


def read(path: Path) -> list[Row]:
    """The rows of a file, whatever the order of its columns.

    Raises:
      UvitError: if it is missing or no such table, naming the line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UvitError(f"cannot read the results {path}: {error}") from None
    reader = csv.DictReader(io.StringIO(content))
    names = reader.fieldnames or []
    if sorted(names) != sorted(COLUMNS):
        wrong = sorted(set(COLUMNS) ^ set(names)) or ["a column twice"]
        raise UvitError(
            f"{path} has not the columns of results; missing or unexpected: {', '.join(wrong)}"
        )
    rows, seen = [], set()
    for record in reader:
        where = f"{path}, line {reader.line_num}"
        if None in record or None in record.values():
            raise UvitError(f"{where}: expected {len(COLUMNS)} values")
        try:
            row = Row(**{name: _TYPES[name](record[name]) for name in COLUMNS})
        except ValueError as error:  # of a number, or a UvitError
            raise UvitError(f"{where}: {error}") from None
        if row.key in seen:
            raise UvitError(f"{where}: the number is there twice; remove one of the lines")
        seen.add(row.key)
        rows.append(row)
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """What a figure is.

    Attributes:
      title: for people. role: `identity`, `text` (prompt-following), or `other`.
      higher_is_better: which way. encoder: its version, with weights and preparation; "" for none.
      note: pairing and whatever else a reader must know.
    """

    title: str
    role: str = "other"
    higher_is_better: bool = True
    encoder: str = ""
    note: str = ""

    def __post_init__(self):
        if self.role not in ("identity", "text", "other"):
            raise UvitError(f"a metric's role is identity, text or other, got {self.role!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What an arm is, and costs.

    Attributes:
      title: for people. anchor: whether it is a yardstick (oracle, copy-paste, random identity,
        text only) and no competitor. parameters: of its network.
      finetune_seconds: measurements of fine-tuning one subject; none where nothing is tuned.
      image_seconds: measurements of one image without compilation.
      uncached_seconds: of in-context, the same without the references' cache.
      compile_seconds: once. finetune_flops, image_flops: of a subject, and of an image.
      memory_bytes: at most. subject_bytes: to keep for each subject.
    """

    title: str
    anchor: bool = False
    parameters: int = 0
    finetune_seconds: tuple[float, ...] = ()
    image_seconds: tuple[float, ...] = ()
    uncached_seconds: tuple[float, ...] = ()
    compile_seconds: float = 0.0
    finetune_flops: float = 0.0
    image_flops: float = 0.0
    memory_bytes: int = 0
    subject_bytes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """How the numbers were made.

    Attributes:
      title: of the page. commit: of the code. config: as a nested dict. hardware, timing: in words;
        the latter is the protocol of the times.
      methods, metrics: by name as in the rows, in the order to show them.
      baseline: the method to which the others are compared.
      setting, split: the main ones: of them are the plots of identity against prompt-following and
        the worst subjects, and their comparisons are a family of their own. Curves are of this
        split.
      notes: sentences to show first, such as that a run was a smoke test.
    """

    title: str
    commit: str
    config: Mapping[str, Any]
    hardware: str
    timing: str
    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    baseline: str
    setting: str = "single"
    split: str = "test"
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.baseline not in self.methods:
            raise UvitError(
                f"the baseline {self.baseline!r} is none of the methods"
                f"{nearest(self.baseline, self.methods)}"
            )

    def write(self, path: Path) -> None:
        """Writes it as JSON; the file appears whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; UvitError if it is missing or damaged."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        for key, kind in (("methods", Method), ("metrics", Metric)):
            found[key] = {
                name: kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
                for name, value in found[key].items()
            }
        return Manifest(**{**found, "notes": tuple(found.get("notes", ()))})
    except UvitError as error:
        raise UvitError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UvitError(f"the manifest {path} is missing or damaged: {error!r}") from None
