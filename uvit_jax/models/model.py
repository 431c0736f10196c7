"""A model: a layout and a backbone behind pure `init` and `apply`.

The NNX modules are built and split here, once; from here on there are only a static graph and a
pytree of arrays, a nested dict of float32 parameters.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.backbone import Backbone, Cache
from uvit_jax.models.layers import with_gathered_params
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.tokens.embed import Embed, Heads
from uvit_jax.tokens.layout import PRESENT, Layout

Params = dict[str, Any]

BACKBONES: dict[str, Any] = {"transformer": Backbone}
"""By `BackboneConfig.name`: modules built by (config, layout, dtype=, rngs=), which take what was
embedded and the layout to tokens (B, N, D), as `Backbone` does."""

_INTEGERS = ("label", "text")  # the modalities that are given by numbers


class Network(nnx.Module):
    """layout.embed → backbone → layout.read."""

    def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
        width = config.backbone.width
        self.dtype = dtype = jnp.dtype(config.dtype)
        zero = config.backbone.modulation == "adaln_zero"
        self.embed = Embed(layout, width, dtype=dtype, rngs=rngs)
        name = config.backbone.name
        if name not in BACKBONES:
            raise UvitError(f"unknown backbone.name {name!r}{nearest(name, BACKBONES)}")
        self.backbone = BACKBONES[name](config.backbone, layout, dtype=dtype, rngs=rngs)
        self.heads = Heads(layout, width, dtype=dtype, zero=zero, rngs=rngs)

    def __call__(self, inputs, times, layout, cache=None):
        embedded = with_gathered_params(self.embed, self.dtype)(inputs, times, layout)
        tokens_BND = self.backbone(embedded, layout, cache)
        return with_gathered_params(self.heads, self.dtype)(tokens_BND, layout)

    def cache(self, inputs, layout):
        return self.backbone.cache(
            with_gathered_params(self.embed, self.dtype)(inputs, None, layout), layout
        )


class Model:
    """A network as pure functions, `init(key) → params` and `apply(params, inputs, times)`.

    Where references never see the target, what the target sees of them is the same at every step
    of sampling: `cache(params, inputs)` computes it once, and `apply(…, cache=cache)` is exactly
    `apply` with the references among the inputs, for the price of the other tokens.

    Attributes:
      config: the `ModelConfig` it was built from. layout: its `Layout`.
      abstract_params: the parameters' shapes and dtypes, with no arrays behind them.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.layout = config.layout()
        abstract = nnx.eval_shape(lambda: Network(config, self.layout, rngs=nnx.Rngs(0)))
        self._graph, state = nnx.split(abstract)
        self.abstract_params: Params = nnx.to_pure_dict(state)

    def __repr__(self) -> str:
        return f"Model({self.layout}, {self.num_params / 1e6:.2f}M parameters)"

    @property
    def num_params(self) -> int:
        """How many trained numbers the model has."""
        return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(self.abstract_params))

    def abstract_inputs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the inputs for so many examples, with no arrays behind them."""
        kinds = {s.name: jnp.int32 for s in self.layout.inputs if s.modality in _INTEGERS}
        kinds[PRESENT] = jnp.bool_
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), kinds.get(name, jnp.float32))
            for name, shape in self.layout.input_shapes.items()
        }

    @functools.partial(jax.jit, static_argnums=0)
    def _init(self, key: jax.Array) -> Params:
        network = Network(self.config, self.layout, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.split(network)[1])

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, a nested dict of float32 arrays. `key`: a typed PRNG key."""
        return self._init(key)

    def apply(
        self,
        params: Params,
        inputs: Mapping[str, jax.Array],
        times: Mapping[str, jax.Array],
        *,
        cache: Cache | None = None,
    ) -> dict[str, jax.Array]:
        """Runs the network. Pure; jit, grad and vmap it as you like.

        Args:
          params: as `init` gives them.
          inputs: data by segment: noisy ones at their noise level, clean ones and conditions as
            they are. Images (B, H, W, C), features (B, N, F), text int32 (B, T), labels int32 (B,).
            Where references are optional, `refs_present` (B, S, V) says which an example has; the
            pictures of others are not looked at. `subject_slots` int32 (B, S) and `view_slots`
            (B, S, V), from 0, put references into other slots than their segments': two of them
            may be views of one subject.
          times: network times by noisy segment, float (B,).
          cache: as `cache` makes it, in place of the references and all that is said of them.

        Returns:
          A float32 prediction for each noisy segment, in the segment's shape.

        Raises:
          UvitError: if an input or a time is missing, unknown, of another shape, or no integers
            where they number a label or words.
        """
        layout = self.layout if cache is None else self.layout.without_references
        batch = jnp.shape(inputs.get(layout.noisy[0].name, ()))[:1]
        _check(inputs, layout.input_shapes, batch, "inputs", layout.slot_shapes)
        _check(times, dict.fromkeys(layout.time_keys, ()), batch, "times")
        for segment in layout.inputs:
            kind = jnp.result_type(inputs[segment.name])
            if segment.modality in _INTEGERS and not jnp.issubdtype(kind, jnp.integer):
                raise UvitError(
                    f"inputs[{segment.name!r}] must be integers, numbers of a {segment.modality}, "
                    f"got {kind}"
                )
        if cache is not None:
            found, expected = cache.size, (*batch, self.layout.only_references.num_tokens)
            if found != expected:
                raise UvitError(
                    f"the cache is of {found[0]} examples with {found[1]} tokens of references, "
                    f"expected {expected[0]} and {expected[1]}"
                )
        return nnx.merge(self._graph, params)(inputs, times, layout, cache)

    def cache(self, params: Params, inputs: Mapping[str, jax.Array]) -> Cache:
        """What all other tokens see of the references, to be given to `apply`. Pure.

        Args:
          params: as `init` gives them.
          inputs: as for `apply`, of which only the references are looked at, and what is said of
            them in `refs_present`, `subject_slots` and `view_slots`.

        Raises:
          UvitError: if the references depend on the target, saying through what; or as `apply`.
        """
        layout = self.layout.only_references
        known = layout.input_shapes | layout.slot_shapes
        inputs = {name: value for name, value in inputs.items() if name in known}
        batch = jnp.shape(inputs.get(layout.references[0].name, ()))[:1]
        _check(inputs, layout.input_shapes, batch, "inputs", layout.slot_shapes)
        return nnx.merge(self._graph, params).cache(inputs, layout)

    def without_references(self) -> "Model":
        """The model of the same parameters with no references in its sequence: exactly what it is
        with all of them absent, for less."""
        model = copy.copy(self)
        model.layout = self.layout.without_references
        return model


def _check(
    given: Mapping[str, jax.Array],
    shapes: Mapping[str, tuple[int, ...]],
    batch: tuple[int, ...],
    kind: str,
    optional: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raises UvitError if an array is missing, unknown or not of shape (*batch, *shape)."""
    known = {**shapes, **(optional or {})}
    for name in given:
        if name not in known:
            raise UvitError(
                f"{kind} has {name!r}, which is no segment of the model{nearest(name, known)}"
            )
    for name, shape in known.items():
        if name not in given:
            if name in shapes:
                raise UvitError(
                    f"{kind} lacks {name!r}, an array (B{''.join(f', {n}' for n in shape)})"
                )
        elif jnp.shape(given[name]) != (*batch, *shape):
            raise UvitError(
                f"{kind}[{name!r}] has shape {jnp.shape(given[name])}, expected {(*batch, *shape)}"
            )


def build(config: Mapping[str, Any] | ModelConfig) -> Model:
    """Builds the model that `config.model` describes.

    Args:
      config: a mapping with `sequence`, `segments`, `backbone` and `dtype` (see `ModelConfig`).

    Raises:
      UvitError: on an unknown key or a model that cannot be, naming the key.
    """
    return _built(parse_model(config))


# It is pure: who asks for the same one again gets it, with all that was compiled for it.
_built = functools.lru_cache(64)(Model)
