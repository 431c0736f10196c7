"""What embeddings and heads start from."""

import jax
import jax.numpy as jnp
from flax import nnx

# PyTorch's trunc_normal_(std=.02) cuts at the absolute values ±2, a hundred standard deviations
# away: what the published models start from is the plain normal distribution.
normal = nnx.initializers.normal(0.02)


def torch_uniform(fan_in: int):
    """PyTorch's default for convolutions, weights and biases alike: U(-1/√fan_in, 1/√fan_in)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
