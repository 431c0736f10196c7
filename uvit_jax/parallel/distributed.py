"""Multi-process runs: joining the processes, and stopping all of them together.

Where JAX itself loses contact (a process that never comes or dies, on TPUs in a collective), its
C++ runtime aborts the process with status 134 and a stack trace; no Python code runs then.
"""

import logging
import os
import re
import signal
import socket
import stat
import sys
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from uvit_jax import interrupts
from uvit_jax.errors import UvitError

logger = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT = 60
"""Seconds after which a silent process counts as lost, and that an ended one waits for the rest."""


def initialize(spec: str, timeout: int = 300) -> None:
    """Joins this process to the others, by `jax.distributed.initialize`.

    JAX aborts the process if others do not join in time, or if two have the same index. A wrong
    address and a port in use are checked before, and raise.

    Args:
      spec: empty for a single process; `auto` on TPU pods, SLURM and Open MPI; or
        `ADDRESS:PORT,COUNT,INDEX`: process 0's address, the number of processes, this one's index.
      timeout: seconds in which all processes must join; also bounds `HEARTBEAT_TIMEOUT`.

    Raises:
      UvitError: if `spec` is none of these, `auto` finds no cluster, or the address is unusable.
    """
    if not spec:
        return
    limit = min(timeout, HEARTBEAT_TIMEOUT)
    options = dict(
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=limit,
        shutdown_timeout_seconds=limit,
    )
    # Without it CPU processes cannot exchange arrays; other backends ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if spec == "auto":
        try:
            jax.distributed.initialize(**options)
        except ValueError:
            raise UvitError(
                "--distributed=auto finds no TPU pod, SLURM or Open MPI environment; give "
                "ADDRESS:PORT,COUNT,INDEX"
            ) from None
        return
    if not re.fullmatch(r".+:\d+,\d+,\d+", spec):
        raise UvitError(
            f"--distributed={spec!r} must be 'auto' or ADDRESS:PORT,COUNT,INDEX, "
            "as in 10.0.0.1:1234,4,0"
        )
    address, *numbers = spec.split(",")
    count, index = map(int, numbers)
    if index >= count:
        raise UvitError(f"--distributed: INDEX {index} must be less than COUNT {count}")
    # JAX's abort names neither, so the log does.
    logger.info("process %d waits up to %d s for all %d at %s", index, timeout, count, address)
    host, _, port = address.rpartition(":")
    if index == 0:
        _check_port(int(port))
    else:
        _wait_for_process_0(host.strip("[]"), int(port), timeout)
    jax.distributed.initialize(address, count, index, **options)


def _check_port(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise UvitError(
            f"--distributed: process 0 cannot listen on port {port} ({error}); "
            "give all processes another port"
        ) from None


def _wait_for_process_0(host: str, port: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), timeout=5).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise UvitError(
                    f"--distributed: no answer from process 0 at {host}:{port} within {timeout} s "
                    f"({error}); check that it is started and that ADDRESS:PORT is its own"
                ) from None
        time.sleep(0.2)


def end_if_lost(error: Exception) -> None:
    """Ends this process with status 1 and one line if `error` says that another process was lost.

    A normal exit would wait for the lost process until the heartbeat times out.
    """
    reason = re.search(r".*(gloo|nccl|coordination|peer).*", str(error), re.IGNORECASE)
    if jax.process_count() > 1 and reason:
        print(
            f"\nerror: process {jax.process_index()} of {jax.process_count()} exits: another "
            f"process was lost ({reason[0][:200]}). Run the same command on all of them to resume "
            "from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(1)


class StopSignal:
    """Records SIGINT, SIGTERM and SIGHUP, so that a run can save before it ends.

    A second SIGINT has its usual effect. A signal that is ignored, as SIGHUP under `nohup`, stays
    so.
    """

    def __init__(self):
        self.signal = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Records signals from now until `close`."""
        # With several processes, SIGTERM belongs to JAX's preemption service.
        numbers = [signal.SIGINT, signal.SIGHUP] + [signal.SIGTERM] * (jax.process_count() == 1)
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._record)
        interrupts.deferred = True

    def close(self) -> None:
        """Restores the handlers of before."""
        interrupts.deferred = False
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            return self._before[number](number, frame)
        if number == signal.SIGHUP:
            _leave_terminal()
        if not self.signal:
            interrupts.say("stopping after this step; press Ctrl-C again to stop at once")
        several = jax.process_count() > 1
        self.signal = number
        interrupts.stopped_by = signal.SIGTERM if several else number
        if several:
            os.kill(os.getpid(), signal.SIGTERM)  # the preemption service notifies the others

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer on all processes.

        A signal may arrive before a step on one process and after it on another; JAX's preemption
        service makes them agree on a step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self.signal)


def _leave_terminal() -> None:
    """Sends the output that would go to a terminal, which no longer exists, nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(null, descriptor)
        except OSError:  # closed
            pass
    os.close(null)
