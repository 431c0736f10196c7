"""For all tests: compile each program once a session, also across the processes that tests start.

Nothing else is shared: a compiled program is the same program, and the cache starts empty.
"""

import os
import tempfile

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
    # Tests compile much and compute little: half their time would go into optimising programs.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
