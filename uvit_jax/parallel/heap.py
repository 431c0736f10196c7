"""Memory that a process on a CPU keeps from one call of a program to the next.

XLA's CPU client allocates a program's temporary memory anew for every call. The C library gives
blocks of such a size back to the kernel at once, which has to zero every page of the next one: in a
train step of a U-ViT-S/2 that took a tenth of the processor time. TPUs and GPUs have allocators of
their own, and need none of this.
"""

import ctypes
import os

ASYNC_DISPATCH = "JAX_CPU_ENABLE_ASYNC_DISPATCH"
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of glibc's mallopt(3)


def dispatch_in_place() -> None:
    """Makes JAX, not imported yet, run a single CPU's programs in the thread that calls them.

    Only there is their memory taken from the heap that `keep` is about: glibc has another one for
    every thread, and none of those holds large blocks. The variable is JAX's own; one that is set
    already stays, and nothing changes for other devices.
    """
    os.environ.setdefault(ASYNC_DISPATCH, "false")


def keep(platform: str) -> bool:
    """Where programs run on CPUs, lets the process keep what it frees; says whether it does.

    Nothing is done for other platforms, where the C library is not glibc, or if the environment has
    `MALLOC_TRIM_THRESHOLD_`, glibc's own variable, which then decides.
    """
    if platform != "cpu" or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
