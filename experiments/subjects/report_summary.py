"""From a comparison's rows to what its page shows: means, differences, curves, with intervals."""

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.subjects.clusters import (
    clustered_interval,
    holm,
    paired_clustered_interval,
    sign_flip_p,
    worst,
)
from experiments.subjects.results import Manifest, Row
from uvit_jax.evaluation.statistics import Interval

Cell = tuple[str, str, int, int]
"""setting, split, subjects, views: what one table is of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """method - baseline in a metric, of one cell.

    Attributes:
      p: of sign flips, adjusted for all `among` comparisons of its family.
      main: whether that is of the manifest's setting and split, which the whole was made for; the
        other family is all else.
    """

    cell: Cell
    method: str
    metric: str
    interval: Interval
    p: float
    main: bool
    among: int


def cell(row: Row) -> Cell:
    """The table that a row belongs to."""
    return row.setting, row.split, row.subjects, row.views


def cells(rows: Iterable[Row], manifest: Manifest) -> list[Cell]:
    """The tables, in the order in which their settings first appear, of each the manifest's split
    first; curves are none."""
    found = list(dict.fromkeys(cell(row) for row in rows if row.point is None))
    order = {setting: i for i, setting in enumerate(dict.fromkeys(c[0] for c in found))}
    return sorted(found, key=lambda c: (order[c[0]], c[1] != manifest.split, *c[1:]))


def means(rows: Iterable[Row]) -> dict[tuple[Cell, str, str], Interval]:
    """The mean over subjects by (cell, method, metric), without curves."""
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.point is None:
            grouped.setdefault((cell(row), row.method, row.metric), []).append(row)
    return {key: _interval(found) for key, found in grouped.items()}


def differences(rows: Sequence[Row], manifest: Manifest) -> list[Difference]:
    """Each method against the baseline, picture by picture, in identity and prompt-following.

    Anchors are no competitors and are left out, so that they cost no power. The same pictures in
    two cells, such as the main one and its column of `views`, are one comparison.
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
    rows: Iterable[Row], manifest: Manifest, metric: str, k: int
) -> dict[str, list[tuple[str, float]]]:
    """By method the k subjects with the least mean in the manifest's setting and split."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        if (row.setting, row.split, row.metric) == (manifest.setting, manifest.split, metric):
            grouped.setdefault(row.method, []).append(row)
    return {
        method: worst([r.value for r in found], [r.subject for r in found], k)
        for method, found in grouped.items()
    }


Curve = list[tuple[float, Interval]]


_COLUMN_AXES = {"views": ("views",), "subjects": ("single", "multi")}
"""Axes whose places are columns, of these settings."""


def curves(rows: Iterable[Row], manifest: Manifest, axis: str, metric: str) -> dict[str, Curve]:
    """By method a metric along an axis, ascending, in the manifest's split.

    Args:
      axis: that of settings such as `lora_step=400`; or `views` (the column, in the setting
        `views`) or `subjects` (in `single` and `multi`).
    """
    grouped: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        place = _place(row, axis)
        if row.metric == metric and row.split == manifest.split and place is not None:
            grouped.setdefault((row.method, place), []).append(row)
    found: dict[str, Curve] = {}
    for (method, place), members in sorted(grouped.items(), key=lambda item: item[0]):
        found.setdefault(method, []).append((place, _interval(members)))
    return found


def methods_along(rows: Iterable[Row], manifest: Manifest, axis: str) -> set[str]:
    """Whose curves there are along an axis, in any metric; no interval is computed for it."""
    return {
        row.method for row in rows if row.split == manifest.split and _place(row, axis) is not None
    }


def axes(rows: Sequence[Row], manifest: Manifest) -> list[str]:
    """The axes along which there are curves, `views` and `subjects` first."""
    named = dict.fromkeys(row.point[0] for row in rows if row.point is not None)
    chosen = [row for row in rows if row.split == manifest.split]
    return [
        axis
        for axis in (*_COLUMN_AXES, *named)
        if len({_place(row, axis) for row in chosen} - {None}) > 1
    ]


def _place(row: Row, axis: str) -> float | None:
    if axis in _COLUMN_AXES:
        return getattr(row, axis) if row.setting in _COLUMN_AXES[axis] else None
    return row.point[1] if row.point is not None and row.point[0] == axis else None


def _interval(rows: Sequence[Row]) -> Interval:
    return clustered_interval([r.value for r in rows], [r.subject for r in rows])


def _subject(image: tuple) -> str:
    return image[4]
