"""Where a run's wall time goes: every second of it in one of a few places, on the host's clock.

Measuring makes nobody wait. Steps are dispatched ahead of the devices, so `input` is how long the
host waited for a batch, whether or not the devices had work left meanwhile; a step that waits for
nothing else shows up where the host waits for the devices, as `step`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

PLACES = ("step", "input", "checkpoint", "compile", "sample", "start")


class Clock:
    """Seconds by place since it was made; `step` is what no other place has claimed.

    `start` is all before `started` was called (the model, its state, a checkpoint restored);
    `compile` the train step's compilation; `sample` grids of samples, with theirs; `checkpoint` how
    long a save kept the run from going on.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._changed = now()
        self._place = "start"
        self._total = dict.fromkeys(PLACES, 0.0)
        self._seen = dict(self._total)

    def started(self) -> None:
        """From here on, time is that of steps unless it is claimed."""
        self._move("step")

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Counts what is done inside for `place`, one of `PLACES`, and for no other."""
        before = self._move(place)
        try:
            yield
        finally:
            self._move(before)

    def timed(self, place: str, function: Callable[[], None]) -> Callable[[], None]:
        """`function`, with its time counted for `place`."""

        def call() -> None:
            with self.at(place):
                function()

        return call

    def total(self) -> dict[str, float]:
        """Seconds by place; their sum is the time since the clock was made."""
        self._move(self._place)
        return dict(self._total)

    def lap(self) -> dict[str, float]:
        """Seconds by place since the last lap; their sum is the time since then."""
        total = self.total()
        lap = {place: total[place] - self._seen[place] for place in PLACES}
        self._seen = total
        return lap

    def _move(self, place: str) -> str:
        now = self._now()
        self._total[self._place] += now - self._changed
        self._changed = now
        before, self._place = self._place, place
        return before


def shares(seconds: dict[str, float]) -> str:
    """`step 80 %, compile 12 %, …`: the larger parts of some seconds by place, in order."""
    whole = sum(seconds.values()) or 1.0
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {part / whole:.0%}" for name, part in parts if part / whole >= 0.01)
