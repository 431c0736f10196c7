"""Autoencoders with random weights, of which no two are alike."""

import jax
import numpy as np


def randomised(autoencoder, seed=0):
    """The autoencoder and random parameters; drawn by numpy, as there is nothing to compile."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 25
        # Biases and norms too: at 0 and 1 they would hide what is exchanged or left out.
        centre = 1 if path[-1].key == "scale" else 0
        return (centre + rng.normal(size=shape) / fan_in**0.5).astype(np.float32)

    tree = autoencoder.abstract_params
    return autoencoder, jax.tree_util.tree_map_with_path(lambda p, a: draw(p, a.shape), tree)
