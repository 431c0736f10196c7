"""Which rank, rate and steps fine-tuning is to have: a grid, tried on validation subjects.

    rows = tune(model, diffusion, params, subjects, grid, judge, folder=workdir / "tuning")
    chosen = fixed_step(rows)                  # one setting for all subjects, to be frozen
    oracle = best_step(rows, chosen)           # its best step for every subject: an upper bound

Every cell of the grid, a rank with a rate, is one fine-tuning of all subjects, judged at each of
the grid's steps; its rows are kept in a file of its own, and are there the next time.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.models.model import Model, Params
from uvit_jax.training.examples import Stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner

Judge = Callable[[Finetuner, Any], np.ndarray]
"""(the tuner, what it trained of all subjects, leaves (S, …)) → scores (S,), higher is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """ranks × rates, each judged at all of `steps` of one run. A full fine-tuning has one rank."""

    ranks: tuple[int, ...] = (4, 8, 16)
    rates: tuple[float, ...] = (1e-4, 2e-4, 5e-4)
    steps: tuple[int, ...] = (100, 200, 400, 800)

    def __post_init__(self):
        for key in ("ranks", "rates", "steps"):
            values = getattr(self, key)
            if not values or min(values) <= 0 or len(set(values)) != len(values):
                raise UvitError(f"{key} must be different positive numbers, got {values}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The score of one subject with one setting."""

    rank: int
    rate: float
    step: int
    subject: str
    score: float

    @property
    def setting(self) -> tuple[int, float, int]:
        """(rank, rate, step)."""
        return self.rank, self.rate, self.step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting: of `fixed_step`, the same for all subjects; of `best_step`, each one's steps.

    Attributes:
      steps: by subject. score: the mean over subjects.
    """

    rank: int
    rate: float
    steps: dict[str, int]
    score: float


def tune(
    model: Model,
    diffusion: ObjectiveConfig,
    params: Params,
    subjects: Stacked,
    grid: Grid,
    judge: Judge,
    *,
    folder: Path,
    config: FinetuneConfig | None = None,
    prior: Stacked | None = None,
    prior_of: Sequence[int] | None = None,
) -> list[Row]:
    """Fine-tunes and judges every cell of a grid, or reads what `folder` has of it.

    Args:
      subjects: of validation, that the comparison to come does not have.
      judge: see `Judge`.
      folder: of the cells' files; one folder is for one base, judge and recipe.
      config: the recipe; its steps, rank and rate are the grid's.
      prior, prior_of: see `Finetuner`.

    Raises:
      UvitError: if a file in `folder` is damaged or of another recipe or other subjects.
    """
    config = FinetuneConfig() if config is None else config
    rows: list[Row] = []
    for rank in grid.ranks:
        recipe = dataclasses.replace(
            config,
            steps=max(grid.steps),
            learning_rate=0.0,
            lora=dataclasses.replace(config.lora, rank=rank),
        )
        tuner = Finetuner(model, diffusion, recipe)  # one program for all rates
        for rate in grid.rates:
            file = folder / f"rank{rank}_rate{rate:g}.json"
            asked = {
                "config": json.loads(json.dumps(dataclasses.asdict(recipe))),
                "rate": rate,
                "steps": sorted(grid.steps),
                "subjects": list(subjects.names),
            }
            found = _read(file, asked)
            if found is None:
                tuned = tuner(
                    params,
                    subjects,
                    prior=prior,
                    prior_of=prior_of,
                    learning_rate=rate,
                    at=grid.steps,
                )
                found = [
                    Row(rank=rank, rate=rate, step=step, subject=name, score=float(score))
                    for step, trained in sorted(tuned.trained.items())
                    for name, score in zip(subjects.names, judge(tuner, trained), strict=True)
                ]
                folder.mkdir(parents=True, exist_ok=True)
                kept = asked | {"rows": [dataclasses.asdict(row) for row in found]}
                write_text(file, json.dumps(kept, indent=1) + "\n")
            rows += found
    return rows


def fixed_step(rows: Sequence[Row]) -> Choice:
    """The setting whose mean score over all subjects is the highest; of equals, the cheapest.

    Raises:
      UvitError: if settings were not all tried on the same subjects, or a score is no number.
    """
    scores = _by_setting(rows)
    best = min(scores, key=lambda setting: (-_mean(scores[setting]), setting[2], setting[0]))
    rank, rate, step = best
    return Choice(
        rank=rank, rate=rate, steps=dict.fromkeys(scores[best], step), score=_mean(scores[best])
    )


def best_step(rows: Sequence[Row], choice: Choice | None = None) -> Choice:
    """The best step of every subject for itself, which only an oracle knows beforehand.

    Args:
      choice: of whose rank and rate; None for those with the highest mean of such bests.

    Raises:
      UvitError: as `fixed_step` does; or if there are no rows of the choice.
    """
    scores = _by_setting(rows)
    cells: dict[tuple[int, float], dict[str, tuple[float, int]]] = {}
    for (rank, rate, step), found in sorted(scores.items()):
        cell = cells.setdefault((rank, rate), {})
        for subject, score in found.items():
            if subject not in cell or score > cell[subject][0]:
                cell[subject] = score, step
    means = {key: _mean({s: score for s, (score, _) in c.items()}) for key, c in cells.items()}
    key = max(sorted(means), key=means.get) if choice is None else (choice.rank, choice.rate)
    if key not in cells:
        raise UvitError(f"there are no rows of rank {key[0]} and rate {key[1]:g}")
    steps = {subject: step for subject, (_, step) in cells[key].items()}
    return Choice(rank=key[0], rate=key[1], steps=steps, score=means[key])


def _by_setting(rows: Sequence[Row]) -> dict[tuple[int, float, int], dict[str, float]]:
    scores: dict[tuple[int, float, int], dict[str, float]] = {}
    for row in rows:
        if not np.isfinite(row.score):
            raise UvitError(f"the score of {row.subject!r} at {row.setting} is {row.score}")
        scores.setdefault(row.setting, {})[row.subject] = row.score
    if not scores:
        raise UvitError("there are no rows to choose a setting from")
    if len({frozenset(found) for found in scores.values()}) != 1:
        raise UvitError(
            "every setting needs a score of every subject, or their means do not compare"
        )
    return scores


def _mean(scores: dict[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def _read(file: Path, asked: dict[str, Any]) -> list[Row] | None:
    """The rows in a cell's file, None if there is none."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        rows = [Row(**row) for row in found.pop("rows")]
    except (ValueError, KeyError, TypeError) as error:
        raise UvitError(f"{file} is damaged ({error}); remove it, and it is made again") from None
    if changed := [key for key in asked if found.get(key) != asked[key]]:
        raise UvitError(f"{file} differs in {', '.join(changed)}; give another folder")
    return rows
