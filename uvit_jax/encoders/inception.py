"""The InceptionV3 of FID: the network of 2015-12-05 with 1008 logits, as PyTorch ports store it.

Szegedy et al. 2016 (arXiv:1512.00567) describe the blocks; Heusel et al. 2017 (arXiv:1706.08500)
defined FID with this file. It differs from later InceptionV3s in four ways: average pools exclude
padding, the last block has a max pool, there are 1008 classes, and no auxiliary head. There are two
kinds of preprocessing, whose FIDs differ in the third digit:

- `pytorch`: that of pytorch-fid (U-ViT's and most published FIDs): bilinear with pixels as
  areas, 0…255 to [-1, 1].
- `tensorflow`: that of the original graph (ADM's and DiT's FIDs): bilinear with pixels as points,
  (x - 128) / 128.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from uvit_jax.encoders import convolutional
from uvit_jax.encoders.convolutional import average_pool, max_pool
from uvit_jax.interop.mapping import Entry
from uvit_jax.models.model import Params

SIZE, FEATURES, CLASSES = 299, 2048, 1008
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of pt_inception-2015-12-05-6726825d.pth, the file that pytorch-fid and torch-fidelity publish."""


def apply(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
    """Runs the network.

    Args:
      params: as `abstract_params` describes them. x_BHWC: float32 (B, 299, 299, 3), see `prepare`.

    Returns:
      `pool` float32 (B, 2048), and `logits` (B, 1008) without the classifier's bias, as Salimans et
      al. 2016 (arXiv:1606.03498) compute the Inception Score.
    """
    pool_BD = _network(convolutional.runner(params), x_BHWC)
    return {"pool": pool_BD, "logits": convolutional.dense(params["fc"], pool_BD, bias=False)}


def prepare(
    pixels_BHWC: jax.Array, variant: Literal["pytorch", "tensorflow"] = "pytorch"
) -> jax.Array:
    """Pixels of any size in [0, 255], float32 → the network's input (B, 299, 299, 3)."""
    if variant == "tensorflow":
        return (convolutional.resize(pixels_BHWC, SIZE, "legacy") - 128) / 128
    return convolutional.resize(pixels_BHWC, SIZE, "half_pixel") / 127.5 - 1


@functools.cache
def abstract_params() -> Params:
    """The parameter shapes, 23.9M in all."""
    return convolutional.abstract(_network, SIZE, CLASSES)


def entries() -> list[Entry]:
    """The names in pytorch-fid's file."""

    def theirs(path: str) -> tuple[str, str]:
        name = path.replace("/", ".")
        return f"{name}.conv", f"{name}.bn"

    return convolutional.entries(abstract_params(), theirs, "fc")


def _network(conv, x):
    """(B, 299, 299, 3) → (B, 2048)."""

    def layer(path, x, features, kernel, **options):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        return jax.nn.relu(conv(path, x, features, kernel, **options))

    valid = dict(padding="VALID")
    x = layer("Conv2d_1a_3x3", x, 32, 3, stride=2, **valid)
    x = layer("Conv2d_2a_3x3", x, 32, 3, **valid)
    x = layer("Conv2d_2b_3x3", x, 64, 3)
    x = max_pool(x, stride=2, **valid)
    x = layer("Conv2d_3b_1x1", x, 80, 1)
    x = layer("Conv2d_4a_3x3", x, 192, 3, **valid)
    x = max_pool(x, stride=2, **valid)
    for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = _block_35(layer, f"Mixed_{name}", x, pooled)
    x = _shrink_35(layer, "Mixed_6a", x)
    for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        x = _block_17(layer, f"Mixed_{name}", x, inner)
    x = _shrink_17(layer, "Mixed_7a", x)
    x = _block_8(layer, "Mixed_7b", x, average_pool)
    x = _block_8(layer, "Mixed_7c", x, lambda x: max_pool(x, stride=1, padding="SAME"))
    return x.mean(axis=(1, 2))


def _chain(layer, block, x, *steps):
    """Layers in sequence; a step is (name, features, kernel[, options])."""
    for name, features, kernel, *options in steps:
        x = layer(f"{block}/{name}", x, features, kernel, **(options[0] if options else {}))
    return x


def _block_35(layer, name, x, pooled):
    branches = (
        _chain(layer, name, x, ("branch1x1", 64, 1)),
        _chain(layer, name, x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _chain(
            layer,
            name,
            x,
            ("branch3x3dbl_1", 64, 1),
            ("branch3x3dbl_2", 96, 3),
            ("branch3x3dbl_3", 96, 3),
        ),
        _chain(layer, name, average_pool(x), ("branch_pool", pooled, 1)),
    )
    return jnp.concatenate(branches, axis=-1)


_HALVE = dict(stride=2, padding="VALID")


def _shrink_35(layer, name, x):
    branches = (
        _chain(layer, name, x, ("branch3x3", 384, 3, _HALVE)),
        _chain(
            layer,
            name,
            x,
            ("branch3x3dbl_1", 64, 1),
            ("branch3x3dbl_2", 96, 3),
            ("branch3x3dbl_3", 96, 3, _HALVE),
        ),
        max_pool(x, **_HALVE),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_17(layer, name, x, inner):
    branches = (
        _chain(layer, name, x, ("branch1x1", 192, 1)),
        _chain(
            layer,
            name,
            x,
            ("branch7x7_1", inner, 1),
            ("branch7x7_2", inner, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        ),
        _chain(
            layer,
            name,
            x,
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, (7, 1)),
            ("branch7x7dbl_3", inner, (1, 7)),
            ("branch7x7dbl_4", inner, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ),
        _chain(layer, name, average_pool(x), ("branch_pool", 192, 1)),
    )
    return jnp.concatenate(branches, axis=-1)


def _shrink_17(layer, name, x):
    branches = (
        _chain(layer, name, x, ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, _HALVE)),
        _chain(
            layer,
            name,
            x,
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, _HALVE),
        ),
        max_pool(x, **_HALVE),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_8(layer, name, x, pool):
    flat = _chain(layer, name, x, ("branch3x3_1", 384, 1))
    deep = _chain(layer, name, x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    branches = (
        _chain(layer, name, x, ("branch1x1", 320, 1)),
        _chain(layer, name, flat, ("branch3x3_2a", 384, (1, 3))),
        _chain(layer, name, flat, ("branch3x3_2b", 384, (3, 1))),
        _chain(layer, name, deep, ("branch3x3dbl_3a", 384, (1, 3))),
        _chain(layer, name, deep, ("branch3x3dbl_3b", 384, (3, 1))),
        _chain(layer, name, pool(x), ("branch_pool", 192, 1)),
    )
    return jnp.concatenate(branches, axis=-1)
