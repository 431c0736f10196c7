"""Ctrl-C in commands: one line and status 130, whatever the process is doing.

Python runs a signal handler only between two bytecodes, so not during a long compilation, and an
exception that it raises below JAX's C++ can crash the process or get lost. So a thread watches too.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType

GRACE = 3.0
"""Seconds after the first Ctrl-C within which a command must have ended by itself."""

LINE = "interrupted; nothing was saved since the last checkpoint"

deferred = False
"""Whether a run stops by itself after a first Ctrl-C, because it saves; see `StopSignal`."""

stopped_by = 0
"""The last signal after which a run stopped by itself, or 0."""

_ending = threading.Lock()


def watch() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, or ends the process where that is unsafe.

    The process ends after `GRACE` seconds if the exception had no effect, and at once at a second
    Ctrl-C. Call it from the main thread.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_watch, args=(receiver,), daemon=True).start()


def end_at_once() -> None:
    """From now on Ctrl-C ends the process, until `watch` is called."""
    signal.signal(signal.SIGINT, lambda *_: end())


def end() -> None:
    """Ends the process with one line and status 130, without Python's clean-up."""
    if not _ending.acquire(blocking=False):
        time.sleep(60)  # another thread is about to end the process
    say(("\n" if os.isatty(2) else "") + LINE)
    os._exit(128 + signal.SIGINT)


def say(text: str) -> None:
    """Prints a line to stderr if that is still possible; safe in signal handlers."""
    with contextlib.suppress(OSError):  # the terminal is gone
        os.write(2, f"{text}\n".encode())


def stop_status() -> int:
    """The exit status of a run that stopped by itself after a signal, such as 143 for SIGTERM."""
    return 128 + (stopped_by or signal.SIGTERM)


def _interrupt(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("jax."):
            end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _watch(receiver: socket.socket) -> None:
    count = 0
    while True:
        received = receiver.recv(256).count(signal.SIGINT)
        count += received
        if count > 1:
            end()
        if received and not deferred:
            timer = threading.Timer(GRACE, end)
            timer.daemon = True
            timer.start()
