"""Peak chip specifications from vendor datasheets.

TPUs: cloud.google.com/tpu/docs, the page of each generation (bf16, HBM, ICI; the interconnect of a
chip in one direction over all its links, half of what the pages call bidirectional). GPUs: NVIDIA's
datasheets of the SXM modules (dense bf16; NVLink in one direction).
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip's peak rates and memory.

    Attributes:
      flops: bf16 FLOP/s. memory_bytes: main memory available to a program. memory_bandwidth,
        link_bandwidth: bytes/s, of main memory, and to other chips in one direction over all links.
    """

    name: str
    flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float


# `memory_bytes` is what the TPU compiler allots to a program (from its out-of-memory messages), and
# nearly all memory of a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            flops=275e12,
            memory_bytes=int(30.75 * GIB),
            memory_bandwidth=1228e9,
            link_bandwidth=300e9,
        ),
        Chip(
            name="v5e",
            flops=197e12,
            memory_bytes=int(15.75 * GIB),
            memory_bandwidth=819e9,
            link_bandwidth=200e9,
        ),
        Chip(
            name="v5p",
            flops=459e12,
            memory_bytes=int(95.74 * GIB),
            memory_bandwidth=2765e9,
            link_bandwidth=600e9,
        ),
        Chip(
            name="v6e",
            flops=918e12,
            memory_bytes=int(31.25 * GIB),
            memory_bandwidth=1638e9,
            link_bandwidth=400e9,
        ),
        Chip(
            name="a100",
            flops=312e12,
            memory_bytes=79 * GIB,
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
        ),
        Chip(
            name="h100",
            flops=989e12,
            memory_bytes=79 * GIB,
            memory_bandwidth=3352e9,
            link_bandwidth=450e9,
        ),
    )
}

GPUS = ("a100", "h100")
TPUS = tuple(name for name in CHIPS if name not in GPUS)
