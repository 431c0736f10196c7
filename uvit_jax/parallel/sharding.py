"""Where each array lives: ordered rules from a parameter's path to its PartitionSpec.

The first rule whose pattern is found in the path wins. Optimizer state and EMA carry their
parameter's path inside theirs, so the same rules place them alike.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.parallel.mesh import BATCH_AXES

# A spec is read from the right, so that it holds with and without the leading layer axis of a
# scanned stack. FSDP shards one axis of every large matrix; Megatron's tensor parallelism splits
# the first product of a pair by columns and the second by rows.
RULES: tuple[tuple[str, tuple], ...] = (
    (r"attention/qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias", (None, "tensor", None)),
    (r"attention/out/kernel", ("tensor", None, "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc1/bias", ("tensor",)),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
    (r"(skip|modulation/linear|proj|fc1|fc2)/kernel", (None, "fsdp")),
    (r"(table/embedding|positions/\w+)", (None, "fsdp")),
    (r".*", ()),
)

BATCH = P(BATCH_AXES)


def path_string(path: tuple[Any, ...]) -> str:
    """A pytree path as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of the array at `path`; an axis that does not divide stays whole."""
    names = next(spec for pattern, spec in RULES if re.search(pattern, path))
    if len(names) > len(shape):
        return P()
    names = (None,) * (len(shape) - len(names)) + names
    fitting = [
        n if n and size % mesh.shape[n] == 0 else None for n, size in zip(names, shape, strict=True)
    ]
    return P(*fitting)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of `tree` (arrays or ShapeDtypeStructs)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: NamedSharding(mesh, spec(path_string(path), a.shape, mesh)), tree
    )


def constrain_tokens(x_BND: jax.Array) -> jax.Array:
    """Keeps activations (B, N, D) spread over the batch (and context) axes of the ambient mesh.

    Without a mesh (`jax.set_mesh`), or where the axes do not divide the array, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x_BND
    batch = mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]]
    return jax.lax.with_sharding_constraint(
        x_BND,
        P(
            BATCH_AXES if x_BND.shape[0] % batch == 0 else None,
            "context" if x_BND.shape[1] % mesh.shape["context"] == 0 else None,
            None,
        ),
    )
