"""Two names for one tensor: how a family's checkpoint maps onto our parameters.

A family lists `Entry`s; `imported` and `exported` walk the list in one direction or the other, so
that what can be read can be written, bit for bit, and a key without a place is an error.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.parallel.sharding import path_string

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse functions between their array and ours."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda a: a, lambda a: a)
LINEAR = Transform(np.transpose, np.transpose)  # (out, in) ↔ (in, out)
CONV = Transform(
    lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)  # OIHW ↔ HWIO


def patches(patch_size: int, channels: int) -> Transform:
    """A convolution whose kernel is its stride (D, C, p, p) ↔ a product with patches (p²C, D)."""
    p, C = patch_size, channels
    return Transform(
        lambda a: a.transpose(2, 3, 1, 0).reshape(p * p * C, -1),
        lambda a: a.reshape(p, p, C, -1).transpose(3, 2, 0, 1),
    )


def qkv_kernel(num_heads: int) -> Transform:
    """(3D, D), rows as (3, heads, head size) ↔ (D, 3, H, K)."""
    return Transform(
        lambda a: a.T.reshape(a.shape[1], 3, num_heads, -1),
        lambda a: a.reshape(a.shape[0], -1).T,
    )


def qkv_bias(num_heads: int) -> Transform:
    """(3D,) ↔ (3, H, K)."""
    return Transform(lambda a: a.reshape(3, num_heads, -1), lambda a: a.reshape(-1))


def heads_out(num_heads: int) -> Transform:
    """(D, D) ↔ (H, K, D)."""
    return Transform(
        lambda a: a.T.reshape(num_heads, -1, a.shape[0]),
        lambda a: a.reshape(-1, a.shape[-1]).T,
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """Their tensor `key` is ours at `path`, or row `layer` of ours, or rows `rows` of theirs.

    Attributes:
      key: their name. path: ours, `a/b/c`.
      transform: between the two arrays.
      layer: index on our leading layer axis, None where there is none.
      rows: the part of their axis 1 that is ours, where one tensor of theirs is several of ours.
    """

    key: str
    path: str
    transform: Transform = SAME
    layer: int | None = None
    rows: slice | None = None


def linear(
    key: str, path: str, transform: Transform = LINEAR, layer: int | None = None
) -> Iterator[Entry]:
    """A weight and a bias of theirs, our `kernel` and `bias`."""
    yield Entry(f"{key}.weight", f"{path}/kernel", transform, layer)
    yield Entry(f"{key}.bias", f"{path}/bias", layer=layer)


def imported(entries: Iterable[Entry], tensors: Tensors, abstract: Any, where: str) -> Any:
    """Our parameters (a nested dict of float32 numpy arrays) from their tensors.

    Args:
      entries: the family's list. abstract: our parameters' shapes. where: the file, for messages.

    Raises:
      UvitError: naming the keys that are missing, unexpected, or of another shape.
    """
    entries = list(entries)
    known = {e.key for e in entries}
    missing, unexpected = sorted(known - set(tensors)), sorted(set(tensors) - known)
    if missing or unexpected:
        parts = [
            f"{name}: {', '.join(keys[:8])}{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}"
            for name, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UvitError(f"{where} does not hold this model's tensors; {'; '.join(parts)}")
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    arrays = {path_string(p): np.full(a.shape, np.nan, np.float32) for p, a in flat}
    for entry in entries:
        target = arrays[entry.path]
        target = target if entry.layer is None else target[entry.layer]
        value = np.asarray(tensors[entry.key], np.float32)
        value = value if entry.rows is None else value[:, entry.rows]
        with contextlib.suppress(ValueError):  # a shape that will be named below
            value = entry.transform.ours(value)
        if value.shape != target.shape:
            raise UvitError(
                f"{where}: {entry.key} has shape {tuple(tensors[entry.key].shape)}, "
                f"which does not make {entry.path} {target.shape}"
            )
        target[...] = value
    leaves = [arrays[path_string(p)] for p, _ in flat]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def exported(entries: Iterable[Entry], params: Any) -> dict[str, np.ndarray]:
    """Their tensors from our parameters: the exact inverse of `imported`."""
    flat = {path_string(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(params)}
    parts: dict[str, list[np.ndarray]] = {}
    for entry in entries:
        value = flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]
        parts.setdefault(entry.key, []).append(entry.transform.theirs(value))
    # Tensors that are several of ours list their parts in order along axis 1.
    return {
        key: np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values, axis=1))
        for key, values in parts.items()
    }
