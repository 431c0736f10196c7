"""Flat products are plain ones, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.models.linear import flat_product, product

B, N, H = 2, 5, 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("outputs", [(4,), (2, 3, 7)])  # narrower than the inputs, and wider
def test_products_and_gradients_are_those_of_plain_ones(outputs, dtype):
    rng = np.random.default_rng(0)
    shapes = (B, N, H, 4), (H, 4, *outputs), (B, N, *outputs)
    x, kernel, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

    def run(multiply):
        def loss(x, kernel):
            y = multiply(x, kernel, 2)
            return (w * y).sum(dtype=jnp.float32), y

        gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
        return y, *gradients

    for found, expected in zip(run(flat_product), run(product), strict=True):
        assert found.dtype == expected.dtype == dtype
        tolerance = 1e-5 if dtype == "float32" else 0.05
        found, expected = (np.asarray(a, np.float32) for a in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
