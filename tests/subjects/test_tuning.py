"""Choosing a setting: against tables whose answer is known, and a grid that is run once."""

import numpy as np
import pytest

from experiments.subjects.tuning import Grid, Row, best_step, fixed_step, tune
from tests.training.test_finetune import SUBJECTS, tuner
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.training.examples import stacked


def table(scores):
    """Rows of {(rank, rate, step): {subject: score}}."""
    return [
        Row(rank=r, rate=lr, step=step, subject=s, score=value)
        for (r, lr, step), found in scores.items()
        for s, value in found.items()
    ]


ROWS = table(
    {
        (4, 1e-4, 100): {"a": 0.1, "b": 0.9},
        (4, 1e-4, 200): {"a": 0.9, "b": 0.2},
        (8, 2e-4, 100): {"a": 0.6, "b": 0.7},
        (8, 2e-4, 200): {"a": 0.7, "b": 0.6},
    }
)


def test_the_fixed_step_is_the_best_mean_and_the_cheapest_of_equals():
    chosen = fixed_step(ROWS)
    assert (chosen.rank, chosen.rate, chosen.steps) == (8, 2e-4, {"a": 100, "b": 100})
    assert chosen.score == pytest.approx(0.65)


def test_the_oracle_chooses_for_every_subject_and_is_never_worse():
    chosen = fixed_step(ROWS)
    same = best_step(ROWS, chosen)
    assert (same.rank, same.steps, same.score) == (8, {"a": 200, "b": 100}, pytest.approx(0.7))
    free = best_step(ROWS)
    assert (free.rank, free.steps, free.score) == (4, {"a": 200, "b": 100}, pytest.approx(0.9))
    rng = np.random.default_rng(0)
    for _ in range(20):
        keys = [(r, lr, s) for r in (4, 8) for lr in (1e-4, 1e-3) for s in (1, 2, 3)]
        rows = table(
            {key: dict(zip("abc", rng.normal(size=3).tolist(), strict=True)) for key in keys}
        )
        fixed = fixed_step(rows)
        assert best_step(rows).score >= best_step(rows, fixed).score >= fixed.score


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no rows"),
        (ROWS[:-1], "every setting needs a score of every subject"),
        (table({(4, 1e-4, 1): {"a": np.nan}}), "is nan"),
    ],
)
def test_tables_that_do_not_compare(rows, message):
    with pytest.raises(UvitError, match=message):
        fixed_step(rows)


def test_a_grid_is_run_once_and_kept(tmp_path):
    params, made = tuner()
    subjects = stacked(dict(list(SUBJECTS.items())[:2]))
    grid, calls = Grid(ranks=(2,), rates=(1e-4, 1e-2), steps=(1, 3)), []

    def judge(tuner, trained):
        """How far the adapters moved."""
        calls.append(1)
        moved = [
            np.abs(pair.b).sum((-1, -2, -3)).reshape(2, -1).sum(1) for pair in trained.values()
        ]
        return np.sum(moved, axis=0)

    def run(grid=grid):
        options = dict(folder=tmp_path / "tuning", config=made.config)
        return tune(made.model, ObjectiveConfig(), params, subjects, grid, judge, **options)

    rows = run()
    assert len(rows) == 8 and len(calls) == 4
    chosen = fixed_step(rows)
    assert (chosen.rank, chosen.rate, set(chosen.steps.values())) == (2, 1e-2, {3})
    assert run() == rows and len(calls) == 4
    with pytest.raises(UvitError, match="differs in config, steps"):
        run(Grid(ranks=(2,), rates=(1e-4,), steps=(2,)))
    with pytest.raises(UvitError, match="rates must be different"):
        Grid(rates=(1e-4, 1e-4))
