"""A model: a layout and a backbone behind pure `init` and `apply`.

The NNX modules are built and split here, once; from here on there are only a static graph and a
pytree of arrays, a nested dict of float32 parameters.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.backbone import Backbone
from uvit_jax.models.config import ModelConfig, parse_model
from uvit_jax.tokens.embed import Embed, Heads
from uvit_jax.tokens.layout import Layout

Params = dict[str, Any]

_INTEGERS = ("label", "text")  # the modalities that are given by numbers


class Network(nnx.Module):
    """layout.embed → backbone → layout.read."""

    def __init__(self, config: ModelConfig, layout: Layout, *, rngs: nnx.Rngs):
        width = config.backbone.width
        dtype = jnp.dtype(config.dtype)
        zero = config.backbone.modulation == "adaln_zero"
        self.embed = Embed(layout, width, dtype=dtype, rngs=rngs)
        self.backbone = Backbone(config.backbone, layout, dtype=dtype, rngs=rngs)
        self.heads = Heads(layout, width, dtype=dtype, zero=zero, rngs=rngs)

    def __call__(self, inputs, times):
        return self.heads(self.backbone(*self.embed(inputs, times)))


class Model:
    """A network as two pure functions, `init(key) → params` and `apply(params, inputs, times)`.

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
        return {
            s.name: jax.ShapeDtypeStruct(
                (batch_size, *s.shape), jnp.int32 if s.modality in _INTEGERS else jnp.float32
            )
            for s in self.layout.inputs
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
    ) -> dict[str, jax.Array]:
        """Runs the network. Pure; jit, grad and vmap it as you like.

        Args:
          params: as `init` gives them.
          inputs: data by segment: noisy ones at their noise level, clean ones and conditions as
            they are. Images (B, H, W, C), features (B, N, F), text int32 (B, T), labels int32 (B,).
          times: network times by noisy segment, float (B,).

        Returns:
          A float32 prediction for each noisy segment, in the segment's shape.

        Raises:
          UvitError: if an input or a time is missing, unknown, or of another shape.
        """
        self._check_inputs(inputs, times)
        return nnx.merge(self._graph, params)(inputs, times)

    def _check_inputs(self, inputs: Mapping[str, jax.Array], times: Mapping[str, jax.Array]):
        expected = {s.name: s.shape for s in self.layout.inputs}
        batch = jnp.shape(inputs.get(self.layout.noisy[0].name, ()))[:1]
        for given, shapes, kind in (
            (inputs, expected, "inputs"),
            (times, dict.fromkeys(self.layout.time_keys, ()), "times"),
        ):
            for name in given:
                if name not in shapes:
                    raise UvitError(
                        f"{kind} has {name!r}, which is no segment of the model"
                        f"{nearest(name, shapes)}"
                    )
            for name, shape in shapes.items():
                if name not in given:
                    raise UvitError(f"{kind} lacks {name!r}, shape (B, *{shape})")
                if jnp.shape(given[name]) != (*batch, *shape):
                    raise UvitError(
                        f"{kind}[{name!r}] has shape {jnp.shape(given[name])}, "
                        f"expected {(*batch, *shape)}"
                    )


def build(config: Mapping[str, Any] | ModelConfig) -> Model:
    """Builds the model that `config.model` describes.

    Args:
      config: a mapping with `sequence`, `segments`, `backbone` and `dtype` (see `ModelConfig`).

    Raises:
      UvitError: on an unknown key or a model that cannot be, naming the key.
    """
    return Model(parse_model(config))
