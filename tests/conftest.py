"""For all tests: compile each program once a session, also across the processes that tests start.

Nothing else is shared: a compiled program is the same program, and the cache starts empty.
"""

import os
import subprocess
import tempfile
from importlib import metadata

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Sets the environment before anything imports JAX, so that child processes inherit it."""
    if hasattr(config, "workerinput"):
        return  # one of several processes that pytest-xdist has started, with this environment
    cache = tempfile.TemporaryDirectory(prefix="uvit_jax_compiled_")
    config.add_cleanup(cache.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Tests compile much and compute little: most of their time would go into optimising programs.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    # A flag that a jaxlib does not know ends the process; these are known to this one.
    if metadata.version("jaxlib").startswith("0.10."):
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not possible")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
