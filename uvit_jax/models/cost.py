"""What a forward pass costs, in multiply-accumulates (MACs) an example.

    forward_cost(config.model).gmacs

The count is taken from the program itself: the model is traced on abstract arrays, and its matrix
products and convolutions are added up. So it holds for whatever a config can say, and nothing is
computed. Everything else (norms, activations, softmax, tables looked up) counts nothing, as is
usual; a multiply and an add are two FLOPs, and a training step takes about three forward passes.

Both published tables, U-ViT's and DiT's, count attention's own two products (queries by keys,
attention weights by values) as well as those with parameters: U-ViT-S/2 on CIFAR-10 has 12.2 GMAC
with them, 11.3 without. Tools that know only layers leave them out; `parameters` is their figure.
Both papers write "GFLOPs" for what are GMACs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from uvit_jax.models.model import Model
from uvit_jax.models.model_config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates of one forward pass on one example.

    Attributes:
      parameters: in products of activations with parameters, convolutions among them.
      attention: in products of activations with activations.
    """

    parameters: int
    attention: int

    @property
    def total(self) -> int:
        """All of them: the convention of both published tables."""
        return self.parameters + self.attention

    @property
    def gmacs(self) -> float:
        """`total` in units of 10^9."""
        return self.total / 1e9


def forward_cost(config: ModelConfig) -> Cost:
    """The cost of a model's forward pass on one example, all conditions given and no guidance.

    Guidance doubles it. Attention is counted in full, whatever its implementation may skip.
    """
    # One implementation, whose products stand in the program and not in a kernel of its own.
    backbone = dataclasses.replace(config.backbone, attention="xla", remat="none")
    model = Model(dataclasses.replace(config, backbone=backbone))
    inputs = model.abstract_inputs(1)
    times = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in model.layout.time_keys}
    traced = jax.make_jaxpr(model.apply)(model.abstract_params, inputs, times)
    return count(traced.jaxpr)


def count(jaxpr: Jaxpr) -> Cost:
    """The multiply-accumulates of a traced program, loops counted, recomputation included.

    Of a program that was differentiated, only the total means something.
    """
    parameters = attention = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            macs = out * math.prod(shapes[0][i] for i in contracted)
            # A matrix of parameters has no axis in common with the examples and the heads.
            if batched:
                attention += macs
            else:
                parameters += macs
        elif name == "conv_general_dilated":
            out_channels = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
            parameters += out * math.prod(shapes[1]) // out_channels
        else:
            times = equation.params.get("length", 1) if name == "scan" else 1
            for inner in _inner(equation.params):
                cost = count(inner)
                parameters += times * cost.parameters
                attention += times * cost.attention
    return Cost(parameters=parameters, attention=attention)


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    """The programs inside an equation: of a scan, a jit, a custom derivative."""
    leaves = jax.tree.leaves(params, is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr))
    inner = [leaf for leaf in leaves if isinstance(leaf, Jaxpr | ClosedJaxpr)]
    return [leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf for leaf in inner]
