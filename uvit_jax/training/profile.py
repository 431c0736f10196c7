"""Profiles chosen steps, for xprof or TensorBoard's profile plugin, into the workdir's `profile/`.

The host synchronises with the devices before the first traced step and after the last, so that the
trace contains exactly these steps; other steps are not slowed down.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger(__name__)


class Profiler:
    """Traces a range of steps on process 0; the others run the same program.

    Args:
      steps: (first, last), both inclusive, or () for none. folder: of the trace.
      start: the step that the run starts or resumes from.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path, start: int):
        self._first, self._last = steps or (0, 0)
        self._folder = folder
        self._tracing = False
        self._enabled = jax.process_index() == 0 and bool(steps)
        if self._enabled and start >= self._first:
            logger.info("steps %d to %d are not traced: the run resumes after them", *steps)
            self._enabled = False

    def before(self, step: int, state: Any) -> None:
        """Call before every step, with the state that it starts from."""
        if self._enabled and step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """The context in which to load the batch and run the step; names the step in the trace."""
        if not self._tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, state: Any) -> None:
        """Call after every step, with the state that it returned."""
        if self._tracing and step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace if it is still running."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            logger.info("wrote the trace of step %d onwards to %s", self._first, self._folder)
