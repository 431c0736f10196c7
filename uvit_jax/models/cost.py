"""The cost of a forward pass, in multiply-accumulates (MACs) per example.

    forward_cost(config.model).gmacs

The model is traced on abstract arrays, and the matrix products and convolutions of the program are
counted, so the count holds for any config, and nothing is computed. All other operations (norms,
activations, softmax, table lookups) count as zero, as is usual. A MAC is two FLOPs, and a training
step takes about three forward passes.

The published tables of U-ViT and DiT count attention's two products (queries by keys, attention
weights by values) in addition to those with parameters: U-ViT-S/2 on CIFAR-10 has 12.2 GMAC with
them, 11.3 without. Tools that count layers omit them; `Cost.parameters` is comparable to those.
Both papers write "GFLOPs" for GMACs.
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
      parameters: of products of activations with parameters, including convolutions.
      attention: of products of activations with activations.
    """

    parameters: int
    attention: int

    @property
    def total(self) -> int:
        """The sum, as in both published tables."""
        return self.parameters + self.attention

    @property
    def gmacs(self) -> float:
        """`total` in units of 10^9."""
        return self.total / 1e9


def forward_cost(config: ModelConfig | Model, *, draws: int = 1) -> Cost:
    """The cost of a model's forward pass on one example, with all conditions and without guidance.

    Guidance doubles it. Attention is counted in full, even if its implementation skips blocks, but
    for `Patches.window`, whose products are fewer.

    Args:
      config: of the model; or a model, which may lack segments of its config.
      draws: noises of the example that are denoised, with its references encoded once if there are
        several (`config.train.draws`).
    """
    # The products of `xla` are in the program, those of other implementations in custom kernels.
    layout = config.layout if isinstance(config, Model) else None
    config = config.config if isinstance(config, Model) else config
    backbone = dataclasses.replace(config.backbone, attention="xla", remat="none")
    model = Model(dataclasses.replace(config, backbone=backbone))
    model.layout = layout or model.layout
    inputs = model.abstract_inputs(1)
    times = {name: jax.ShapeDtypeStruct((1,), jnp.float32) for name in model.layout.time_keys}
    once = jax.make_jaxpr(model.apply)(model.abstract_params, inputs, times)
    if draws == 1:
        return count(once.jaxpr)
    shared = Cost(parameters=0, attention=0)
    if model.layout.references:
        cache = jax.make_jaxpr(model.cache, return_shape=True)(model.abstract_params, inputs)
        shared = count(cache[0].jaxpr)
        rest = {n: inputs[n] for n in model.layout.without_references.input_shapes}
        once = jax.make_jaxpr(lambda cache, *args: model.apply(*args, cache=cache))(
            cache[1], model.abstract_params, rest, times
        )
    each = count(once.jaxpr)
    return Cost(
        parameters=shared.parameters + draws * each.parameters,
        attention=shared.attention + draws * each.attention,
    )


def count(jaxpr: Jaxpr) -> Cost:
    """The multiply-accumulates of a traced program, with all iterations and recomputation.

    In a differentiated program only the total is meaningful.
    """
    parameters = attention = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            macs = out * math.prod(shapes[0][i] for i in contracted)
            # Products with parameters have no batch axes (examples, heads).
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
