"""A CPU's programs find the memory of the call before."""

import os
import resource
import subprocess
import sys

import jax
import pytest

from uvit_jax.parallel import cpu

FAULTS = """
import os, resource, threading
import jax, jax.numpy as jnp
from uvit_jax.parallel import cpu
{before}

@jax.jit
def program(x):  # with temporary memory of 64 MiB
    return (x @ x.T) @ x

x, faults = jnp.ones((4096, 8)), []
for _ in range(20):  # the heap takes a few to find its shape
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    {call}
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


HERE = "program(x).block_until_ready()"
ELSEWHERE = f"thread = threading.Thread(target=lambda: {HERE}); thread.start(); thread.join()"
ONE_CORE = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


def faults(before: str, call: str = HERE) -> int:
    """How many pages the kernel has to make for a call that is not the first."""
    code = FAULTS.format(before=before, call=call)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_is_kept():
    pages = 2**26 // resource.getpagesize()
    assert faults("assert cpu.keep_freed_memory()") < pages / 100
    assert faults("") > pages / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_on_one_core_every_threads_memory_is_kept():
    pages = 2**26 // resource.getpagesize()
    assert faults(f"{ONE_CORE}; assert cpu.keep_freed_memory()", ELSEWHERE) < pages / 100
    assert faults(ONE_CORE, ELSEWHERE) > pages / 2


def test_other_devices_and_glibcs_own_variable_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not cpu.keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not cpu.keep_freed_memory()
