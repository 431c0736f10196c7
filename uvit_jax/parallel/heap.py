"""Memory that a process on a CPU keeps from one call of a program to the next.

XLA's CPU client allocates a program's temporary memory anew for every call. The C library gives
blocks of that size back to the kernel, which has to zero every page of the next one. TPUs and GPUs
have allocators of their own, and need none of this.
"""

import ctypes
import os

import jax

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of glibc's mallopt(3)


def keep() -> bool:
    """Lets a process whose default devices are CPUs keep what it frees; says whether it does.

    Call it before anything asks JAX for devices. A CPU's programs then run in the thread that calls
    them, since only the main thread's heap holds large blocks, and not beside it; with other
    devices, nothing changes. Nothing does either where the C library is not glibc, or where the
    environment has glibc's own variable `MALLOC_TRIM_THRESHOLD_`, which then decides.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    # On one core XLA leaves a program to its pool's only thread, whose own heap gives blocks back
    # all the same; so all threads share the main one, from before JAX starts any. With more cores,
    # waiting for it would cost a tenth.
    shared = len(os.sched_getaffinity(0)) > 1 or mallopt(_ARENA_MAX, 1)
    # Does nothing to devices other than CPUs, and has to be known before JAX looks for any.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu":
        return False
    return bool(shared and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
