"""LoRA (Hu et al. 2021): adapters as a pytree beside the parameters, which stay as they are.

    adapters = init(key, params, LoraConfig(rank=8))       # {path: Adapter(a, b)}
    outputs = model.apply(attach(params, adapters), …)     # x W + (x a) b
    outputs = model.apply(merge(params, adapters), …)      # x (W + a b): the same function

Any kernel that a path regex finds, read as a matrix of inputs by outputs, becomes W + scale · a b.
Attached, the product with W is the base's own: under `vmap` over many adapters it is one product of
all their tokens with one matrix, and no gradient of W is ever computed. Merged, nothing is left of
the adapters but numbers: that is for sampling, export and whatever else takes plain parameters.

Queries, keys and values stand side by side in one kernel, and each is a matrix with an adapter of
the full rank for itself. With PEFT this is `to_q`, `to_k`, `to_v` each of rank R, or a fused `qkv`
of rank 3R whose B is block-diagonal.
"""

import contextlib
import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.linear import LowRank
from uvit_jax.models.model import Params
from uvit_jax.parallel.sharding import path_string

TARGETS = (
    r"backbone/.*(attention|cross)/(qkv|q|kv|out)$",
    r"backbone/.*mlp/fc[12]$",
)
"""Queries, keys, values and output of every attention, and both layers of every MLP."""

# What a kernel's last axes are, by the layer's path, the first rule that is found in it: inputs I,
# parts P that stand side by side, outputs O. An axis before them is that of a scan over layers.
FORMS: tuple[tuple[str, str], ...] = (
    (r"(attention/qkv|cross/kv)$", "IPOO"),
    (r"cross/q$", "IOO"),
    (r"(attention|cross)/out$", "IIO"),
    (r".*", "IO"),
)


class Adapter(NamedTuple):
    """The two factors of one kernel's change, or of L kernels' that a scan runs through.

    a: (…, P, I, R), b: (…, P, R, O), for P parts of I inputs and O outputs each; `…` is L, if the
    kernel has a layer axis, and before it S, where the adapters of S subjects are stacked.
    """

    a: jax.Array
    b: jax.Array

    @property
    def rank(self) -> int:
        """R, of each part."""
        return self.a.shape[-1]


Adapters = dict[str, Adapter]
"""By the path of a layer, `backbone/in_blocks/attention/qkv`, whose kernel they change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What adapters there are.

    Attributes:
      rank: R, of every matrix.
      alpha: the change is alpha / rank · a b; 0 stands for the rank, which makes that factor 1.
      targets: regexes of layers' paths; a layer that one of them is found in has an adapter.
    """

    rank: int = 8
    alpha: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if self.rank < 1:
            raise UvitError(f"rank must be at least 1, got {self.rank}")
        if self.alpha < 0:
            raise UvitError(f"alpha must be positive, or 0 for the rank, got {self.alpha}")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UvitError(f"targets: {pattern!r} is no regex: {error}") from None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha or self.rank) / self.rank


class Matrix(NamedTuple):
    """How a kernel is read as `parts` matrices (inputs, outputs), `lead` axes before them."""

    lead: tuple[int, ...]
    parts: int
    inputs: int
    outputs: int


def matrix(path: str, shape: tuple[int, ...]) -> Matrix:
    """How the kernel of the layer at `path` is read.

    Raises:
      UvitError: if it is no matrix: a convolution, say.
    """
    form = next(form for pattern, form in FORMS if re.search(pattern, path))
    cut = len(shape) - len(form)
    if cut not in (0, 1):
        raise UvitError(
            f"the kernel {path} of shape {shape} is no matrix, which LoRA needs; leave it out of "
            "the targets"
        )
    sizes = {
        letter: math.prod(
            size for size, own in zip(shape[cut:], form, strict=True) if own == letter
        )
        for letter in "PIO"
    }
    return Matrix(tuple(shape[:cut]), sizes["P"], sizes["I"], sizes["O"])


def targeted(params: Params, targets: Sequence[str] = TARGETS) -> dict[str, Matrix]:
    """The layers that have a kernel and are found by one of `targets`, in the order of `params`.

    Args:
      params: arrays, or their shapes (`model.abstract_params`).

    Raises:
      UvitError: if a target finds nothing, or what is no matrix.
    """
    kernels = _kernels(params)
    for pattern in targets:
        if not any(re.search(pattern, path) for path in kernels):
            raise UvitError(
                f"the target {pattern!r} is found in no layer; the layers are {', '.join(kernels)}"
            )
    return {
        path: matrix(path, shape)
        for path, shape in kernels.items()
        if any(re.search(pattern, path) for pattern in targets)
    }


def matrices(params: Params) -> dict[str, Matrix]:
    """All layers that can have an adapter."""
    found = {}
    for path, shape in _kernels(params).items():
        with contextlib.suppress(UvitError):
            found[path] = matrix(path, shape)
    return found


def init(key: jax.Array, params: Params, config: LoraConfig) -> Adapters:
    """Adapters that change nothing yet: a ~ N(0, 1/R²), as PEFT's `gaussian`, and b = 0.

    Each layer's numbers depend on `key` and on its path alone.

    Args:
      params: of the base, or their shapes.

    Raises:
      UvitError: as `targeted` does.
    """
    adapters = {}
    for path, (lead, parts, inputs, outputs) in targeted(params, config.targets).items():
        own_key = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
        a = jax.random.normal(own_key, (*lead, parts, inputs, config.rank)) / config.rank
        adapters[path] = Adapter(a=a, b=jnp.zeros((*lead, parts, config.rank, outputs)))
    return adapters


def attach(params: Params, adapters: Adapters, scale: float | jax.Array = 1.0) -> Params:
    """Parameters for `model.apply` whose adapted kernels are a base and two factors.

    Args:
      scale: of the change: the config's, times the weight that it is to have.

    Raises:
      UvitError: if an adapter does not fit, or is of a layer outside the blocks, which knows only
        plain kernels; `merge` it.
    """
    for path in adapters:
        if not path.startswith("backbone/"):
            raise UvitError(f"an adapter of {path} can be merged, but not attached: it is no block")
    return _changed(params, adapters, lambda w, pair: LowRank(w, pair.a, scale * pair.b))


def merge(params: Params, adapters: Adapters, scale: float | jax.Array = 1.0) -> Params:
    """Parameters of the same shapes with the adapters added in; `params` stay as they are.

    Args:
      scale: as of `attach`.

    Raises:
      UvitError: if an adapter does not fit.
    """

    def merged(w: jax.Array, pair: Adapter) -> jax.Array:
        delta = jnp.einsum("...pir,...pro->...ipo", pair.a, scale * pair.b, precision="highest")
        return w + delta.reshape(w.shape).astype(w.dtype)

    return _changed(params, adapters, merged)


def check(params: Params, adapters: Adapters) -> None:
    """Raises UvitError if adapters are not of parameters like these, naming the first that is not.

    Args:
      params: arrays, or their shapes.
    """
    shapes = {path: leaf.shape for path, leaf in _flat(params).items()}
    for path, pair in adapters.items():
        shape = shapes.get(f"{path}/kernel")
        if shape is None:
            layers = [p.removesuffix("/kernel") for p in shapes if p.endswith("/kernel")]
            raise UvitError(
                f"an adapter is of {path}, and the model has none{nearest(path, layers)}"
            )
        lead, parts, inputs, outputs = matrix(path, shape)
        rank = pair.rank
        expected = (*lead, parts, inputs, rank), (*lead, parts, rank, outputs)
        if (pair.a.shape, pair.b.shape) != expected:
            raise UvitError(
                f"the adapter of {path} has factors {pair.a.shape} and {pair.b.shape}, and the "
                f"model's kernel {shape} takes {expected[0]} and {expected[1]}: it is of another "
                "model"
            )


def combined(adapters: Sequence[Adapters], weights: Sequence[float]) -> Adapters:
    """The weighted sum of several adapters, as one: Σ wᵢ aᵢ bᵢ = [a₁ a₂ …] [w₁b₁; w₂b₂; …].

    Its rank is the sum of their ranks. Adapters may be of different layers and ranks.

    Args:
      weights: as many; with each adapter's own scale in them.
    """
    pairs: dict[str, list[Adapter]] = {}
    for each, weight in zip(adapters, weights, strict=True):
        for path, pair in each.items():
            pairs.setdefault(path, []).append(Adapter(a=pair.a, b=weight * pair.b))
    return {
        path: Adapter(
            a=jnp.concatenate([pair.a for pair in found], axis=-1),
            b=jnp.concatenate([pair.b for pair in found], axis=-2),
        )
        for path, found in pairs.items()
    }


def replaced(params: Params, changes: Mapping[str, Callable[[Any], Any]]) -> Params:
    """`params` with the kernels of some layers, by path, replaced by a function of them."""

    def changed(path: tuple[Any, ...], leaf: Any) -> Any:
        layer, _, name = path_string(path).rpartition("/")
        return changes[layer](leaf) if name == "kernel" and layer in changes else leaf

    return jax.tree_util.tree_map_with_path(
        changed, params, is_leaf=lambda leaf: isinstance(leaf, LowRank)
    )


def _changed(
    params: Params, adapters: Adapters, change: Callable[[jax.Array, Adapter], Any]
) -> Params:
    """`params` with `change(kernel, adapter)` where there is an adapter."""
    check(params, adapters)
    return replaced(params, {p: lambda w, p=p: change(w, adapters[p]) for p in adapters})


def _kernels(params: Params) -> dict[str, tuple[int, ...]]:
    return {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in _flat(params).items()
        if path.endswith("/kernel")
    }


def _flat(params: Params) -> dict[str, Any]:
    return {path_string(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
