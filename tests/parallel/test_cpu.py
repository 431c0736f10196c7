"""Programs on a CPU reuse the memory of the previous call."""

import os
import resource
import subprocess
import sys

import jax
import pytest

from tests.helpers.running import ROOT
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
for _ in range(20):  # the heap grows during the first few
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    {call}
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


MAIN_THREAD = "program(x).block_until_ready()"
OTHER_THREAD = (
    f"thread = threading.Thread(target=lambda: {MAIN_THREAD}); thread.start(); thread.join()"
)
ONE_CORE = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"


def faults(before: str, call: str = MAIN_THREAD) -> int:
    """The number of page faults of a call after the first."""
    code = FAULTS.format(before=before, call=call)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_is_not_returned_to_the_system():
    pages = 2**26 // resource.getpagesize()
    assert faults("assert cpu.keep_freed_memory()") < pages / 100
    assert faults("") > pages / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_on_one_core_no_thread_returns_freed_memory():
    pages = 2**26 // resource.getpagesize()
    assert faults(f"{ONE_CORE}; assert cpu.keep_freed_memory()", OTHER_THREAD) < pages / 100
    assert faults(ONE_CORE, OTHER_THREAD) > pages / 2


def test_other_backends_and_an_explicit_trim_threshold_change_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not cpu.keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not cpu.keep_freed_memory()


def test_training_sets_up_malloc_before_jax_has_threads():
    code = """
from jax._src import xla_bridge
from experiments import train
from uvit_jax.training import loop

def stop(*args):
    print("initialised:", xla_bridge.backends_are_initialized())
    raise SystemExit

loop.train = stop
train.main(["--config=configs/quickstart.py"])
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "initialised: False", done.stderr
