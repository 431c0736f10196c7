"""Tunes rank, rate, prior weight and steps of fine-tuning by a grid search on validation subjects.

    scores = tune(model, diffusion, params, subjects, grid, scorer, folder=workdir / "tuning")
    best = best_setting(scores)

Each cell of the grid, a rank, a rate and a prior weight, fine-tunes all subjects once and is scored
at each of the grid's steps. Its scores are stored in a file, which later calls read.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.config import brief
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.io import write_text
from uvit_jax.models.model import Model, Params
from uvit_jax.training.examples import Stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner

AdapterScorer = Callable[[Finetuner, Any], np.ndarray]
"""(fine-tuner, trained parameters with leaves (S, …)) → scores (S,) of S subjects."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningGrid:
    """ranks × rates × priors (weights of prior preservation), each scored at all of `steps`."""

    ranks: tuple[int, ...] = (4, 8, 16)
    rates: tuple[float, ...] = (1e-4, 2e-4, 5e-4)
    priors: tuple[float, ...] = (1.0,)
    steps: tuple[int, ...] = (100, 200, 400, 800)

    def __post_init__(self):
        for key in ("ranks", "rates", "steps"):
            values = getattr(self, key)
            if not values or min(values) <= 0 or len(set(values)) != len(values):
                raise UvitError(f"{key} must be distinct positive numbers, got {values}")
        if not self.priors or min(self.priors) < 0 or len(set(self.priors)) < len(self.priors):
            raise UvitError(
                f"priors must be distinct weights of at least 0, got {brief(self.priors)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningScore:
    """The score of one validation subject with one setting."""

    rank: int
    rate: float
    prior: float
    step: int
    subject: str
    score: float

    @property
    def setting(self) -> tuple[int, float, float, int]:
        """(rank, rate, prior weight, step)."""
        return self.rank, self.rate, self.prior, self.step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedSetting:
    """The chosen setting. score: its mean over validation subjects."""

    rank: int
    rate: float
    prior: float
    step: int
    score: float


def tune(
    model: Model,
    diffusion: ObjectiveConfig,
    params: Params,
    subjects: Stacked,
    grid: TuningGrid,
    scorer: AdapterScorer,
    *,
    folder: Path,
    config: FinetuneConfig,
    prior: Stacked | None = None,
    prior_of: Sequence[int] | None = None,
) -> list[TuningScore]:
    """Fine-tunes and scores every cell of a grid; cells with a file in `folder` are read from it.

    Args:
      subjects: validation subjects, which the comparison does not evaluate.
      folder: of the cells' files, for one base network, scorer and recipe.
      config: the recipe, but for the grid's values. prior, prior_of: see `Finetuner`.

    Raises:
      UvitError: if a file in `folder` is damaged, or of another recipe or other subjects.
    """
    rows: list[TuningScore] = []
    for rank in grid.ranks:
        recipe = dataclasses.replace(
            config,
            steps=max(grid.steps),
            learning_rate=0.0,
            lora=dataclasses.replace(config.lora, rank=rank),
        )
        tuner = Finetuner(model, diffusion, recipe)  # compiled once for all rates
        for rate, weight in itertools.product(grid.rates, grid.priors):
            file = folder / f"rank{rank}_rate{rate:g}_prior{weight:g}.json"
            expected = {
                "config": json.loads(json.dumps(dataclasses.asdict(recipe))),
                "rate": rate,
                "prior": weight,
                "steps": sorted(grid.steps),
                "subjects": list(subjects.names),
            }
            found = _read(file, expected)
            if found is None:
                classes = (prior, prior_of) if weight else (None, None)
                tuned = tuner(
                    params,
                    subjects,
                    prior=classes[0],
                    prior_of=classes[1],
                    learning_rate=rate,
                    prior_weight=weight,
                    at=grid.steps,
                )
                values = dict(rank=rank, rate=rate, prior=weight)
                found = [
                    TuningScore(**values, step=step, subject=name, score=float(score))
                    for step, trained in sorted(tuned.trained.items())
                    for name, score in zip(subjects.names, scorer(tuner, trained), strict=True)
                ]
                folder.mkdir(parents=True, exist_ok=True)
                stored = expected | {"rows": [dataclasses.asdict(row) for row in found]}
                write_text(file, json.dumps(stored, indent=1) + "\n")
            rows += found
    return rows


def best_setting(rows: Sequence[TuningScore]) -> TunedSetting:
    """The setting with the highest mean score over subjects; of ties, the fewest steps, then rank.

    Raises:
      UvitError: if settings have scores of different subjects, or a score is not finite.
    """
    scores = _by_setting(rows)
    best = min(scores, key=lambda setting: (-_mean(scores[setting]), setting[3], setting[0]))
    rank, rate, prior, step = best
    return TunedSetting(rank=rank, rate=rate, prior=prior, step=step, score=_mean(scores[best]))


def _by_setting(rows: Sequence[TuningScore]) -> dict[tuple, dict[str, float]]:
    scores: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if not np.isfinite(row.score):
            raise UvitError(f"the score of {row.subject!r} at {row.setting} is {row.score}")
        scores.setdefault(row.setting, {})[row.subject] = row.score
    if not scores:
        raise UvitError("there are no scores to choose a setting by")
    if len({frozenset(found) for found in scores.values()}) != 1:
        raise UvitError(
            "every setting needs a score of every subject, for their means to be comparable"
        )
    return scores


def _mean(scores: dict[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def _read(file: Path, expected: dict[str, Any]) -> list[TuningScore] | None:
    """The scores in a cell's file, None if there is no file."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        rows = [TuningScore(**row) for row in found.pop("rows")]
    except (ValueError, KeyError, TypeError) as error:
        raise UvitError(
            f"{file} is damaged ({error}); remove it and rerun to regenerate it"
        ) from None
    if changed := [key for key in expected if found.get(key) != expected[key]]:
        raise UvitError(f"{file} differs in {', '.join(changed)}; give another folder")
    return rows
