"""Choosing a setting: on tables with a known best, and a grid that is run once."""

import numpy as np
import pytest

from experiments.subjects.tuning import TuningGrid, TuningScore, best_setting, tune
from tests.training.test_finetune import SUBJECTS, tuner
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.training.examples import stacked


def table(scores):
    """Rows of {(rank, rate, prior, step): {subject: score}}."""
    return [
        TuningScore(rank=r, rate=lr, prior=prior, step=step, subject=s, score=value)
        for (r, lr, prior, step), found in scores.items()
        for s, value in found.items()
    ]


ROWS = table(
    {
        (4, 1e-4, 1.0, 100): {"a": 0.1, "b": 0.9},
        (4, 1e-4, 1.0, 200): {"a": 0.9, "b": 0.2},
        (8, 2e-4, 0.3, 100): {"a": 0.6, "b": 0.7},
        (8, 2e-4, 0.3, 200): {"a": 0.7, "b": 0.6},
    }
)


def test_the_chosen_setting_is_the_best_mean_and_the_cheapest_of_equals():
    chosen = best_setting(ROWS)
    assert (chosen.rank, chosen.rate, chosen.prior, chosen.step) == (8, 2e-4, 0.3, 100)
    assert chosen.score == pytest.approx(0.65)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "no scores"),
        (ROWS[:-1], "every setting needs a score"),
        (table({(4, 1e-4, 1.0, 1): {"a": np.nan}}), "is nan"),
    ],
)
def test_tables_that_do_not_compare(rows, message):
    with pytest.raises(UvitError, match=message):
        best_setting(rows)


def test_a_grid_is_run_once_and_cached(tmp_path):
    params, made = tuner()
    subjects = stacked(dict(list(SUBJECTS.items())[:2]))
    grid, calls = TuningGrid(ranks=(2,), rates=(1e-4, 1e-2), steps=(1, 3)), []

    def scorer(tuner, trained):
        """How far the adapters moved."""
        calls.append(1)
        moved = [
            np.abs(pair.b).sum((-1, -2, -3)).reshape(2, -1).sum(1) for pair in trained.values()
        ]
        return np.sum(moved, axis=0)

    def run(grid=grid):
        options = dict(folder=tmp_path / "tuning", config=made.config)
        return tune(made.model, ObjectiveConfig(), params, subjects, grid, scorer, **options)

    rows = run()
    assert len(rows) == 8 and len(calls) == 4
    chosen = best_setting(rows)
    assert (chosen.rank, chosen.rate, chosen.step) == (2, 1e-2, 3)
    assert run() == rows and len(calls) == 4
    with pytest.raises(UvitError, match="differs in config, steps"):
        run(TuningGrid(ranks=(2,), rates=(1e-4,), steps=(2,)))
    with pytest.raises(UvitError, match="rates must be distinct"):
        TuningGrid(rates=(1e-4, 1e-4))
    with pytest.raises(UvitError, match="priors must be distinct weights"):
        TuningGrid(priors=(-1.0,))
