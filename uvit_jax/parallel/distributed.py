"""Several processes as one program: how they find each other, and how they stop together.

If one is lost, the others end: at once where a collective fails (CPU, GPU), otherwise (a TPU waits)
when the lost one's heartbeats have failed to come, by JAX's hand.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils

from uvit_jax.errors import UvitError
from uvit_jax.parallel import rendezvous

PATIENCE = 60
"""Seconds after which a process that gives no sign is lost, and for which one that has ended waits
for the others to end."""

AGAIN = "The same command on all of them goes on from the newest checkpoint"


def initialize(spec: str, timeout: int = 300) -> None:
    """Joins this process to the others.

    Args:
      spec: empty for a single process; `auto` where the environment tells (TPU pods, SLURM); or
        `ADDRESS:PORT,COUNT,INDEX`, of the coordinator, of all processes and of this one.
      timeout: seconds until all must have come; if less than `PATIENCE`, it takes its place.

    Raises:
      UvitError: if `spec` is none of these, or the processes do not meet: the address does not
        answer, some are missing, or they disagree on their count.
    """
    if not spec:
        return
    patience = min(timeout, PATIENCE)
    limits = dict(
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=patience,
        shutdown_timeout_seconds=patience,
    )
    # Only the CPU backend reads it; without it, CPU processes cannot exchange arrays.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if spec == "auto":
        words = _LastWords(f"not all processes came to the coordinator within {timeout} s")
        try:
            jax.distributed.initialize(**limits)
        except ValueError:
            words.say("")
            raise UvitError(
                "--distributed=auto finds no TPU pod, SLURM or Open MPI around this process; give "
                "ADDRESS:PORT,COUNT,INDEX"
            ) from None
        _leave_together(words)
        return
    if not re.fullmatch(r".+:\d+,\d+,\d+", spec):
        raise UvitError(
            f"--distributed={spec!r} must be 'auto' or ADDRESS:PORT,COUNT,INDEX, "
            "as in 10.0.0.1:1234,4,0"
        )
    address, *numbers = spec.split(",")
    count, index = map(int, numbers)
    if index >= count:
        raise UvitError(f"--distributed: process {index} of {count}; the first is 0")
    rendezvous.meet(address, count, index, timeout)
    words = _LastWords(f"the processes that met at {address} could not be joined by JAX")
    jax.distributed.initialize(address, count, index, **limits)
    _leave_together(words)


def end_if_lost(error: Exception) -> None:
    """Ends this process with a sentence if `error` says that another one of the run is gone.

    It must not end as usual, which waits for the others.
    """
    found = re.search(r".*(gloo|nccl|coordination|peer).*", str(error), re.IGNORECASE)
    if jax.process_count() > 1 and found:
        who = f"process {jax.process_index()} of {jax.process_count()}"
        sentence = f"error: {who} ends: another one was lost ({found[0][:200]}). {AGAIN}"
        print(f"\n{sentence}", file=sys.stderr, flush=True)  # after a progress bar's line
        sys.stdout.flush()
        _LastWords.current.say("")
        os._exit(1)


def _leave_together(words: "_LastWords") -> None:
    who = f"process {jax.process_index()} of {jax.process_count()}"
    words.say(f"error: {who} ended: it was killed, or another one was lost. {AGAIN}")

    def leave() -> None:
        words.say(f"error: the others did not end when {who} did")
        jax.distributed.shutdown()
        words.say("")

    atexit.register(leave)


class _LastWords:
    """A sentence for stderr if this process is gone before it says otherwise.

    Where JAX loses a process, it aborts the others, and no Python runs any more. A shell waits for
    that, and prints the last line that it was given.
    """

    current: "_LastWords"

    def __init__(self, problem: str):
        program = 'while read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2'
        self._shell = subprocess.Popen(
            ["sh", "-c", program], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self.say(f"error: --distributed: {problem}")
        _LastWords.current = self

    def say(self, line: str) -> None:
        """Replaces the sentence; an empty one says nothing."""
        with contextlib.suppress(OSError):  # someone has ended the shell
            print(line, file=self._shell.stdin, flush=True)


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
