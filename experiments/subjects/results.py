"""The results of a comparison: a CSV table in long format, and a manifest of how it was made.

A setting is a name (`single`, `multi`, `views`, `compositions`, …) or a point of a curve such as
`lora_step=400`, with its position on the axis of that name.
"""

import csv
import dataclasses
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from uvit_jax.config import Config
from uvit_jax.errors import UvitError, nearest
from uvit_jax.io import atomic, write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one image, a row of the table.

    Attributes:
      method: a method or an anchor, such as `unified`. architecture: its backbone.
      setting: see above. split: of the data, such as `test`.
      subjects, views: the number of subjects, and of references of each.
      subject: the names of the subjects, by which images are clustered.
      prompt: the text. seed: of the sample. metric: the name of `value`, with its encoder.
      network: the seed that the method's network was trained with.
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
    network: int = 0

    def __post_init__(self):
        for key in ("method", "setting", "split", "subject", "metric"):
            if not getattr(self, key):
                raise UvitError(f"a row of the results has an empty {key}")
        if self.subjects < 0 or self.views < 0:
            raise UvitError("a row of the results has negative subjects or views")
        if not math.isfinite(self.value):
            raise UvitError(
                f"{self.metric} of {self.method} for {self.subject} is {self.value}; leave out "
                "rows without a finite value"
            )

    @property
    def key(self) -> tuple:
        """All columns but the value; unique in a table."""
        *columns, _, network = dataclasses.astuple(self)
        return (*columns, network)

    @property
    def image(self) -> tuple:
        """The evaluation case and seeds, by which methods are paired."""
        return (
            *(self.setting, self.split, self.subjects, self.views),
            *(self.subject, self.prompt, self.seed, self.network),
        )

    @property
    def point(self) -> tuple[str, float] | None:
        """(axis, position) of a setting that is a point of a curve, else None."""
        axis, found, number = self.setting.partition("=")
        try:
            return (axis, float(number)) if found else None
        except ValueError:
            raise UvitError(f"setting={self.setting!r} needs a number after '='") from None


COLUMNS = tuple(field.name for field in dataclasses.fields(Score))
_TYPES = {field.name: field.type for field in dataclasses.fields(Score)}
_OPTIONAL = {"network"}


def write_scores(path: Path, rows: Iterable[Score]) -> None:
    """Writes a CSV table, values at full precision, atomically; compressed if it ends in `.gz`.

    Equal rows give equal bytes.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in rows)
    content = out.getvalue().encode()
    with atomic(path) as partial:
        partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_scores(path: Path) -> list[Score]:
    """Reads a table, compressed if it ends in `.gz`, with columns in any order.

    Raises:
      UvitError: if it is missing, damaged or has other columns, naming the line.
    """
    try:
        raw = path.read_bytes()
        content = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UvitError(f"cannot read the results {path}: {error}") from None
    reader = csv.DictReader(io.StringIO(content))
    names = reader.fieldnames or []
    wrong = sorted((set(COLUMNS) ^ set(names)) - (_OPTIONAL - set(names)))
    if wrong or len(set(names)) < len(names):
        wrong = wrong or ["a column twice"]
        raise UvitError(
            f"{path} is not a table of results; missing or unexpected columns: {', '.join(wrong)}"
        )
    rows, seen = [], set()
    for record in reader:
        where = f"{path}, line {reader.line_num}"
        if None in record or None in record.values():
            raise UvitError(f"{where}: expected {len(names)} values")
        try:
            row = Score(**{name: _TYPES[name](record[name]) for name in names})
        except ValueError as error:  # from a number, or a UvitError
            raise UvitError(f"{where}: {error}") from None
        if row.key in seen:
            raise UvitError(f"{where}: duplicate row; remove one of them")
        seen.add(row.key)
        rows.append(row)
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricInfo(Config):
    """Describes a metric.

    Attributes:
      title: shown in tables. role: `text` is prompt-following.
      encoder: its version, with weights and preprocessing; "" for none.
      note: the definition, such as pairing and crops.
    """

    title: str
    role: Literal["identity", "text", "other"] = "other"
    higher_is_better: bool = True
    encoder: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """Describes a method and its costs.

    Attributes:
      title: shown in tables. anchor: whether it calibrates the scale of the metrics (oracle,
        copy-paste, random identity, text only) rather than competes. parameters: of its network.
      finetune_seconds: repeated timings of fine-tuning one subject; empty without fine-tuning.
      image_seconds: repeated timings of one image, without compilation.
      uncached_seconds: the same without cached references, for in-context methods.
      compile_seconds: of the sampler. finetune_flops, image_flops: per subject, and per image.
      train_flops: of its network. tuning_flops: of the search for a recipe, once.
      finetuned: whether it has to pass the gates of fine-tuning.
      validation: its score on validation subjects, by which the best of several is chosen.
      memory_bytes: peak memory of the sampler. subject_bytes: stored per subject.
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
    train_flops: float = 0.0
    tuning_flops: float = 0.0
    finetuned: bool = False
    validation: float = 0.0
    memory_bytes: int = 0
    subject_bytes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrimaryComparison(Config):
    """A comparison that was fixed before there were results.

    Attributes:
      title: the claim. method: whose mean is compared.
      against: with the valid one of these that is best on validation subjects; () with `margin`.
      metric: its name. setting: as the config calls it; "" is the main one.
      test: `difference` rejects that the means are equal, `equivalence` that they differ by
        `margin` or more (two one-sided tests), `below` and `above` that the mean is not.
    """

    title: str
    method: str
    metric: str
    against: tuple[str, ...] = ()
    setting: str = ""
    test: Literal["difference", "equivalence", "below", "above"] = "difference"
    margin: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if bool(self.against) != (self.test in ("difference", "equivalence")):
            raise UvitError(f"test={self.test!r} does not go with against={self.against}")
        if self.test == "equivalence" and self.margin <= 0:
            raise UvitError(f"an equivalence needs a positive margin, got {self.margin}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """How the results were made.

    Attributes:
      title: of the report. commit: of the code. config: of the comparison, as a nested dict.
      hardware: a description. timing: the protocol of the timings.
      methods, metrics: by name as in the table, in the order of the report.
      baseline: the method that the others are compared with.
      setting, split: the main ones, shown in the plots of identity against prompt-following and in
        the worst subjects.
      primary: the comparisons with p-values, by name. cells: the (setting, split, subjects, views)
        of the table that each is of.
      notes: sentences at the head of the report, such as that the run was a smoke test.
    """

    title: str
    commit: str
    config: Mapping[str, Any]
    hardware: str
    timing: str
    methods: Mapping[str, MethodInfo]
    metrics: Mapping[str, MetricInfo]
    baseline: str
    setting: str = "single"
    split: str = "test"
    primary: Mapping[str, PrimaryComparison] = dataclasses.field(default_factory=dict)
    cells: Mapping[str, tuple[str, str, int, int]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.baseline not in self.methods:
            raise UvitError(
                f"baseline={self.baseline!r} is not one of the methods"
                f"{nearest(self.baseline, self.methods)}"
            )

    def ordered(self) -> list[str]:
        """The names of the methods, anchors last."""
        return sorted(self.methods, key=lambda name: self.methods[name].anchor)

    def write(self, path: Path) -> None:
        """Writes it as JSON, atomically."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest; UvitError if it is missing or damaged."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        found["cells"] = {name: tuple(cell) for name, cell in found.get("cells", {}).items()}
        kinds = {"methods": MethodInfo, "metrics": MetricInfo, "primary": PrimaryComparison}
        for key, kind in kinds.items():
            found[key] = {
                name: kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
                for name, value in (found.get(key, {}) if key == "primary" else found[key]).items()
            }
        return Manifest(**{**found, "notes": tuple(found.get("notes", ()))})
    except UvitError as error:
        raise UvitError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UvitError(f"cannot read the manifest {path}: {error!r}") from None
