"""Processes that cannot join each other raise one sentence, in bounded time."""

import socket
import time

import pytest

from tests.helpers.running import TINY, finish, free_port, start
from uvit_jax.errors import UvitError
from uvit_jax.parallel.distributed import initialize


def test_an_address_that_does_not_answer():
    began = time.monotonic()
    with pytest.raises(UvitError, match=r"process 0 at 127\.0\.0\.1:\d+ within 1 s .*ADDRESS:PORT"):
        initialize(f"127.0.0.1:{free_port()},2,1", timeout=1)
    assert time.monotonic() - began < 10


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UvitError, match=rf"port {port} .*another port"):
            initialize(f"127.0.0.1:{port},2,0", timeout=1)


def test_a_process_that_never_comes_ends_the_others_after_naming_the_count_and_address(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    args = (f"--workdir={tmp_path / 'run'}", f"--distributed={address},2,0")
    process = start("experiments.train", f"--config={TINY}", *args, "--distributed_timeout=3")
    status, _, err = finish(process, timeout=120)
    assert status != 0
    assert f"all 2 at {address}" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "spec", ["127.0.0.1,2,0", "a:1,x,0", "a:1,2", "here", "a:x,2,0", "a:1,2,2"]
)
def test_a_malformed_spec(spec):
    with pytest.raises(UvitError, match="--distributed"):
        initialize(spec)
