"""Cores and malloc settings: keeping freed memory saves 10% of a train step's CPU time on two cores
and 18% of its wall time on one (docs/cpu.md)."""

import ctypes
import os

import jax

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # parameters of glibc's mallopt(3)


def num_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """If the default backend is the CPU, makes glibc keep freed memory for the next program.

    XLA's CPU client allocates a program's temporary memory for every call. By default glibc returns
    blocks of that size to the kernel, which zeroes every page of the next one. Call it before JAX
    initialises its backends.

    It disables asynchronous dispatch on CPUs, since only the main thread's heap holds large blocks.
    It does nothing with another C library, or if glibc's own variable `MALLOC_TRIM_THRESHOLD_` is
    set.

    Returns:
      Whether freed memory is kept.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    # On one core XLA runs programs in its pool's only thread, so all threads share one heap, which
    # must be set before JAX starts them. With more cores, contention for it would cost 10%.
    single_heap = num_cores() > 1 or mallopt(_ARENA_MAX, 1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # before the backend is initialised
    if jax.default_backend() != "cpu":
        return False
    return bool(single_heap and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
