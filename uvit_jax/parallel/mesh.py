"""One mesh with four axes: data, fsdp, context, tensor.

`data` replicates parameters, `fsdp` shards them and gathers them layer by layer, `context` is for
long sequences, `tensor` splits heads and hidden units. A batch is spread over data × fsdp.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from uvit_jax.errors import UvitError

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1, "all that is left"."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The four sizes for `num_devices` devices; UvitError if they do not multiply to it."""
        sizes = [getattr(self, axis) for axis in AXES]
        shown = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise UvitError(
                f"config.mesh ({shown}): sizes are at least 1, and one of them may be -1"
            )
        fixed = int(np.prod([s for s in sizes if s != -1]))
        if -1 in sizes:
            sizes[sizes.index(-1)] = num_devices // fixed
        if int(np.prod(sizes)) != num_devices:
            raise UvitError(
                f"config.mesh ({shown}) does not fit {num_devices} devices; "
                "make the product of the axes equal to it, or set one of them to -1"
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all of them), nearby devices along the inner axes.

    Raises:
      UvitError: if the axes do not multiply to the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = config.sizes(len(devices))
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return int(np.prod([mesh.shape[a] for a in BATCH_AXES]))


def check_processes(mesh: Mesh) -> None:
    """Raises UvitError if two processes hold the same rows of a batch: each loads its own rows."""
    owners: dict[int, set[int]] = {}
    rows = mesh.devices.reshape(batch_shards(mesh), -1)
    for row, devices in enumerate(rows):
        for device in devices:
            owners.setdefault(device.process_index, set()).add(row)
    if sum(len(owned) for owned in owners.values()) > len(rows):
        raise UvitError(
            f"config.mesh spreads context or tensor over several of the {len(owners)} processes; "
            "make data × fsdp a multiple of their number, so that those axes stay within one"
        )


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises UvitError if the mesh (or gradient accumulation) does not divide the batch evenly."""
    parts = batch_shards(mesh) * accumulate
    if batch_size % parts:
        by = f"data×fsdp = {batch_shards(mesh)} devices"
        if accumulate > 1:
            by += f" × {accumulate} microbatches"
        raise UvitError(
            f"config.train.batch_size={batch_size} is not divisible by {by}; "
            f"the nearest that are: {batch_size // parts * parts or parts} and "
            f"{(batch_size // parts + 1) * parts}"
        )
