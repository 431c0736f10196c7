"""Processes meet before JAX joins them, so that what is wrong with their number or address is one
sentence on each of them, and not an abort inside JAX.

Process 0 listens at the coordinator's address until all have come, and JAX takes the port over.
"""

import socket
import time

from uvit_jax.errors import UvitError

_READY = "ready"
_RETRY = 0.2  # seconds between two attempts to reach process 0


def meet(address: str, count: int, index: int, timeout: float) -> None:
    """Returns when all `count` processes have called it at `address` (HOST:PORT), this one as
    `index`.

    Raises:
      UvitError: after `timeout` seconds without, telling who is missing; at once if two of the
        processes have been given the same index or different counts.
    """
    if count == 1:
        return
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    if index == 0:
        _wait_for_all(address, int(port), count, deadline, timeout)
    else:
        _go_to_first((host.strip("[]"), int(port)), count, index, deadline, timeout)


def _wait_for_all(address: str, port: int, count: int, deadline: float, timeout: float) -> None:
    try:
        server = _listen(port)
    except OSError as error:
        raise UvitError(
            f"--distributed: process 0 cannot listen on port {port}: {error.strerror}; "
            "give all processes another port"
        ) from None
    came: dict[int, socket.socket] = {}
    problem = ""
    with server:
        while len(came) < count - 1 and not problem:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [str(i) for i in range(1, count) if i not in came]
                problem = (
                    f"--distributed: of {count} processes, {', '.join(missing)} did not come to "
                    f"{address} within {timeout:.0f} s; start as many as COUNT says, each with an "
                    "INDEX of its own"
                )
                break
            server.settimeout(left)
            try:
                guest, _ = server.accept()
            except TimeoutError:
                continue
            guest.settimeout(min(left, 5))
            try:
                # Whoever else knocks at the port says something else, or nothing.
                theirs, index = map(int, guest.makefile().readline(64).split())
            except (OSError, ValueError):
                guest.close()
                continue
            if theirs != count:
                problem = (
                    f"--distributed: process {index} was told of {theirs} processes and process 0 "
                    f"of {count}; give all of them the same COUNT"
                )
            elif index in came:
                problem = f"--distributed: two processes have INDEX {index}; give each its own"
            came[index if index not in came else -1] = guest
        for guest in came.values():
            _answer(guest, problem or _READY)
    if problem:
        raise UvitError(problem)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _answer(guest: socket.socket, text: str) -> None:
    with guest:
        try:
            guest.sendall(f"{text}\n".encode())
            guest.recv(1)  # until it has hung up, which leaves the port free at once
        except OSError:
            pass


def _go_to_first(
    first: tuple[str, int], count: int, index: int, deadline: float, timeout: float
) -> None:
    reason = "it does not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(first, timeout=min(left, 5)) as host:
                host.sendall(f"{count} {index}\n".encode())
                host.settimeout(max(deadline - time.monotonic(), 0) + 5)  # process 0 tells first
                answer = host.makefile().readline().strip()
        except OSError as error:
            reason = error.strerror or str(error)
            answer = ""
        if answer == _READY:
            return
        if answer:
            raise UvitError(answer)
        time.sleep(_RETRY)
    raise UvitError(
        f"--distributed: process {index} did not reach process 0 at {first[0]}:{first[1]} within "
        f"{timeout:.0f} s ({reason}); is it started, and is that its address?"
    )
