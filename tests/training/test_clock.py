"""Every second of a run is counted once."""

import itertools
import math

import pytest

from uvit_jax.training.clock import ACTIVITIES, Clock, shares


def ticking():
    """A clock that advances by a second at every reading, and the counter of readings."""
    readings = itertools.count()
    return Clock(now=lambda: float(next(readings))), readings


def test_activities_sum_to_wall_time_and_laps_to_the_total():
    clock, readings = ticking()
    clock.started()
    laps = []
    for _ in range(3):
        with clock.at("input"), clock.at("checkpoint"):  # the inner activity has the time
            pass
        with clock.at("sample"):
            pass
        laps.append(clock.lap())
    total = clock.total()
    assert tuple(total) == ACTIVITIES and sum(total.values()) == next(readings) - 1
    laps.append(clock.lap())
    for place, seconds in clock.total().items():
        rest = 0 if place != "step" else 1  # the reading by total()
        assert seconds == sum(lap[place] for lap in laps) + rest
    assert total["checkpoint"] == total["sample"] == 3 and total["input"] == 6


def test_time_is_counted_when_an_exception_is_raised():
    clock, _ = ticking()
    clock.started()
    with pytest.raises(KeyError), clock.at("sample"):
        raise KeyError
    before = clock.total()
    after = clock.total()
    assert after["sample"] == before["sample"] and after["step"] == before["step"] + 1


def test_shares_name_the_larger_parts_first():
    seconds = dict.fromkeys(ACTIVITIES, 0.0) | {"step": 1.0, "compile": 3.0, "input": 0.001}
    assert shares(seconds) == "compile 75%, step 25%"
    assert shares(dict.fromkeys(ACTIVITIES, 0.0)) == ""
    assert math.isclose(sum(seconds.values()), 4.001)
