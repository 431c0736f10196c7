"""Shared code of the convolutional encoders: frozen batch normalisation, resizing, tensor names.

A network is a function `network(conv, x)` that calls `conv(path, x, features, kernel, ...)` for
each of its convolutions. With a `conv` that records shapes it yields the parameter tree; with one
that computes, the features. So there is no second list of layers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.interop.mapping import CONV, LINEAR, Entry
from uvit_jax.models.model import Params

ConvNetwork = Callable[[Callable[..., jax.Array], jax.Array], jax.Array]

EPS = 1e-3  # of the batch normalisation, in Inception and in EfficientNet alike
# Features must match other implementations: no bfloat16 on TPUs, no TF32 on GPUs.
PRECISION = jax.lax.Precision.HIGHEST


def runner(params: Params) -> Callable[..., jax.Array]:
    """The `conv` that computes: convolution, then normalisation with the stored moments.

    Its arguments are the path of the parameters, x (B, H, W, C), the number of features, the
    kernel (height, width), and `stride`, `padding` ("SAME" is TensorFlow's), `depthwise`.
    """

    def conv(path, x_BHWC, features, kernel, *, stride=1, padding="SAME", depthwise=False):
        p = params
        for key in path.split("/"):
            p = p[key]
        scale = p["scale"] * jax.lax.rsqrt(p["var"] + EPS)
        y = _convolve(x_BHWC, p["kernel"] * scale, stride, padding, depthwise)
        return y + (p["bias"] - p["mean"] * scale)

    return conv


def abstract(network: ConvNetwork, size: int, classes: int) -> Params:
    """The parameter shapes of a network, with those of its classifier (`fc`).

    Args:
      network: images (B, size, size, 3) → pooled features (B, D).
      size: side of the input. classes: of the classifier.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path, x, features, kernel, *, stride=1, padding="SAME", depthwise=False):
        shape = (*kernel, 1 if depthwise else x.shape[-1], features)
        shapes[f"{path}/kernel"] = shape
        shapes.update({f"{path}/{name}": (features,) for name in ("scale", "bias", "mean", "var")})
        return _convolve(x, jnp.zeros(shape), stride, padding, depthwise)

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    pool = jax.eval_shape(lambda x: network(note, x), image)
    shapes |= {"fc/kernel": (pool.shape[-1], classes), "fc/bias": (classes,)}
    return _nested({p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()})


def entries(
    shapes: Params, theirs: Callable[[str], tuple[str, str]], classifier: str
) -> list[Entry]:
    """The PyTorch names of a network's parameters.

    Args:
      shapes: as `abstract` gives them.
      theirs: path of a convolution → PyTorch names of it and of its batch normalisation.
      classifier: the PyTorch name of `fc`.
    """
    names = {
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    }
    mapped = [
        Entry(f"{classifier}.weight", "fc/kernel", LINEAR),
        Entry(f"{classifier}.bias", "fc/bias"),
    ]
    for path in _flat(shapes):
        layer, _, leaf = path.rpartition("/")
        if layer == "fc":
            continue
        conv, norm = theirs(layer)
        if leaf == "kernel":
            mapped.append(Entry(f"{conv}.weight", path, CONV))
        else:
            mapped.append(Entry(f"{norm}.{names[leaf]}", path))
    return mapped


def dense(params: Mapping[str, jax.Array], x_BD: jax.Array, *, bias: bool) -> jax.Array:
    """A linear layer, (B, D) → (B, K)."""
    y = jnp.dot(x_BD, params["kernel"], precision=PRECISION)
    return y + params["bias"] if bias else y


def resize(x_BHWC: jax.Array, size: int, method: str) -> jax.Array:
    """Bilinear resizing to (B, size, size, C).

    Args:
      method: where samples lie, and over how much they average.
        "half_pixel": pixels are areas, and only the two nearest count even where the image
          shrinks, as in PyTorch's `interpolate(align_corners=False)`.
        "legacy": pixels are points from the corner on, as in TensorFlow 1.
        "antialias": as half_pixel, with the triangle widened where the image shrinks.
    """
    for axis, name in ((1, "h"), (2, "w")):
        length = x_BHWC.shape[axis]
        if length != size:
            weights = _bilinear(length, size, method)
            out = "bhwc".replace(name, "o")
            x_BHWC = jnp.einsum(f"o{name},bhwc->{out}", weights, x_BHWC, precision=PRECISION)
    return x_BHWC


def max_pool(x_BHWC: jax.Array, *, stride: int, padding: str) -> jax.Array:
    """Max pooling over 3×3."""
    return jax.lax.reduce_window(
        x_BHWC, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
    )


def average_pool(x_BHWC: jax.Array) -> jax.Array:
    """Average pooling over 3×3; the mean at the border excludes padding."""
    window = dict(window_dimensions=(1, 3, 3, 1), window_strides=(1, 1, 1, 1), padding="SAME")
    total = jax.lax.reduce_window(x_BHWC, 0.0, jax.lax.add, **window)
    ones = jnp.ones((1, *x_BHWC.shape[1:3], 1), x_BHWC.dtype)
    return total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, **window)


def _convolve(x_BHWC, kernel, stride, padding, depthwise) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_BHWC.shape[-1] if depthwise else 1,
        precision=PRECISION,
    )


def _bilinear(before: int, after: int, method: str) -> np.ndarray:
    """The matrix (after, before) of a bilinear resize along one axis, float32.

    Positions are rounded to float32 where the original programs round them.
    """
    scale = np.float32(before / after)
    steps = np.arange(after, dtype=np.float32)
    if method == "antialias":
        centres = (steps + np.float32(0.5)) * scale - np.float32(0.5)
        offsets = np.abs(centres[:, None] - np.arange(before, dtype=np.float32))
        weights = np.maximum(0, 1 - offsets / max(scale, np.float32(1)))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    if method == "half_pixel":
        positions = np.maximum(scale * (steps + np.float32(0.5)) - np.float32(0.5), 0)
    else:
        positions = steps * scale
    low = np.minimum(positions.astype(np.int64), before - 1)
    high = np.minimum(low + 1, before - 1)
    share = (positions - low).astype(np.float32)
    weights = np.zeros((after, before), np.float32)
    np.add.at(weights, (np.arange(after), low), 1 - share)
    np.add.at(weights, (np.arange(after), high), share)
    return weights


def _nested(flat: Mapping[str, Any]) -> Params:
    tree: Params = {}
    for path, leaf in flat.items():
        *groups, name = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = leaf
    return tree


def _flat(tree: Params, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat
