"""What the backward pass keeps decides its memory, and nothing else."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.models.model_config import Remat
from uvit_jax.models.presets.uvit import preset


@pytest.fixture(scope="module")
def gradients():
    """By policy: temporary bytes of a compiled gradient, and the gradient."""
    found = {}
    for remat in get_args(Remat):
        config = preset("S", (16, 16, 3), patch_size=2, width=64, depth=6, num_heads=4, remat=remat)
        model = uvit_jax.build(config)
        x = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))

        def loss(params, x, model=model):
            out = model.apply(params, {"image": x}, {"image": jnp.linspace(0, 999, 8)})["image"]
            return ((out - x) ** 2).mean()

        params = model.init(jax.random.key(0))
        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        found[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled(params, x)
    return found


def test_policies_are_in_the_order_of_their_memory(gradients):
    size = {remat: found[0] for remat, found in gradients.items()}
    assert size["none"] > 1.5 * size["dots"]
    assert size["dots"] > 1.1 * size["attention"] > 1.1 * size["full"]
    assert list(size) == sorted(size, key=size.get, reverse=True)


def test_gradients_are_the_same(gradients):
    exact = gradients["none"][1]
    for _, found in gradients.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max())),
            exact,
            found,
        )
