"""Random parameters without compiling an initializer, and exact comparison of parameters."""

import jax
import numpy as np


def random_params(model, seed=0):
    """Normal random numbers in the shapes of a model's parameters, float32 numpy arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: 0.2 * rng.normal(size=a.shape).astype(np.float32), model.abstract_params
    )


def equal(a, b):
    """Whether two trees are equal, bit for bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(np.array_equal, a, b)
    )
