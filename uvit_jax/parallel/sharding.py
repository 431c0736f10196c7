"""Where each array lives: ordered rules from a parameter's path to its PartitionSpec.

The first rule whose pattern is found in the path wins. Optimizer state and EMA carry their
parameter's path inside theirs, so the same rules place them alike.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uvit_jax.parallel.mesh import BATCH_AXES

# Arrays that are looked up in, or added, and enter no product.
TABLES = r"(table/embedding|positions/\w+)"

# A spec is read from the right, so that it holds with and without the leading layer axis of a
# scanned stack. FSDP shards one axis of every large matrix; Megatron's tensor parallelism splits
# the first product of a pair by columns and the second by rows.
RULES: tuple[tuple[str, tuple], ...] = (
    (r"attention/qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias", (None, "tensor", None)),
    (r"cross/kv/kernel", ("fsdp", None, "tensor", None)),
    (r"cross/kv/bias", (None, "tensor", None)),
    (r"cross/q/kernel", ("fsdp", "tensor", None)),
    (r"cross/q/bias", ("tensor", None)),
    (r"(attention|cross)/out/kernel", ("tensor", None, "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc1/bias", ("tensor",)),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
    (r"(skip|modulation/linear|proj|fc1|fc2)/kernel", (None, "fsdp")),
    (TABLES, (None, "fsdp")),
    # Both factors of an adapter lie as the kernel does that they change (a: inputs, b: outputs).
    (r"(attention/qkv|cross/q|cross/kv|mlp/fc1)/a$", ("fsdp", None)),
    (r"(attention/qkv|cross/q|cross/kv|mlp/fc1)/b$", (None, "tensor")),
    (r"(attention/out|cross/out|mlp/fc2)/a$", ("tensor", None)),
    (r"(attention/out|cross/out|mlp/fc2)/b$", (None, "fsdp")),
    (r".*", ()),
)

BATCH = P(BATCH_AXES)


def path_string(path: tuple[Any, ...]) -> str:
    """A pytree path as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The PartitionSpec of the array at `path`.

    A mesh axis is used only where it divides. If fsdp does not divide the dimension of its rule, it
    takes the largest other one of the rule that it divides and that no axis splits (never the layer
    axis of a stack, which every step of the scan would fetch from one device). If there is none,
    the array is replicated over fsdp, which `plan` shows.
    """
    names = next(spec for pattern, spec in RULES if re.search(pattern, path))
    if len(names) > len(shape):
        return P()
    layers = len(shape) - len(names)
    sizes = shape[layers:]
    fitting = [
        n if n and size % mesh.shape[n] == 0 else None for n, size in zip(names, sizes, strict=True)
    ]
    if "fsdp" in names and "fsdp" not in fitting:
        free = [
            i
            for i, (n, size) in enumerate(zip(fitting, sizes, strict=True))
            if size % mesh.shape["fsdp"] == 0 and (n is None or mesh.shape[n] == 1)
        ]
        if free:
            fitting[max(free, key=sizes.__getitem__)] = "fsdp"
    return P(*[None] * layers, *fitting)


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for every array of `tree` (arrays or ShapeDtypeStructs)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: NamedSharding(mesh, spec(path_string(path), a.shape, mesh)), tree
    )


def gather_params(params: Any, dtype: Any, *, path: str = "") -> Any:
    """A layer's parameters as its products take them under FSDP: whole over the `fsdp` axis, in the
    dtype of the computation. Their gradients go back to the parameters' own places. Tables stay as
    they are: what is looked up in them is less.

    Left to itself, XLA's partitioner merges each product with the gather of its matrix, and each
    gradient's product with its scatter, piece by piece. For a U-ViT-L/2 step on 16 TPU chips that
    moves three times as much in and out of main memory, where the partial products lie.

    Without a mesh, or with fsdp=1, it does nothing.

    Args:
      path: of `params` within the model, as far as the rules need it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params

    def gather(below, a):
        name = f"{path}/{path_string(below)}"
        own = spec(name, a.shape, mesh)
        if "fsdp" not in tuple(own) or re.search(TABLES, name):
            return a
        return _gather(a, own, P(*(None if n == "fsdp" else n for n in own)), dtype)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(a: jax.Array, own: P, whole: P, dtype: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(a.astype(dtype), whole)


def _gather_fwd(a, own, whole, dtype):
    return _gather(a, own, whole, dtype), None


def _gather_bwd(own, whole, dtype, _, g):
    # Whole first: the product ends before the gradient is reduced. Otherwise the two are merged,
    # and for a modulation's gradient the batch is gathered.
    g = jax.lax.with_sharding_constraint(g, whole)
    return (jax.lax.with_sharding_constraint(g, own).astype(jnp.float32),)  # as parameters are


_gather.defvjp(_gather_fwd, _gather_bwd)


def jit_replicated(function: Callable, mesh: Mesh, where: Any = None) -> jax.stages.Wrapped:
    """`function(params, *others)` as a jitted `run(params, others)`: the others, a tuple, and the
    results are whole on every device. Inside it a batch may be spread over devices that do not
    divide it; that of an argument or a result may not.

    Args:
      where: the parameters' shardings; None for those that they come with.
    """
    whole = NamedSharding(mesh, P())

    def run(params, others):
        return function(params, *others)

    return jax.jit(run, in_shardings=(where, whole), out_shardings=whole)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps an array (B, ...) spread over the batch axes of the ambient mesh (`jax.set_mesh`).

    A size that the axes do not divide is padded within the program. Without a mesh it does nothing.
    """
    return _constrain(x, (BATCH_AXES,))


def constrain_tokens(x_BND: jax.Array) -> jax.Array:
    """Keeps activations (B, N, D) spread over the batch and context axes of the ambient mesh."""
    return _constrain(x_BND, (BATCH_AXES, "context"))


def _constrain(x: jax.Array, names: tuple[Any, ...]) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*names))
