"""Where everything would live: each array's shape, PartitionSpec and bytes a device, and totals.

It is made from shapes alone, for a mesh that need not be there.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.parallel.mesh import AXES, abstract_mesh
from uvit_jax.parallel.sharding import path_string, spec
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import RunConfig, check_mesh
from uvit_jax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Row:
    """An array: its path, shape and dtype, its PartitionSpec, and the bytes that a device holds."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: P
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mesh's sizes by axis, and the arrays by group, in the order given."""

    mesh: Mapping[str, int]
    groups: Mapping[str, tuple[Row, ...]]

    def totals(self) -> dict[str, tuple[int, int]]:
        """(bytes on a device, bytes in all) by group."""
        return {
            name: (
                sum(row.bytes for row in rows),
                sum(math.prod(row.shape) * jax.numpy.dtype(row.dtype).itemsize for row in rows),
            )
            for name, rows in self.groups.items()
        }

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        rows = {
            name: [dataclasses.asdict(row) | {"spec": list(row.spec)} for row in rows]
            for name, rows in self.groups.items()
        }
        totals = {
            name: {"bytes_per_device": here, "bytes": whole}
            for name, (here, whole) in self.totals().items()
        }
        return {"mesh": dict(self.mesh), "totals": totals, "arrays": rows}

    def __str__(self) -> str:
        """The first group array by array, and a line of totals for every group."""
        first = next(iter(self.groups))
        table = [("path", "shape", "spec", "a device")]
        for row in self.groups[first]:
            table.append((row.path, str(row.shape), _shown(row.spec), readable(row.bytes)))
        totals = self.totals()
        table.append(("", "", "", ""))
        table.append(("total", "", "everywhere", "a device"))
        for name, (here, whole) in totals.items():
            table.append((name, "", readable(whole), readable(here)))
        wholes = (sum(column) for column in zip(*totals.values(), strict=True))
        here, whole = map(readable, wholes)
        table.append(("all", "", whole, here))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip()
            for a, b, c, d in table
        ]
        mesh = " × ".join(f"{axis} {self.mesh[axis]}" for axis in AXES)
        return "\n".join([f"{math.prod(self.mesh.values())} devices: {mesh}", "", *lines])


def plan(groups: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> Plan:
    """The plan of pytrees of arrays or ShapeDtypeStructs, by name."""
    return Plan(
        dict(mesh.shape),
        {
            name: tuple(
                _row(path_string(path), leaf, mesh)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            )
            for name, tree in groups.items()
        },
    )


def plan_run(run: RunConfig, num_devices: int = 0) -> Plan:
    """The plan of a run's parameters, their average and the optimizer's state.

    Args:
      num_devices: that need not be here; 0 for as many as `run.mesh` multiplies to, or, where it
        leaves an axis open, as this machine has.

    Raises:
      UvitError: if the mesh does not fit the devices, the batch or the model.
    """
    if num_devices < 0:
        raise UvitError(f"a plan is for at least one device, got {num_devices}")
    sizes = dataclasses.astuple(run.mesh)
    if not num_devices:
        num_devices = jax.device_count() if -1 in sizes else math.prod(sizes)
    mesh = abstract_mesh(run.mesh, num_devices)
    check_mesh(run, mesh)
    optimizer, _ = make_optimizer(run.optimizer, run.train)
    state, _ = abstract_state(build(run.model), optimizer, mesh)
    groups = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    return plan(groups, mesh)


def _row(path: str, leaf: Any, mesh: Mesh | AbstractMesh) -> Row:
    where = spec(path, leaf.shape, mesh)
    parts = math.prod(mesh.shape[axis] for axis in where if axis is not None)
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    return Row(path, leaf.shape, str(leaf.dtype), where, size // parts)


def _shown(where: P) -> str:
    names = [str(axis or "-") for axis in where]
    return " ".join(names) if any(axis is not None for axis in where) else "replicated"


def readable(size: int) -> str:
    """Bytes as people read them: `1.50 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"
