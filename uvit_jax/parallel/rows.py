"""The rows of a global batch that each process loads, and the global array of them.

A process loads the rows that its devices hold: where `context` or `tensor` crosses processes,
several of them load the same rows.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from uvit_jax.parallel.mesh import batch_shards
from uvit_jax.parallel.sharding import BATCH


def local_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> list[int]:
    """The indices of a process' rows in a batch of B, ascending.

    Args:
      batch_size: B, a multiple of the number of batch shards (`check_batch`).
      process_index: default: this process.
    """
    me = jax.process_index() if process_index is None else process_index
    parts = mesh.devices.reshape(batch_shards(mesh), -1)
    size = batch_size // len(parts)
    mine = [i for i, holders in enumerate(parts) if any(d.process_index == me for d in holders)]
    return [row for i in mine for row in range(i * size, (i + 1) * size)]


def global_array(local: np.ndarray, rows: list[int], batch_size: int, mesh: Mesh) -> jax.Array:
    """The array (B, ...) on all processes' devices, sharded over the mesh's batch axes.

    Args:
      local: (b, ...), this process' `rows` of it.
    """

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_size)
        first = rows.index(start)
        return local[first : first + stop - start]

    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, BATCH), part)
