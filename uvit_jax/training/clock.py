"""Splits a run's wall time by activity, such as steps, input and checkpoints, on the host's clock.

Timing does not synchronise the devices. Steps are dispatched ahead of them, so `input` is the time
that the host waited for a batch, even if the devices had work left; the time of the steps
themselves appears where the host waits for the devices, as `step`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

ACTIVITIES = ("step", "input", "checkpoint", "compile", "sample", "start")


class Clock:
    """Seconds by activity since its creation, which sum to the elapsed wall time.

    `start` lasts until `started` is called (model, state, restored checkpoint); `compile` is the
    train step's compilation; `sample` the grids of samples and the binding probe, with their
    compilation; `checkpoint` the time that saving blocked the loop; `step` everything else.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._changed = now()
        self._activity = "start"
        self._total = dict.fromkeys(ACTIVITIES, 0.0)
        self._last_total = dict(self._total)

    def started(self) -> None:
        """Ends `start`; from now on, time outside `at` counts as `step`."""
        self._move("step")

    @contextlib.contextmanager
    def at(self, activity: str) -> Iterator[None]:
        """Counts the time inside the context as `activity`, one of `ACTIVITIES`."""
        before = self._move(activity)
        try:
            yield
        finally:
            self._move(before)

    def timed(self, activity: str, function: Callable[[], None]) -> Callable[[], None]:
        """`function`, with its time counted for `activity`."""

        def call() -> None:
            with self.at(activity):
                function()

        return call

    def total(self) -> dict[str, float]:
        """Seconds by activity; their sum is the time since the clock's creation."""
        self._move(self._activity)
        return dict(self._total)

    def lap(self) -> dict[str, float]:
        """Seconds by activity since the last call; their sum is the time since then."""
        total = self.total()
        lap = {activity: total[activity] - self._last_total[activity] for activity in ACTIVITIES}
        self._last_total = total
        return lap

    def _move(self, activity: str) -> str:
        now = self._now()
        self._total[self._activity] += now - self._changed
        self._changed = now
        before, self._activity = self._activity, activity
        return before


def shares(seconds: dict[str, float]) -> str:
    """The shares of at least 1%, the largest first, such as `step 80%, compile 12%`."""
    total = sum(seconds.values()) or 1.0
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {part / total:.0%}" for name, part in parts if part / total >= 0.01)
