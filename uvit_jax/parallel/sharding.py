"""Ordered rules from a parameter's path to its PartitionSpec.

The first rule whose pattern matches the path applies. Paths of optimizer state and EMA contain
their parameter's path, so they are sharded alike.
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

# Arrays that are indexed or added, and are no operand of a matrix product.
TABLES = r"(table/embedding|positions/\w+)"

# Aligned to the last dimensions, so that a rule applies with and without the layer axis of a scan.
# FSDP shards one axis of every large matrix; Megatron's tensor parallelism splits
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
    # LoRA factors are sharded like the kernel that they adapt (a: inputs, b: outputs).
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

    A mesh axis is used only where it divides the dimension. If fsdp does not divide that of its
    rule, it shards the largest other dimension of the rule that it divides and that no axis splits
    (never the layer axis of a stack, which every step of the scan would fetch from one device). If
    there is none, the array is replicated over fsdp; `experiments.train --plan` lists it so.
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
    """All-gathers a layer's parameters over the `fsdp` axis, in the dtype of the computation.

    Gradients are reduced back to the parameters' own shardings. Tables are not gathered: the rows
    that a batch looks up are smaller. Without an ambient mesh, or with fsdp=1, it does nothing.

    By default XLA's partitioner splits each product and interleaves it with the gather of its
    matrix, and each gradient's product with its scatter. For a U-ViT-L/2 step on 16 TPU chips the
    partial products triple the traffic in and out of main memory.

    Args:
      params: a pytree of arrays. dtype: of the result.
      path: of `params` within the model, as far as the rules need it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params

    def gather(below, a):
        name = f"{path}/{path_string(below)}"
        sharded = spec(name, a.shape, mesh)
        if "fsdp" not in tuple(sharded) or re.search(TABLES, name):
            return a
        gathered = P(*(None if n == "fsdp" else n for n in sharded))
        return _gather(a, sharded, gathered, dtype)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(a: jax.Array, sharded: P, gathered: P, dtype: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(a.astype(dtype), gathered)


def _gather_fwd(a, sharded, gathered, dtype):
    return _gather(a, sharded, gathered, dtype), None


def _gather_bwd(sharded, gathered, dtype, _, g):
    # Unsharded first, so that the product is complete before the gradient is reduced. Otherwise XLA
    # merges the two, and all-gathers the batch for a modulation's gradient.
    g = jax.lax.with_sharding_constraint(g, gathered)
    return (jax.lax.with_sharding_constraint(g, sharded).astype(jnp.float32),)  # parameters' dtype


_gather.defvjp(_gather_fwd, _gather_bwd)


def jit_replicated(
    function: Callable, mesh: Mesh, param_shardings: Any = None
) -> jax.stages.Wrapped:
    """Jits `function(params, *others)` as `run(params, others)`, with `others` (a tuple) and the
    results replicated on every device.

    A batch whose size the mesh does not divide can be sharded inside a program, but not as its
    argument or result.

    Args:
      param_shardings: of `params`; None for those that the arrays have.
    """
    replicated = NamedSharding(mesh, P())

    def run(params, others):
        return function(params, *others)

    return jax.jit(run, in_shardings=(param_shardings, replicated), out_shardings=replicated)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Constrains an array (B, ...) to the batch axes of the ambient mesh (`jax.set_mesh`).

    XLA pads a size that the axes do not divide. Without a mesh it does nothing.
    """
    return _constrain(x, (BATCH_AXES,))


def constrain_tokens(x_BND: jax.Array) -> jax.Array:
    """Constrains activations (B, N, D) to the batch and context axes of the ambient mesh."""
    return _constrain(x_BND, (BATCH_AXES, "context"))


def _constrain(x: jax.Array, names: tuple[Any, ...]) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*names))
