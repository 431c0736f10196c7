"""Statistics of the report: means, paired differences and curves, with intervals."""

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.subjects.clusters import Crossed, crossed, holm, worst
from experiments.subjects.results import Manifest, Score
from uvit_jax.evaluation.statistics import Interval

Cell = tuple[str, str, int, int]
"""(setting, split, subjects, views), the scope of one table."""
PORTRAITS, NAME_EFFECT, PREFERRED = 0.75, 0.2, 0.9
"""The gates: below the first two, fine-tuning has not learned its subject, and says nothing about
the method; at most the third, several subjects are not told apart."""
GATED = ("portraits", "unused_name")
"""Settings that only gates use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """method - baseline in one metric and cell."""

    cell: Cell
    method: str
    metric: str
    interval: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """What a fine-tuned method has to pass: the identity of references generated again, and of
    scenes with the subject's name over that with an unused one. None where it was not measured."""

    portraits: float | None
    name_effect: float | None

    @property
    def problem(self) -> str:
        """Why it is no valid baseline; "" if it is one."""
        found = []
        if self.portraits is not None and self.portraits < PORTRAITS:
            found.append(f"portraits {self.portraits:.2f}, not {PORTRAITS}")
        if self.name_effect is not None and self.name_effect < NAME_EFFECT:
            found.append(f"effect of the name {self.name_effect:+.2f}, not {NAME_EFFECT:+}")
        return f"no valid LoRA: {', '.join(found)}" if found else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Primary:
    """The result of a comparison that was fixed in advance.

    Attributes:
      title, test: of the config. against: the method it chose. interval: of the mean or difference.
      p: adjusted by Holm's method over the primary comparisons. problem: why there is none.
    """

    title: str
    test: str
    against: str = ""
    interval: Interval | None = None
    p: float = float("nan")
    problem: str = ""


def cell(row: Score) -> Cell:
    """The cell of a row."""
    return row.setting, row.split, row.subjects, row.views


def cells(rows: Iterable[Score], manifest: Manifest) -> list[Cell]:
    """All cells but curves and gates, by first appearance of the setting, the manifest's split
    first."""
    shown = (row for row in rows if row.point is None and row.setting not in GATED)
    found = list(dict.fromkeys(cell(row) for row in shown))
    order = {setting: i for i, setting in enumerate(dict.fromkeys(c[0] for c in found))}
    return sorted(found, key=lambda c: (order[c[0]], c[1] != manifest.split, *c[1:]))


def means(rows: Iterable[Score]) -> dict[tuple[Cell, str, str], Interval]:
    """The mean over subjects and networks by (cell, method, metric), without curves."""
    grouped: dict[tuple, list[Score]] = {}
    for row in rows:
        if row.point is None:
            grouped.setdefault((cell(row), row.method, row.metric), []).append(row)
    return {key: _interval(found) for key, found in grouped.items()}


def gates(rows: Iterable[Score], manifest: Manifest) -> dict[str, Gate]:
    """The gates of the fine-tuned methods that were measured."""
    metric = next((m for m, about in manifest.metrics.items() if about.role == "identity"), "")
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.metric == metric:
            values.setdefault((row.method, row.setting), []).append(row.value)
    found = {}
    for name, about in manifest.methods.items():
        portraits, unused = (values.get((name, setting)) for setting in GATED)
        own = values.get((name, manifest.setting))
        if about.finetuned and (portraits or unused):
            found[name] = Gate(
                portraits=_mean(portraits) if portraits else None,
                name_effect=_mean(own) - _mean(unused) if own and unused else None,
            )
    return found


def problems(rows: Sequence[Score], manifest: Manifest) -> dict[tuple[Cell, str], str]:
    """By cell and method, why its means do not count; a variant fails with its method."""
    failed = {name: gate.problem for name, gate in gates(rows, manifest).items()}
    found: dict[tuple[Cell, str], str] = {}
    told: dict[tuple[Cell, str], list[float]] = {}
    for row in rows:
        if row.metric == "preferred":
            told.setdefault((cell(row), row.method), []).append(row.value)
        parts = [name for name in failed if f"{row.method}_".startswith(f"{name}_")]
        if parts and failed[max(parts, key=len)]:
            found[cell(row), row.method] = "no valid LoRA"
    for key, values in told.items():
        if key not in found and (share := _mean(values)) <= PREFERRED:
            found[key] = f"subjects are not told apart: right arrangement preferred in {share:.0%}"
    return found


def differences(rows: Sequence[Score], manifest: Manifest) -> list[Difference]:
    """Each method against the baseline, paired by image, in identity and prompt-following.

    Anchors are left out. All but the primary comparisons are secondary, and have no p-values.
    """
    metrics = [m for m, about in manifest.metrics.items() if about.role != "other"]
    values = _values(rows)
    found = []
    for where in cells(rows, manifest):
        for method, about in manifest.methods.items():
            if about.anchor or method == manifest.baseline:
                continue
            for metric in metrics:
                ours = values.get((where, method, metric), {})
                base = values.get((where, manifest.baseline, metric), {})
                paired = _paired(ours, base)
                if paired is not None:
                    interval = paired.interval
                    one = Difference(cell=where, method=method, metric=metric, interval=interval)
                    found.append(one)
    return found


def primary(rows: Sequence[Score], manifest: Manifest) -> list[Primary]:
    """The primary comparisons, their p-values adjusted over these alone (Holm 1979)."""
    values, failed = _values(rows), gates(rows, manifest)
    found, p_values = {}, {}
    for key, one in manifest.primary.items():
        where, result = manifest.cells[key], Primary(title=one.title, test=one.test)
        ours = values.get((where, one.method, one.metric), {})
        present = [m for m in one.against if m in manifest.methods]
        valid = [m for m in present if m not in failed or not failed[m].problem]
        if not ours or (one.against and not present):
            found[key] = dataclasses.replace(result, problem="not measured")
            continue
        if one.against and not valid:
            found[key] = dataclasses.replace(result, problem="no valid LoRA to compare with")
            continue
        if one.against:
            other = max(valid, key=lambda m: manifest.methods[m].validation)
            crossing = _paired(ours, values.get((where, other, one.metric), {}))
            result = dataclasses.replace(result, against=other)
        else:
            crossing = _paired(ours, dict.fromkeys(ours, 0.0))
        if crossing is None:
            found[key] = dataclasses.replace(result, problem="not measured on the same images")
            continue
        if one.test == "difference":
            p = crossing.p(0.0)
        elif one.test == "equivalence":
            p = max(crossing.p(-one.margin, 1), crossing.p(one.margin, -1))
        else:
            p = crossing.p(one.margin, 1 if one.test == "above" else -1)
        found[key] = dataclasses.replace(result, interval=crossing.interval)
        if p == p:
            p_values[key] = p
    adjusted = holm(p_values)
    return [
        dataclasses.replace(one, p=adjusted.get(key, float("nan"))) for key, one in found.items()
    ]


def worst_subjects(
    rows: Iterable[Score], manifest: Manifest, metric: str, k: int
) -> dict[str, list[tuple[str, float]]]:
    """The k subjects with the lowest means in the manifest's setting and split, by method."""
    grouped: dict[str, list[Score]] = {}
    for row in rows:
        if (row.setting, row.split, row.metric) == (manifest.setting, manifest.split, metric):
            grouped.setdefault(row.method, []).append(row)
    return {
        method: worst([r.value for r in found], [r.subject for r in found], k)
        for method, found in grouped.items()
    }


Curve = list[tuple[float, Interval]]


_COLUMN_AXES = {"views": ("views",), "subjects": ("count",)}
"""Axes that are columns of the table, and the settings that vary along them."""


def curves(rows: Iterable[Score], manifest: Manifest, axis: str, metric: str) -> dict[str, Curve]:
    """A metric along an axis, ascending, in the manifest's split, by method.

    Args:
      axis: of settings such as `lora_step=400`; or `views` (the column, in the setting
        `views`) or `subjects` (in `count`).
    """
    grouped: dict[tuple[str, float], list[Score]] = {}
    for row in rows:
        place = _place(row, axis)
        if row.metric == metric and row.split == manifest.split and place is not None:
            grouped.setdefault((row.method, place), []).append(row)
    found: dict[str, Curve] = {}
    for (method, place), members in sorted(grouped.items(), key=lambda item: item[0]):
        found.setdefault(method, []).append((place, _interval(members)))
    return found


def methods_along(rows: Iterable[Score], manifest: Manifest, axis: str) -> set[str]:
    """The methods with curves along an axis, in any metric."""
    return {
        row.method for row in rows if row.split == manifest.split and _place(row, axis) is not None
    }


def axes(rows: Sequence[Score], manifest: Manifest) -> list[str]:
    """The axes with curves, `views` and `subjects` first."""
    named = dict.fromkeys(row.point[0] for row in rows if row.point is not None)
    chosen = [row for row in rows if row.split == manifest.split]
    return [
        axis
        for axis in (*_COLUMN_AXES, *named)
        if len({_place(row, axis) for row in chosen} - {None}) > 1
    ]


def _place(row: Score, axis: str) -> float | None:
    if axis in _COLUMN_AXES:
        return getattr(row, axis) if row.setting in _COLUMN_AXES[axis] else None
    return row.point[1] if row.point is not None and row.point[0] == axis else None


def _interval(rows: Sequence[Score]) -> Interval:
    found = crossed([r.value for r in rows], [r.subject for r in rows], [r.network for r in rows])
    return found.interval


def _values(rows: Iterable[Score]) -> dict[tuple[Cell, str, str], dict[tuple, float]]:
    """By (cell, method, metric), the values by image, without curves."""
    values: dict[tuple, dict[tuple, float]] = {}
    for row in rows:
        if row.point is None:
            values.setdefault((cell(row), row.method, row.metric), {})[row.image] = row.value
    return values


def _paired(ours: dict[tuple, float], base: dict[tuple, float]) -> Crossed | None:
    """The mean of `ours - base` over the images of both; None if they share none. Effects of
    subject, prompt and noise that both share cancel."""
    shared = [image for image in ours if image in base]
    if not shared:
        return None
    differences = [ours[image] - base[image] for image in shared]
    return crossed(differences, [image[4] for image in shared], [image[7] for image in shared])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
