"""Random weights for the encoders' networks, of a scale at which nothing dies or explodes."""

import jax
import numpy as np

from uvit_jax.parallel.sharding import path_string


def random_params(abstract, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        leaf = path.rpartition("/")[2]
        if leaf == "kernel":
            value = rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5
        elif leaf in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, size=shape)
        else:
            value = 0.1 * rng.normal(size=shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(lambda p, a: draw(path_string(p), a.shape), abstract)


def pictures(count, size, seed=0):
    """Smooth colours with some noise, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    waves = np.linspace(0, 3, size)[:, None, None] * rng.normal(size=(count, 1, 1, 3))
    waves = waves + np.linspace(0, 3, size)[:, None] * rng.normal(size=(count, 1, 1, 3))
    noisy = 127 + 100 * np.sin(waves) + 20 * rng.normal(size=(count, size, size, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)
