"""A trace of chosen steps, for xprof or TensorBoard's profile plugin, in the workdir's `profile/`.

The devices are waited for before the first traced step and after the last, so that the trace holds
these steps whole and no other; the run is slower by that much there, and only there.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger(__name__)


class Profiler:
    """Traces the steps `first` to `last`, both included, if they come.

    Args:
      steps: (first, last), or () for none. folder: where the trace goes.
      start: the step that the run goes on from.

    Process 0 traces, its own host and devices: all others run the same program.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path, start: int):
        self._first, self._last = steps or (0, 0)
        self._folder = folder
        self._on = False
        self._wanted = jax.process_index() == 0 and bool(steps)
        if self._wanted and start >= self._first:
            logger.info("steps %d to %d were before: nothing is traced", *steps)
            self._wanted = False

    def before(self, step: int, state: Any) -> None:
        """To be called before a step, with the state that it starts from."""
        if self._wanted and step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """What a step is to be done in, its batch included, to be known as one in the trace."""
        if not self._on:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, state: Any) -> None:
        """To be called after a step, with the state that it made."""
        if self._on and step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace, also one that was cut short."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            logger.info("a trace of steps from %d on is in %s", self._first, self._folder)
