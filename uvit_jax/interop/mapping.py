"""The mapping between a family's checkpoint and our parameters.

A family lists `Entry`s, which `imported` and `exported` apply in the two directions, so that every
import can be exported bit for bit, and a key without an entry is an error.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
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
ROW = Transform(lambda a: a[0], lambda a: a[None])  # (1, n, D) ↔ (n, D)


def patches(patch_size: int, channels: int) -> Transform:
    """A convolution with kernel = stride (D, C, p, p) ↔ a linear layer on patches (p²C, D)."""
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


def heads_kernel(num_heads: int) -> Transform:
    """(D, D), rows as (heads, head size) ↔ (D, H, K)."""
    return Transform(
        lambda a: a.T.reshape(a.shape[1], num_heads, -1),
        lambda a: a.reshape(a.shape[0], -1).T,
    )


def heads_bias(num_heads: int) -> Transform:
    """(D,) ↔ (H, K)."""
    return Transform(lambda a: a.reshape(num_heads, -1), lambda a: a.reshape(-1))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of theirs and its part of our parameters.

    Two entries for the same part of ours are copies in their file, and have to be equal.

    Attributes:
      key: their name. path: ours, `a/b/c`.
      transform: between the two arrays.
      layer: index on our leading layer axis, None where there is none.
      rows: the slice of their axis 1, where one tensor of theirs is several of ours.
      part: index on the axis of queries, keys and values (our third from the end), where theirs
        are separate tensors; None where they are fused as ours are.
      unused: whether their program ignores the tensor: it may have any value, or be missing, and is
        exported as this copy.
    """

    key: str
    path: str
    transform: Transform = SAME
    layer: int | None = None
    rows: slice | None = None
    part: int | None = None
    unused: bool = False

    def as_unused(self) -> "Entry":
        """The same, unused."""
        return dataclasses.replace(self, unused=True)

    def view(self, array: np.ndarray) -> np.ndarray:
        """The view of our array at `path` that corresponds to this entry."""
        array = array if self.layer is None else array[self.layer]
        return array if self.part is None else array[..., self.part, :, :]


def linear(
    key: str, path: str, transform: Transform = LINEAR, layer: int | None = None
) -> Iterator[Entry]:
    """The entries of a layer: their `weight` and `bias`, our `kernel` and `bias`."""
    yield Entry(f"{key}.weight", f"{path}/kernel", transform, layer)
    yield Entry(f"{key}.bias", f"{path}/bias", layer=layer)


def imported(entries: Iterable[Entry], tensors: Tensors, abstract: Any, where: str) -> Any:
    """Our parameters (a nested dict of float32 numpy arrays) from their tensors.

    Args:
      entries: the family's list. abstract: our parameters' shapes. where: the file, for messages.

    Raises:
      UvitError: naming all keys that are missing, unexpected, or of another shape; otherwise those
        with NaN or infinity; otherwise one that differs from its copy.
    """
    entries = list(entries)
    unused = {e.key for e in entries if e.unused}
    entries = [e for e in entries if not e.unused]
    tensors = {key: tensors[key] for key in tensors if key not in unused}
    known = {e.key for e in entries}
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    arrays = {path_string(p): np.full(a.shape, np.nan, np.float32) for p, a in flat}
    ends = {e.key: e.rows.stop for e in entries if e.rows is not None}  # rows come in order
    misshapen: dict[str, str] = {}
    values: dict[tuple[str, int | None, int | None], str] = {}
    copies: list[tuple[str, str]] = []
    for entry in entries:
        if entry.key not in tensors:
            continue
        if not jnp.issubdtype(tensors[entry.key].dtype, jnp.floating):
            misshapen[entry.key] = f"{entry.key} has dtype {tensors[entry.key].dtype}, not floats"
            continue
        target = entry.view(arrays[entry.path])
        value = theirs = np.asarray(tensors[entry.key], np.float32)
        fits = entry.rows is None or theirs.shape[1:2] == (ends[entry.key],)
        try:
            value = value if entry.rows is None else value[:, entry.rows]
            value = entry.transform.ours(value)
        except (ValueError, IndexError):  # a shape that the transform cannot take
            fits = False
        if not fits or value.shape != target.shape:
            misshapen.setdefault(
                entry.key,
                f"{entry.key} has shape {theirs.shape}, which does not match {entry.path} "
                f"{target.shape}",
            )
            continue
        first = values.setdefault((entry.path, entry.layer, entry.part), entry.key)
        if first != entry.key and not np.array_equal(target, value):
            copies.append((entry.key, first))
        target[...] = value
    problems = [
        f"missing: {some(sorted(known - set(tensors)))}" if known - set(tensors) else "",
        f"unexpected: {some(sorted(set(tensors) - known))}" if set(tensors) - known else "",
        some(list(misshapen.values())),
    ]
    if any(problems):
        text = "; ".join(filter(None, problems))
        raise UvitError(f"{where} does not have this model's tensors; {text}")
    # As float32, in which large float64 are infinite.
    if broken := sorted(k for k in known if not np.isfinite(np.float32(tensors[k])).all()):
        raise UvitError(f"{where} has values that are not finite (NaN or infinity): {some(broken)}")
    if copies:
        key, first = copies[0]
        raise UvitError(f"{where}: {key} differs from {first}, of which it should be a copy")
    leaves = [arrays[path_string(p)] for p, _ in flat]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def some(names: list[str], most: int = 8) -> str:
    """The first `most` names in one line, and the number of others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def exported(entries: Iterable[Entry], params: Any) -> dict[str, np.ndarray]:
    """Their tensors from our parameters: the exact inverse of `imported`."""
    flat = {path_string(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(params)}
    parts: dict[str, list[np.ndarray]] = {}
    for entry in entries:
        value = entry.transform.theirs(entry.view(flat[entry.path]))
        parts.setdefault(entry.key, []).append(value)
    # Tensors that are several of ours list their parts in order along axis 1.
    return {
        key: np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values, axis=1))
        for key, values in parts.items()
    }
