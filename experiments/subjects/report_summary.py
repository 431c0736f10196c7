"""Statistics of the report: means, paired differences and curves, with intervals."""

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.subjects.clusters import (
    clustered_interval,
    holm,
    paired_clustered_interval,
    sign_flip_p,
    worst,
)
from experiments.subjects.results import Manifest, Score
from uvit_jax.evaluation.statistics import Interval

Cell = tuple[str, str, int, int]
"""(setting, split, subjects, views), the scope of one table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """method - baseline in one metric and cell.

    Attributes:
      p: of sign flips, adjusted for the `among` comparisons of its family.
      main: whether the family is that of the manifest's setting and split; all other comparisons
        are the second family.
    """

    cell: Cell
    method: str
    metric: str
    interval: Interval
    p: float
    main: bool
    among: int


def cell(row: Score) -> Cell:
    """The cell of a row."""
    return row.setting, row.split, row.subjects, row.views


def cells(rows: Iterable[Score], manifest: Manifest) -> list[Cell]:
    """All cells but curves, by first appearance of the setting, the manifest's split first."""
    found = list(dict.fromkeys(cell(row) for row in rows if row.point is None))
    order = {setting: i for i, setting in enumerate(dict.fromkeys(c[0] for c in found))}
    return sorted(found, key=lambda c: (order[c[0]], c[1] != manifest.split, *c[1:]))


def means(rows: Iterable[Score]) -> dict[tuple[Cell, str, str], Interval]:
    """The mean over subjects by (cell, method, metric), without curves."""
    grouped: dict[tuple, list[Score]] = {}
    for row in rows:
        if row.point is None:
            grouped.setdefault((cell(row), row.method, row.metric), []).append(row)
    return {key: _interval(found) for key, found in grouped.items()}


def differences(rows: Sequence[Score], manifest: Manifest) -> list[Difference]:
    """Each method against the baseline, paired by image, in identity and prompt-following.

    Anchors are left out, so that they do not cost statistical power. The same images in two cells,
    such as the main one and its column of `views`, are one comparison.
    """
    metrics = [m for m, about in manifest.metrics.items() if about.role != "other"]
    values: dict[tuple, dict[tuple, float]] = {}
    for row in rows:
        if row.point is None:
            found = values.setdefault((cell(row), row.method, row.metric), {})
            found[row.image] = row.value
    pending, p_values, main = [], {}, set()
    for where in cells(rows, manifest):
        for method, about in manifest.methods.items():
            if about.anchor or method == manifest.baseline:
                continue
            for metric in metrics:
                ours = values.get((where, method, metric), {})
                base = values.get((where, manifest.baseline, metric), {})
                interval = paired_clustered_interval(ours, base, _subject)
                if interval is None:
                    continue
                found = {key: ours[key] - base[key] for key in ours if key in base}
                same = frozenset((key[1:], value) for key, value in found.items())
                name = method, metric, same
                if where[:2] == (manifest.setting, manifest.split):
                    main.add(name)
                if name not in p_values:
                    p_values[name] = sign_flip_p(list(found.values()), [*map(_subject, found)])
                pending.append((name, where, interval))
    adjusted = {}
    for family in (main, p_values.keys() - main):
        found = holm({name: p for name, p in p_values.items() if name in family})
        adjusted |= {name: (p, len(family)) for name, p in found.items()}
    return [
        Difference(
            cell=where,
            method=name[0],
            metric=name[1],
            interval=interval,
            p=adjusted[name][0],
            main=name in main,
            among=adjusted[name][1],
        )
        for name, where, interval in pending
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


_COLUMN_AXES = {"views": ("views",), "subjects": ("single", "multi")}
"""Axes that are columns of the table, and the settings that vary along them."""


def curves(rows: Iterable[Score], manifest: Manifest, axis: str, metric: str) -> dict[str, Curve]:
    """A metric along an axis, ascending, in the manifest's split, by method.

    Args:
      axis: of settings such as `lora_step=400`; or `views` (the column, in the setting
        `views`) or `subjects` (in `single` and `multi`).
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
    return clustered_interval([r.value for r in rows], [r.subject for r in rows])


def _subject(image: tuple) -> str:
    return image[4]
