"""One mesh with four axes: data, fsdp, context, tensor.

`data` replicates the parameters, `fsdp` shards them and all-gathers them layer by layer, `context`
shards the tokens of a sequence, `tensor` splits heads and hidden units. A batch is sharded over
data × fsdp. TPU slices are connected by the slow data-centre network, which only `data` crosses.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from uvit_jax.errors import UvitError

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")
_AUTO = (AxisType.Auto,) * len(AXES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The number of devices along each axis; one of them may be -1, all remaining devices.

    Attributes:
      data: replicas of the parameters, each with a part of the batch.
      fsdp: shards of parameters, EMA, optimizer state and batch.
      context: shards of a sequence's tokens (context parallelism).
      tensor: shards of attention heads and MLP hidden units (tensor parallelism).
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The four sizes for `num_devices` devices; UvitError if they do not multiply to it."""
        sizes = [getattr(self, axis) for axis in AXES]
        text = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
            raise UvitError(
                f"config.mesh ({text}): sizes must be at least 1, and one of them may be -1"
            )
        fixed = math.prod(s for s in sizes if s != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = num_devices // fixed
        if math.prod(sizes) != num_devices:
            raise UvitError(
                f"config.mesh ({text}) does not fit {num_devices} devices; "
                "make the product of the axes equal to it, or set one of them to -1"
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all of them), with neighbours along the inner axes.

    Neighbours share a link of a TPU's torus; on other platforms, they belong to one process.

    Raises:
      UvitError: if the axes do not multiply to the number of devices, or `data` is not a multiple
        of the number of TPU slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = config.sizes(len(devices))
    if devices[0].platform != "tpu":
        ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
        return Mesh(np.array(ordered).reshape(sizes), AXES, axis_types=_AUTO)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if sizes[0] % slices:
        fitting = [slices * n for n in _divisors(len(devices) // slices)]
        raise UvitError(
            f"config.mesh.data={sizes[0]} is not a multiple of the {slices} slices, which only "
            f"data crosses; for {len(devices)} devices set it to {_nearest(fitting, sizes[0])}"
        )
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (sizes[0] // slices, *sizes[1:]),
            (slices, 1, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=_AUTO)


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """The mesh of `num_devices` devices that need not exist; UvitError as in `MeshConfig.sizes`."""
    return AbstractMesh(config.sizes(num_devices), AXES, axis_types=_AUTO)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of shards of a batch."""
    return math.prod(mesh.shape[a] for a in BATCH_AXES)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises UvitError if the mesh (or gradient accumulation) does not divide the batch evenly."""
    parts = batch_shards(mesh) * accumulate
    if batch_size % parts:
        by = f"data×fsdp = {batch_shards(mesh)} devices"
        if accumulate > 1:
            by += f" × {accumulate} microbatches"
        raise UvitError(
            f"config.train.batch_size={batch_size} is not divisible by {by}; "
            f"the nearest multiples: {batch_size // parts * parts or parts} and "
            f"{(batch_size // parts + 1) * parts}"
        )


def check_tensor(mesh: Mesh | AbstractMesh, *, num_heads: int, mlp_width: int) -> None:
    """Raises UvitError if the tensor axis does not divide a model's heads and MLP hidden units."""
    size, both = mesh.shape["tensor"], math.gcd(num_heads, mlp_width)
    for name, count in (("num_heads", num_heads), ("mlp_ratio × width", mlp_width)):
        if count % size:
            raise UvitError(
                f"config.mesh.tensor={size} does not divide config.model.backbone.{name}={count}; "
                f"the nearest that divides heads and MLP: tensor={_nearest(_divisors(both), size)}"
            )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest(fitting: Sequence[int], wanted: int) -> str:
    """The nearest fitting numbers below and above `wanted`, which does not fit."""
    below, above = [n for n in fitting if n < wanted], [n for n in fitting if n > wanted]
    return " or ".join(map(str, below[-1:] + above[:1]))
