"""What JAX's CPU backend needs to be told: how many cores it may use, and to keep freed memory."""

import os


def num_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
