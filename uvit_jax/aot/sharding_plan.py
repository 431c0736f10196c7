"""The sharding plan of a run: each array's shape, PartitionSpec and bytes per device, and totals.

It needs shapes only, so the mesh's devices need not exist.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.parallel.mesh import AXES, abstract_mesh
from uvit_jax.parallel.sharding import path_string, spec
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import RunConfig, check_mesh
from uvit_jax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class ArraySharding:
    """An array's path, shape, dtype and PartitionSpec, and its bytes per device."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: P
    bytes: int


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
    """The sizes of the mesh axes, and the arrays by group, such as `params`."""

    mesh: Mapping[str, int]
    groups: Mapping[str, tuple[ArraySharding, ...]]

    def totals(self) -> dict[str, tuple[int, int]]:
        """(bytes per device, bytes of the unsharded arrays) by group."""
        return {
            name: (
                sum(a.bytes for a in arrays),
                sum(math.prod(a.shape) * jax.numpy.dtype(a.dtype).itemsize for a in arrays),
            )
            for name, arrays in self.groups.items()
        }

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        groups = {
            name: [dataclasses.asdict(a) | {"spec": list(a.spec)} for a in arrays]
            for name, arrays in self.groups.items()
        }
        totals = {
            name: {"bytes_per_device": per_device, "bytes": total}
            for name, (per_device, total) in self.totals().items()
        }
        return {"mesh": dict(self.mesh), "totals": totals, "arrays": groups}

    def __str__(self) -> str:
        """A table: the first group array by array, then the totals of every group."""
        first = next(iter(self.groups))
        table = [("path", "shape", "spec", "per device")]
        for a in self.groups[first]:
            table.append((a.path, str(a.shape), _spec_text(a.spec), readable(a.bytes)))
        totals = self.totals()
        table.append(("", "", "", ""))
        table.append(("total", "", "unsharded", "per device"))
        sums = tuple(sum(column) for column in zip(*totals.values(), strict=True))
        for name, (per_device, total) in {**totals, "all": sums}.items():
            table.append((name, "", readable(total), readable(per_device)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip()
            for a, b, c, d in table
        ]
        mesh = " × ".join(f"{axis} {self.mesh[axis]}" for axis in AXES)
        return "\n".join([f"{math.prod(self.mesh.values())} devices: {mesh}", "", *lines])


def plan_run(run: RunConfig, num_devices: int = 0) -> ShardingPlan:
    """The sharding plan of a run's parameters, EMA and optimizer state.

    Args:
      run: the run's config.
      num_devices: need not exist; 0 for the product of `run.mesh`, or, if an axis of it is -1, for
        this machine's devices.

    Raises:
      UvitError: if the mesh does not match the number of devices, the batch or the model.
    """
    if num_devices < 0:
        raise UvitError(f"a sharding plan needs at least one device, got {num_devices}")
    sizes = dataclasses.astuple(run.mesh)
    if not num_devices:
        num_devices = jax.device_count() if -1 in sizes else math.prod(sizes)
    mesh = abstract_mesh(run.mesh, num_devices)
    check_mesh(run, mesh)
    optimizer, _ = make_optimizer(run.optimizer, run.train)
    state, _ = abstract_state(build(run.model), optimizer, mesh)
    trees = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    groups = {
        name: tuple(
            _array_sharding(path_string(path), leaf, mesh)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )
        for name, tree in trees.items()
    }
    return ShardingPlan(dict(mesh.shape), groups)


def _array_sharding(path: str, leaf: jax.ShapeDtypeStruct, mesh: AbstractMesh) -> ArraySharding:
    partition = spec(path, leaf.shape, mesh)
    parts = math.prod(mesh.shape[axis] for axis in partition if axis is not None)
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    return ArraySharding(path, leaf.shape, str(leaf.dtype), partition, size // parts)


def _spec_text(partition: P) -> str:
    names = [str(axis or "-") for axis in partition]
    return " ".join(names) if any(axis is not None for axis in partition) else "replicated"


def readable(size: int) -> str:
    """Bytes with a binary unit, such as `1.50 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"
