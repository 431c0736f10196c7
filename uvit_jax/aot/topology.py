"""Topologies of TPU slices and GPU hosts by name, as devices to compile for without the hardware.

    devices, chip = devices_of("v5e:4x4")       # a slice of 16 TPU v5e chips
    devices, chip = devices_of("gpu:h100x8")    # eight H100s in one host

The compilers come with JAX's plugins (`libtpu`, and the CUDA wheels). The devices cannot run.
"""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from uvit_jax.aot.chips import CHIPS, GPUS, TPUS, Chip
from uvit_jax.errors import UvitError, nearest
from uvit_jax.parallel import libtpu

GPUS_PER_HOST = 8
EXAMPLES = "v5e:4x4, v5p:2x2x4 or gpu:h100x8"


def devices_of(name: str) -> tuple[list[Any], Chip]:
    """The devices of a topology, and the specifications of their chip.

    Args:
      name: for TPUs GENERATION:SHAPE, the shape in chips, such as `v5e:4x4`; for GPUs
        gpu:MODELxCOUNT, such as `gpu:h100x8`, with eight per host.

    Raises:
      UvitError: if the topology does not exist or its compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "gpu":
        return _gpus(name, shape)
    return _tpus(name, kind, shape)


def _tpus(name: str, generation: str, shape: str) -> tuple[list[Any], Chip]:
    if generation not in TPUS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        known = ", ".join((*TPUS, "gpu"))
        raise UvitError(
            f"unknown topology {name!r}: use KIND:SHAPE with a kind of {known}, such as {EXAMPLES}"
        )
    for key, value in {**libtpu.ENVIRONMENT, "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}.items():
        os.environ.setdefault(key, value)
    options = {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UvitError(f"there is no topology {name!r}: {reason}") from error
    except RuntimeError as error:
        raise UvitError(
            f"the compiler for {name!r} is not installed; pip install 'uvit-jax[tpu]' (libtpu "
            f"needs no TPU to compile): {error}"
        ) from error
    return list(topology.devices), CHIPS[generation]


def _gpus(name: str, shape: str) -> tuple[list[Any], Chip]:
    parts = re.fullmatch(r"([a-z]\w*?)x(\d+)", shape)
    if not parts or parts.group(1) not in GPUS or int(parts.group(2)) < 1:
        model = parts.group(1) if parts else shape
        raise UvitError(
            f"unknown topology {name!r}: for GPUs use gpu:MODELxCOUNT, such as gpu:h100x8"
            f"{nearest(model, GPUS)}"
        )
    chip, count = CHIPS[parts.group(1)], int(parts.group(2))
    if count > GPUS_PER_HOST and count % GPUS_PER_HOST:
        raise UvitError(f"topology {name!r}: {count} GPUs do not fill hosts of {GPUS_PER_HOST}")
    per_host = min(count, GPUS_PER_HOST)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=_TARGETS[chip.name],
            topology=f"1x{count // per_host}x{per_host}",
        )
    except (NotImplementedError, RuntimeError) as error:
        raise UvitError(
            f"the compiler for {name!r} is not installed; pip install 'uvit-jax[cuda]' (it needs "
            f"no GPU to compile): {str(error).splitlines()[0]}"
        ) from error
    return list(topology.devices), chip


def _target(name: str, cores: int, clock: float, l2: int, shared: int, memory: int, major: int):
    """XLA's description of a GPU (GpuTargetConfigProto), from NVIDIA's datasheets and CUDA's table
    of compute capabilities."""
    chip = CHIPS[name]
    return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
      shared_memory_per_block: 49152  shared_memory_per_block_optin: {shared - 1024}
      shared_memory_per_core: {shared}
      core_count: {cores}  fpus_per_core: {128 if major == 9 else 64}
      block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
      memory_bandwidth: {int(chip.memory_bandwidth)}  l2_cache_size: {l2}
      clock_rate_ghz: {clock}  device_memory_size: {memory}
      cuda_compute_capability {{ major: {major} }}
      registers_per_core_limit: 65536  registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
    device_description_str: "{name}"
    """


_TARGETS = {
    "a100": _target("a100", 108, 1.41, 40 << 20, 164 << 10, 80 << 30, 8),
    "h100": _target("h100", 132, 1.98, 50 << 20, 228 << 10, 80 << 30, 9),
}
