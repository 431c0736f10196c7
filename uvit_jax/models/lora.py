"""LoRA (Hu et al. 2021): adapters as a pytree beside the parameters, which do not change.

    adapters = init(key, params, LoraConfig(rank=8))       # {path: Adapter(a, b)}
    outputs = model.apply(attach(params, adapters), …)     # x W + (x a) b
    outputs = model.apply(merge(params, adapters), …)      # x (W + a b): the same function

Any kernel whose path matches a regex, reshaped to a matrix (inputs, outputs), becomes
W + scale · a b. With attached adapters, the product with W is the base model's: under `vmap` over
adapters all their tokens share one product, and no gradient of W is computed. Merged parameters are
plain arrays, for sampling, export and all code without support for adapters.

The vectors of subjects' own words (`@1*`, see `uvit_jax.described_names`) can be trained beside the
factors, or alone: textual inversion (Gal et al. 2023).

A fused kernel of queries, keys and values is three matrices, each with an adapter of the full rank.
In PEFT this is `to_q`, `to_k`, `to_v` of rank R each, or a fused `qkv` of rank 3R whose B is
block-diagonal.
"""

import contextlib
import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax import described_names
from uvit_jax.config import Config
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.linear import LowRank
from uvit_jax.models.model import Params
from uvit_jax.parallel.sharding import path_string

ATTENTION = r"backbone/.*(attention|cross)/(qkv|q|kv|out)$"
"""Queries, keys, values and output of every attention."""
MLP = r"backbone/.*mlp/fc[12]$"
"""Both layers of every MLP."""
TARGETS = (ATTENTION, MLP)

# A kernel's last axes by a regex of the layer's path, of which the first match counts: inputs I,
# parts P of a fused kernel, outputs O. An axis before them is that of a scan over layers.
FORMS: tuple[tuple[str, str], ...] = (
    (r"(attention/qkv|cross/kv)$", "IPOO"),
    (r"cross/q$", "IOO"),
    (r"(attention|cross)/out$", "IIO"),
    (r".*", "IO"),
)


class Adapter(NamedTuple):
    """The two low-rank factors of a kernel's update, or of the kernels of L scanned layers.

    a: (…, P, I, R), b: (…, P, R, O), for P parts of I inputs and O outputs each; `…` is L, if the
    kernel has a layer axis, and before it S, if the adapters of S subjects are stacked.
    """

    a: jax.Array
    b: jax.Array

    @property
    def rank(self) -> int:
        """R, of each part."""
        return self.a.shape[-1]


class WordVectors(NamedTuple):
    """What is added to the vectors of the own words `@1*`, `@2*`, …: delta (…, NAMES, D)."""

    delta: jax.Array


Adapters = dict[str, Adapter | WordVectors]
"""Adapters by the path of their layer, such as `backbone/in_blocks/attention/qkv`; word vectors by
that of their table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Config):
    """The rank, scale and layers of adapters.

    Attributes:
      rank: R, of every matrix.
      alpha: the update is alpha / rank · a b; 0 sets alpha to the rank, and so the factor to 1.
      targets: regexes; a layer has an adapter if one of them matches (`re.search`) in its path.
      init: of a, with b = 0. `gaussian` is PEFT's N(0, 1/R²), whose update depends on the rank;
        `kaiming` its default, uniform in ±1/√I, so that ranks learn alike at one rate.
      words: whether to train the vectors of own words, such as `@1*`, too; without targets, alone.
    """

    rank: int = 8
    alpha: float = 0.0
    targets: tuple[str, ...] = TARGETS
    init: Literal["gaussian", "kaiming"] = "gaussian"
    words: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.targets and not self.words:
            raise UvitError("targets=() leaves nothing to train; name layers, or set words=True")
        if self.rank < 1:
            raise UvitError(f"rank must be at least 1, got {self.rank}")
        if self.alpha < 0:
            raise UvitError(f"alpha must be positive, or 0 for the rank, got {self.alpha}")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UvitError(f"targets: {pattern!r} is not a regex: {error}") from None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha or self.rank) / self.rank


class Matrix(NamedTuple):
    """A kernel as `parts` matrices (inputs, outputs), after the axes `lead`."""

    lead: tuple[int, ...]
    parts: int
    inputs: int
    outputs: int


def matrix(path: str, shape: tuple[int, ...]) -> Matrix:
    """The sizes of the kernel of the layer at `path` as matrices.

    Raises:
      UvitError: if it cannot be reshaped to matrices, like that of a convolution.
    """
    form = next(form for pattern, form in FORMS if re.search(pattern, path))
    cut = len(shape) - len(form)
    if cut not in (0, 1):
        raise UvitError(
            f"the kernel {path} of shape {shape} is not a matrix, which LoRA needs; remove it from "
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
    """The layers with a kernel whose paths match one of `targets`, in the order of `params`.

    Args:
      params: arrays, or their shapes (`model.abstract_params`).

    Raises:
      UvitError: if a target matches no layer, or a kernel that is not a matrix.
    """
    kernels = _kernels(params)
    for pattern in targets:
        if not any(re.search(pattern, path) for path in kernels):
            raise UvitError(
                f"the target {pattern!r} matches no layer; the layers are {', '.join(kernels)}"
            )
    return {
        path: matrix(path, shape)
        for path, shape in kernels.items()
        if any(re.search(pattern, path) for pattern in targets)
    }


def num_parameters(params: Params, config: LoraConfig) -> int:
    """The number of parameters of adapters; raises as `targeted` does."""
    matrices = targeted(params, config.targets).values()
    return sum(math.prod(m.lead) * m.parts * config.rank * (m.inputs + m.outputs) for m in matrices)


def matrices(params: Params) -> dict[str, Matrix]:
    """All layers that can have an adapter."""
    by_path = {}
    for path, shape in _kernels(params).items():
        with contextlib.suppress(UvitError):
            by_path[path] = matrix(path, shape)
    return by_path


def init(key: jax.Array, params: Params, config: LoraConfig) -> Adapters:
    """Initial adapters, whose update is zero.

    A layer's values depend on `key` and its path only.

    Args:
      params: of the base model, or their shapes.

    Raises:
      UvitError: as `targeted` and `word_table` do.
    """
    adapters = {}
    for path, (lead, parts, inputs, outputs) in targeted(params, config.targets).items():
        own_key = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
        shape = (*lead, parts, inputs, config.rank)
        if config.init == "gaussian":
            a = jax.random.normal(own_key, shape) / config.rank
        else:
            a = jax.random.uniform(own_key, shape, minval=-1, maxval=1) / math.sqrt(inputs)
        adapters[path] = Adapter(a=a, b=jnp.zeros((*lead, parts, config.rank, outputs)))
    if config.words:
        path, (_, width) = word_table(params)
        adapters[path] = WordVectors(jnp.zeros((described_names.NAMES, width)))
    return adapters


def word_table(params: Params) -> tuple[str, tuple[int, int]]:
    """The path and shape of the table with the vectors of own words, its last rows.

    Raises:
      UvitError: if a model has none.
    """
    for path, leaf in _flat(params).items():
        if path.endswith("described/table/embedding"):
            return path.removesuffix("/embedding"), leaf.shape
    raise UvitError(
        "the model has no words of subjects' own, such as @1*: train it with `attributes` of its "
        "text segment, or set words=False"
    )


def attach(params: Params, adapters: Adapters, scale: float | jax.Array = 1.0) -> Params:
    """Parameters for `model.apply` whose adapted kernels are the base kernel and two factors.

    Args:
      scale: of the update: `LoraConfig.scale`, times a weight. Word vectors are not scaled.

    Raises:
      UvitError: if an adapter does not match the parameters, or is of a layer outside the blocks,
        which supports plain kernels only (use `merge`).
    """
    for path in adapters:
        if not path.startswith("backbone/") and isinstance(adapters[path], Adapter):
            raise UvitError(f"attach supports only layers of blocks, not {path}; use merge")
    return _changed(params, adapters, lambda w, pair: LowRank(w, pair.a, scale * pair.b))


def merge(params: Params, adapters: Adapters, scale: float | jax.Array = 1.0) -> Params:
    """Parameters of the same shapes with the updates added; `params` do not change.

    Args:
      scale: see `attach`.

    Raises:
      UvitError: if an adapter does not match the parameters.
    """

    def merged(w: jax.Array, pair: Adapter) -> jax.Array:
        delta = jnp.einsum("...pir,...pro->...ipo", pair.a, scale * pair.b, precision="highest")
        return w + delta.reshape(w.shape).astype(w.dtype)

    return _changed(params, adapters, merged)


def check(params: Params, adapters: Adapters) -> None:
    """Raises UvitError if an adapter does not match the parameters, naming the first.

    Args:
      params: arrays, or their shapes.
    """
    shapes = {path: leaf.shape for path, leaf in _flat(params).items()}
    for path, pair in adapters.items():
        if isinstance(pair, WordVectors):
            table, (_, width) = word_table(params)
            if path != table or pair.delta.shape[-2:] != (described_names.NAMES, width):
                raise UvitError(
                    f"the adapters have word vectors {pair.delta.shape} of {path}, and the model's "
                    f"are (…, {described_names.NAMES}, {width}) of {table}: it is another model"
                )
            continue
        shape = shapes.get(f"{path}/kernel")
        if shape is None:
            layers = [p.removesuffix("/kernel") for p in shapes if p.endswith("/kernel")]
            raise UvitError(
                f"the adapters have a layer {path}, which the model lacks{nearest(path, layers)}"
            )
        lead, parts, inputs, outputs = matrix(path, shape)
        rank = pair.rank
        expected = (*lead, parts, inputs, rank), (*lead, parts, rank, outputs)
        if (pair.a.shape, pair.b.shape) != expected:
            raise UvitError(
                f"the adapter of {path} has factors {pair.a.shape} and {pair.b.shape}, but the "
                f"model's kernel {shape} needs {expected[0]} and {expected[1]}: it is of another "
                "model"
            )


def combined(adapters: Sequence[Adapters], weights: Sequence[float]) -> Adapters:
    """The weighted sum of several adapters as one: Σ wᵢ aᵢ bᵢ = [a₁ a₂ …] [w₁b₁; w₂b₂; …].

    Its rank is the sum of their ranks. Adapters may be of different layers and ranks.

    Args:
      weights: one per adapter, including its `LoraConfig.scale`.
    """
    pairs: dict[str, list[Adapter]] = {}
    words: dict[str, Any] = {}
    for each, weight in zip(adapters, weights, strict=True):
        for path, pair in each.items():
            if isinstance(pair, WordVectors):
                words[path] = words.get(path, 0) + weight * pair.delta
            else:
                pairs.setdefault(path, []).append(Adapter(a=pair.a, b=weight * pair.b))
    joined = {
        path: Adapter(
            a=jnp.concatenate([pair.a for pair in summands], axis=-1),
            b=jnp.concatenate([pair.b for pair in summands], axis=-2),
        )
        for path, summands in pairs.items()
    }
    return joined | {path: WordVectors(delta) for path, delta in words.items()}


def replaced(params: Params, changes: Mapping[str, Callable[[Any], Any]]) -> Params:
    """`params` with some kernels, or tables, replaced by functions of them, given by the path of
    the layer."""

    def changed(path: tuple[Any, ...], leaf: Any) -> Any:
        layer, _, name = path_string(path).rpartition("/")
        own = name in ("kernel", "embedding") and layer in changes
        return changes[layer](leaf) if own else leaf

    return jax.tree_util.tree_map_with_path(
        changed, params, is_leaf=lambda leaf: isinstance(leaf, LowRank)
    )


def _changed(
    params: Params, adapters: Adapters, change: Callable[[jax.Array, Adapter], Any]
) -> Params:
    """`params` with the kernel of each adapted layer replaced by `change(kernel, adapter)`, and
    with the word vectors."""
    check(params, adapters)

    def changed(w: Any, path: str) -> Any:
        one = adapters[path]
        if isinstance(one, WordVectors):
            return jnp.asarray(w).at[-described_names.NAMES :].add(one.delta)
        return change(w, one)

    return replaced(params, {p: functools.partial(changed, path=p) for p in adapters})


def _kernels(params: Params) -> dict[str, tuple[int, ...]]:
    return {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in _flat(params).items()
        if path.endswith("/kernel")
    }


def _flat(params: Params) -> dict[str, Any]:
    return {path_string(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
