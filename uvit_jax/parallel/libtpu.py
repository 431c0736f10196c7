"""libtpu on machines without TPUs, where it compiles ahead of time and runs nothing."""

import os
import sys
from pathlib import Path

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
"""Without these variables libtpu looks for the metadata of TPUs, and logs errors if it has none."""


def has_tpu() -> bool:
    """Whether this machine has the device files of TPUs: of v2 to v4, or of later ones."""
    return any(Path("/dev").glob("accel*")) or Path("/dev/vfio").exists()


def quiet() -> None:
    """Silences libtpu on a Linux machine without TPUs. Call it before JAX has devices."""
    if sys.platform == "linux" and not has_tpu():
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
