"""A CPU's programs find the memory of the call before."""

import os
import resource
import subprocess
import sys

import pytest

from uvit_jax.parallel import heap

FAULTS = """
import resource
from uvit_jax.parallel import heap
{before}
import jax, jax.numpy as jnp
heap.keep("{platform}")

@jax.jit
def program(x):  # with temporary memory of 64 MiB
    return jax.lax.optimization_barrier(x * 3).sum()

x, faults = jnp.arange(2.0**24), []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def faults(**parts: str) -> int:
    """How many pages the kernel has to make for a call that is not the first."""
    env = {k: v for k, v in os.environ.items() if k != heap.ASYNC_DISPATCH}
    code = FAULTS.format(**parts)
    env |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_memory_is_kept_on_cpus_only():
    pages = 2**26 // resource.getpagesize()
    assert faults(before="heap.dispatch_in_place()", platform="cpu") < pages / 100
    assert faults(before="", platform="tpu") > pages / 2


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not heap.keep("cpu")
    monkeypatch.setenv(heap.ASYNC_DISPATCH, "true")
    heap.dispatch_in_place()
    assert os.environ[heap.ASYNC_DISPATCH] == "true"
