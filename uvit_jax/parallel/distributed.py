"""Several processes as one program: how they find each other, and how they stop together."""

import os
import signal
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils

from uvit_jax.errors import UvitError


def initialize(spec: str) -> None:
    """Joins this process to the others.

    Args:
      spec: empty for a single process; `auto` where the environment tells (TPU pods, SLURM); or
        `ADDRESS:PORT,COUNT,INDEX`, of the coordinator, of all processes and of this one.

    Raises:
      UvitError: if `spec` is none of these.
    """
    if not spec:
        return
    if spec == "auto":
        jax.distributed.initialize()
        return
    parts = spec.split(",")
    if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit() or ":" not in parts[0]:
        raise UvitError(
            f"--distributed={spec!r} must be 'auto' or ADDRESS:PORT,COUNT,INDEX, "
            "as in 10.0.0.1:1234,4,0"
        )
    address, count, index = parts[0], int(parts[1]), int(parts[2])
    if index >= count:
        raise UvitError(f"--distributed: process {index} of {count}; the first is 0")
    # Only the CPU backend reads it; without it, CPU processes cannot exchange arrays.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index)


class StopSignal:
    """Notes SIGTERM and SIGINT while it is entered, so that a run can save before it goes.

    A second SIGINT is Python's own KeyboardInterrupt again.
    """

    def __init__(self):
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        # With several processes, SIGTERM is the preemption service's, whose handler must stay.
        numbers = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
        for number in numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step; once more to stop at once", file=sys.stderr)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # the preemption service tells the others

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; all processes answer alike.

        With several processes, one signal may come before a step here and after it there. JAX's
        preemption service agrees on a step for SIGTERM; it is asked instead.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self.signal)
