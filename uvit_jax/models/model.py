"""A model: a layout and a backbone behind pure `init` and `apply`.

NNX modules are built and split here, once; after that there are only a static graph and a pytree of
arrays, a nested dict of float32 parameters.
"""

import copy
import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.backbone import Backbone, Cache
from uvit_jax.models.layers import gathered_module
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.models.pure_network import Params, PureNetwork
from uvit_jax.tokens.embed import Embed, Heads
from uvit_jax.tokens.layout import PRESENT, Layout
from uvit_jax.tokens.segment import NAME_TOKENS

BACKBONES: dict[str, Any] = {"transformer": Backbone}
"""By `BackboneConfig.name`: modules built by (config, layout, rope_theta=, dtype=, rngs=) that map
(embedded segments, layout, cache) to tokens (B, N, D), as `Backbone` does."""


class TokenNetwork(nnx.Module):
    """The parameters of a model: embeddings, backbone, heads."""

    def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
        width = config.backbone.width
        dtype = jnp.dtype(config.dtype)
        zero = config.backbone.modulation == "adaln_zero"
        self.embed = Embed(layout, width, dtype=dtype, rngs=rngs)
        name = config.backbone.name
        if name not in BACKBONES:
            raise UvitError(f"backbone.name={name!r} is not known{nearest(name, BACKBONES)}")
        self.backbone = BACKBONES[name](
            config.backbone, layout, rope_theta=config.rope_theta, dtype=dtype, rngs=rngs
        )
        self.heads = Heads(layout, width, dtype=dtype, zero=zero, rngs=rngs)


class Model(PureNetwork):
    """A network as pure functions, `init(key) → params` and `apply(params, inputs, times)`.

    Where references never see the target, their keys and values are the same at every step of
    sampling: `cache(params, inputs)` computes them once, and `apply(…, cache=cache)` equals `apply`
    with the references among the inputs, at the cost of the other tokens.

    Attributes:
      config: the `ModelConfig` it was built from. layout: its `Layout`.
      abstract_params: the parameters' shapes and dtypes, without arrays.
    """

    def __init__(self, config: ModelConfig):
        self.layout = config.layout()
        self._dtype = jnp.dtype(config.dtype)
        super().__init__(config, functools.partial(TokenNetwork, config, self.layout))

    def __repr__(self) -> str:
        return f"Model({self.layout}, {self.num_params / 1e6:.2f}M parameters)"

    def abstract_inputs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the inputs of a batch, without arrays."""
        dtypes = {s.name: jnp.int32 for s in self.layout.inputs if s.integers}
        dtypes |= {PRESENT: jnp.bool_, NAME_TOKENS: jnp.int32}
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtypes.get(name, jnp.float32))
            for name, shape in self.layout.input_shapes.items()
        }

    def apply(
        self,
        params: Params,
        inputs: Mapping[str, jax.Array],
        times: Mapping[str, jax.Array],
        *,
        cache: Cache | None = None,
    ) -> dict[str, jax.Array]:
        """Runs the network. Pure; jit, grad and vmap work.

        Args:
          params: as `init` returns them.
          inputs: data by segment: noisy ones at their noise level, clean ones and conditions as
            they are. Images (B, H, W, C), videos (B, T, H, W, C), features (B, N, F), text int32
            (B, T), labels int32 (B,). Those with a default may be left out. Where references are
            optional, `refs_present` bool (B, S, V) says which an example has; the data of absent
            ones are ignored. `subject_slots` int32 (B, S) and `view_slots` (B, S, V), from 0,
            assign references to other slots than their segments': two of them may be views of one
            subject.
          times: network times by time key (`layout.time_keys`), float (B,).
          cache: from `cache`, in place of the references and of `refs_present` and slots.

        Returns:
          A float32 prediction of each noisy segment, in its shape (twice the channels with a
          learned range).

        Raises:
          UvitError: if an input or a time is missing, unknown, of another shape, or not of integers
            where they are labels or token ids.
        """
        layout = self.layout if cache is None else self.layout.without_references
        self._check_inputs(inputs, times, layout, cache)
        inputs = {**layout.defaults(jnp.shape(inputs[layout.noisy[0].name])[0]), **inputs}
        network = nnx.merge(self._graph, params)
        embedded = gathered_module(network.embed, self._dtype)(inputs, times, layout)
        tokens_BND = network.backbone(embedded, layout, cache)
        return gathered_module(network.heads, self._dtype)(tokens_BND, layout)

    def cache(self, params: Params, inputs: Mapping[str, jax.Array]) -> Cache:
        """The keys and values of the references, for `apply`. Pure.

        Args:
          params: as `init` returns them.
          inputs: as for `apply`; only the references, `refs_present` and slots are used, and the
            text with their subjects' names (`Segment.names_from`).

        Raises:
          UvitError: if the references depend on the target, saying how; or as `apply`.
        """
        layout = self.layout.only_references
        known = layout.input_shapes | layout.optional_shapes
        inputs = {name: value for name, value in inputs.items() if name in known}
        batch = jnp.shape(inputs.get(layout.references[0].name, ()))[:1]
        _check(inputs, layout.input_shapes, batch, "inputs", layout.optional_shapes)
        network = nnx.merge(self._graph, params)
        embedded = gathered_module(network.embed, self._dtype)(inputs, None, layout)
        return network.backbone.cache(embedded, layout)

    def without_references(self) -> "Model":
        """The model of the same parameters without references in its sequence: it equals the model
        with all of them absent, at a lower cost."""
        model = copy.copy(self)
        model.layout = self.layout.without_references
        return model

    def without_noisy(self, names: Collection[str]) -> "Model":
        """The model of the same parameters without some of its noisy segments, such as all frames
        of a video but the first.

        Raises:
          UvitError: if no noisy segment is left.
        """
        model = copy.copy(self)
        model.layout = self.layout.without_noisy(names)
        return model

    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "Model":
        """The model of the same parameters for images or videos of other shapes, by interpolated
        positions.

        Args:
          shapes: by segment (H, W, C), (T, H, W, C), or of a camera (T, F).

        Raises:
          UvitError: if a segment has no such shape, its channels differ, or the patches do not
            divide the shape.
        """
        segments = dict(self.config.segments)
        known = [n for n, s in segments.items() if hasattr(s, "trained_shape")]
        for name, shape in shapes.items():
            if name not in known:
                raise UvitError(
                    f"{name!r} is not a segment of images or videos{nearest(name, known)}"
                )
            segment = segments[name]
            if shape[-1] != segment.shape[-1]:
                raise UvitError(
                    f"segment {name!r} has {segment.shape[-1]} channels, which {shape} would change"
                )
            trained = segment.trained_shape or segment.shape
            segments[name] = dataclasses.replace(segment, shape=shape, trained_shape=trained)
        model = build(dataclasses.replace(self.config, segments=segments))
        return model if self.layout.references else model.without_references()

    def _check_inputs(
        self,
        inputs: Mapping[str, jax.Array],
        times: Mapping[str, jax.Array],
        layout: Layout,
        cache: Cache | None,
    ) -> None:
        batch = jnp.shape(inputs.get(layout.noisy[0].name, ()))[:1]
        _check(inputs, layout.input_shapes, batch, "inputs", layout.optional_shapes)
        _check(times, dict.fromkeys(layout.time_keys, ()), batch, "times")
        for segment in (s for s in layout.inputs if s.name in inputs):
            dtype = jnp.result_type(inputs[segment.name])
            if segment.integers and not jnp.issubdtype(dtype, jnp.integer):
                raise UvitError(f"inputs[{segment.name!r}] must be integers, got {dtype}")
        layout.check_ids(inputs)
        if cache is not None:
            expected = (*batch, self.layout.only_references.num_tokens)
            if cache.size != expected:
                raise UvitError(
                    f"the cache has {cache.size[0]} examples with {cache.size[1]} reference "
                    f"tokens, expected {expected[0]} and {expected[1]}"
                )


def _check(
    given: Mapping[str, jax.Array],
    shapes: Mapping[str, tuple[int, ...]],
    batch: tuple[int, ...],
    what: str,
    optional: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raises UvitError if an array is missing, unknown or not of shape (*batch, *shape)."""
    known = {**shapes, **(optional or {})}
    for name in given:
        if name not in known:
            raise UvitError(
                f"{what} has {name!r}, which is not an input of the model{nearest(name, known)}"
            )
    for name, shape in known.items():
        if name not in given:
            if name in shapes:
                raise UvitError(
                    f"{what} lacks {name!r}, an array (B{''.join(f', {n}' for n in shape)})"
                )
        elif jnp.shape(given[name]) != (*batch, *shape):
            raise UvitError(
                f"{what}[{name!r}] has shape {jnp.shape(given[name])}, expected {(*batch, *shape)}"
            )


def build(config: Mapping[str, Any] | ModelConfig) -> Model:
    """Builds the model that `config.model` describes.

    Args:
      config: a mapping with `sequence`, `segments`, `backbone` and `dtype` (see `ModelConfig`).

    Raises:
      UvitError: on an unknown key or a model that cannot work, naming the key.
    """
    return _built(parse_model(config))


# Building is pure: equal configs share one model, and everything compiled for it.
_built = functools.lru_cache(64)(Model)
