"""Where each array lives: ordered rules from a parameter's path to its PartitionSpec.

The first rule whose pattern is found in the path wins. Optimizer state and EMA carry their
parameter's path inside theirs, so the same rules place them alike.
"""

import re
from typing import Any

import jax
import numpy as np
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
    # Both factors of an adapter lie as the kernel does that they change (a: inputs, b: outputs).
    (r"(attention/qkv|mlp/fc1)/a$", ("fsdp", None)),
    (r"(attention/qkv|mlp/fc1)/b$", (None, "tensor")),
    (r"(attention/out|mlp/fc2)/a$", ("tensor", None)),
    (r"(attention/out|mlp/fc2)/b$", (None, "fsdp")),
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


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps an array (B, ...) spread over the batch axes of the ambient mesh (`jax.set_mesh`).

    Without a mesh, or where its axes do not divide the batch, it does nothing.
    """
    return _constrain(x, (BATCH_AXES,))


def constrain_tokens(x_BND: jax.Array) -> jax.Array:
    """Keeps activations (B, N, D) spread over the batch and context axes of the ambient mesh."""
    return _constrain(x_BND, (BATCH_AXES, "context"))


def _constrain(x: jax.Array, names: tuple[Any, ...]) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    fitting = []
    for name, size in zip(names, x.shape, strict=False):
        axes = name if isinstance(name, tuple) else (name,)
        parts = int(np.prod([mesh.shape[a] for a in axes]))
        fitting.append(name if size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, P(*fitting))
