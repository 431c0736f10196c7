"""Processes that do not meet say why, in one sentence and in bounded time."""

import socket
import threading
import time

import pytest

from tests.helpers.running import free_port
from uvit_jax.errors import UvitError
from uvit_jax.parallel.distributed import initialize
from uvit_jax.parallel.rendezvous import meet


def together(*processes, timeout=20):
    """What each of the processes (count, index) met with: nothing, or an error's text."""
    address, found = f"127.0.0.1:{free_port()}", {}

    def go(number, count, index):
        try:
            found[number] = meet(address, count, index, timeout)
        except UvitError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=go, args=(i, *p)) for i, p in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(processes))]


def test_all_come_in_any_order():
    assert together((3, 2), (3, 0), (3, 1)) == [None] * 3
    meet("127.0.0.1:1", 1, 0, 1)


def test_another_count():
    one, other = together((2, 0), (3, 1))
    assert one == other
    assert "process 1 was told of 3 processes and process 0 of 2" in one


def test_the_same_index_twice():
    found = together((3, 0), (3, 1), (3, 1))
    assert len(set(found)) == 1 and "two processes have INDEX 1" in found[0]


def test_who_is_missing():
    found = together((4, 0), (4, 2), timeout=1)
    assert len(set(found)) == 1 and "of 4 processes, 1, 3 did not come" in found[0]


def test_an_address_where_nobody_listens():
    began = time.monotonic()
    with pytest.raises(UvitError, match=r"process 1 did not reach process 0 at .* within 1 s \("):
        initialize(f"127.0.0.1:{free_port()},2,1", timeout=1)
    assert time.monotonic() - began < 10


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UvitError, match=rf"cannot listen on port {port}: .*another port"):
            initialize(f"127.0.0.1:{port},2,0", timeout=1)


def test_strangers_at_the_port_are_ignored():
    port, found = free_port(), []
    first = threading.Thread(target=lambda: found.append(meet(f"127.0.0.1:{port}", 2, 0, 20)))
    first.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    meet(f"127.0.0.1:{port}", 2, 1, 20)
    first.join()
    assert found == [None]


@pytest.mark.parametrize(
    "spec", ["127.0.0.1,2,0", "a:1,x,0", "a:1,2", "here", "a:x,2,0", "a:1,2,2"]
)
def test_a_spec_that_is_none(spec):
    with pytest.raises(UvitError, match="--distributed"):
        initialize(spec)
