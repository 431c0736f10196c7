"""A Flax module as pure functions of its parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

Params = dict[str, Any]
"""Nested dicts of arrays, by module and parameter name."""


class PureNetwork:
    """Base of networks that are built and split once, and then are pure functions of parameters.

    Methods of subclasses run `nnx.merge(self._graph, params)`.

    Args:
      config: of the network, for `repr`.
      make: builds the module, given `rngs`.

    Attributes:
      config: as given.
      abstract_params: the parameters' shapes and dtypes, without arrays.
    """

    def __init__(self, config: Any, make: Callable[..., nnx.Module]):
        self.config, self._make = config, make
        abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        self._graph, state = nnx.split(abstract)
        self.abstract_params: Params = nnx.to_pure_dict(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config}, {self.num_params / 1e6:.2f}M parameters)"

    @property
    def num_params(self) -> int:
        """The number of parameters."""
        return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(self.abstract_params))

    @functools.partial(jax.jit, static_argnums=0)
    def _init(self, key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(self._make(rngs=nnx.Rngs(key)))[1])

    def init(self, key: jax.Array) -> Params:
        """Initial parameters, a nested dict of float32 arrays. `key`: a typed PRNG key."""
        return self._init(key)
