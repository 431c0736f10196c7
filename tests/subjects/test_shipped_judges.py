"""The two shipped judges were trained independently and tell identities and factors apart."""

import itertools

import numpy as np
import pytest

from experiments.subjects import judge_calibration, totem_judge
from uvit_jax.data.sources.worlds import factors

PAIRS = 64


@pytest.fixture(scope="module")
def table():
    return judge_calibration.calibrate([totem_judge.load(0), totem_judge.load(1)], pairs=PAIRS)


def test_near_misses_and_strangers_are_distinguished(table):
    for found in table.values():
        assert found["auc_random"] > 0.95 and found["top1"]["3"] > found["top1"]["1"] > 0.7
        auc = found["auc_one_factor"]
        # The standard error of 64 pairs is about .04.
        assert all(auc[name] > 0.6 for name in factors.NAMES)
        assert np.mean(list(auc.values())) > 0.75


def test_measured_factors_are_read_rightly(table):
    for found in table.values():
        assert all(found["heads"][name] > 0.75 for name in totem_judge.MEASURED)
        assert found["heads"]["background"] > 0.95 and found["heads"]["present"] > 0.95


def test_scores_fall_with_every_corruption(table):
    for found in table.values():
        for kind in ("blur", "noise", "swap"):
            values = list(found[kind].values())
            assert all(a > b for a, b in itertools.pairwise(values)), kind


def test_judges_are_two():
    first, second = (totem_judge.FOLDER / f"totems_{i}.safetensors" for i in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert max(first.stat().st_size, second.stat().st_size) < 2e6
