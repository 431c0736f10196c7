"""Shift-tolerant LPIPS: a perceptual distance whose weights come from a package registry.

    distance = stlpips()
    distance(a, b)              # (B,), 0 for equal pictures

Ghildyal & Liu, "Shift-tolerant Perceptual Similarity Metric" (ECCV 2022), with AlexNet's trunk: an
LPIPS (Zhang et al. 2018) whose strides are blurred. Weights: the package `stlpips-pytorch`, in the
extra `eval`; nothing of it is executed. It is not LPIPS, whose figures differ, and is called after
itself.
"""

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.encoders import weights
from uvit_jax.encoders.convolutional import PRECISION
from uvit_jax.errors import UvitError
from uvit_jax.interop import mapping
from uvit_jax.interop.files import read_tensors
from uvit_jax.interop.mapping import CONV, Entry, Transform
from uvit_jax.models.model import Params

PACKAGE = "stlpips_pytorch"
PACKAGE_FILE = "weights/vST0.0/alex_shift_tolerant.pth"
LEAST = 24
"""The least side of a picture that the network's strides leave something of."""

# Of a convolution its name in the file, features before and after, kernel, padding. The first is
# blurred with stride 2 before its activation.
_CONVS = (
    ("net.slice1.0", 3, 64, 11, 2),
    ("net.slice2.5", 64, 192, 5, 2),
    ("net.slice3.9", 192, 384, 3, 1),
    ("net.slice4.11", 384, 256, 3, 1),
    ("net.slice5.13", 256, 256, 3, 1),
)
_POOLED = (1, 2)  # before which convolutions: a maximum of 3 x 3, then a blur of stride 2
_BLUR = np.outer((1, 2, 1), (1, 2, 1)).astype(np.float32) / 16


class Stlpips:
    """A perceptual distance, jitted. Made by `stlpips`.

    Attributes:
      name: for figures. weights_sha256: of the file of its weights. version: both in one word.
    """

    name = "stlpips_alex"

    def __init__(self, params: Params, sha256: str):
        self.params, self.weights_sha256 = jax.device_put(params), sha256
        self.version = f"{self.name}-{sha256[:12]}"
        self._features = jax.jit(features)
        self._between = jax.jit(between)

    def __call__(self, a_BHWC: np.ndarray, b_BHWC: np.ndarray) -> np.ndarray:
        """Distances of pictures, row by row, float32 (B,).

        Args:
          a_BHWC, b_BHWC: (B, H, W, 3), floats in [-1, 1], of one size of at least 24 a side. It is
            not resized: distances depend on the size.

        Raises:
          UvitError: of another shape.
        """
        a, b = _pictures(a_BHWC), _pictures(b_BHWC)
        if a.shape != b.shape:
            raise UvitError(f"distances are of pictures of one shape, got {a.shape}, {b.shape}")
        found = [self._features(self.params, x) for x in (a, b)]
        return np.asarray(self._between(self.params, *found))

    def pairwise(self, x_GHWC: np.ndarray) -> np.ndarray:
        """Distances of all pairs, float32 (G, G), as `consistency.diversity` takes them."""
        maps = self._features(self.params, _pictures(x_GHWC))
        rows = [
            self._between(self.params, [jnp.broadcast_to(m[i], m.shape) for m in maps], maps)
            for i in range(len(x_GHWC))
        ]
        return np.stack(rows)


def stlpips(path: Path | None = None) -> Stlpips:
    """Loads the distance, from the installed package or from a file of its weights.

    Raises:
      UvitError: if neither is there, or the file has other tensors.
    """
    path = path or packaged_weights()
    tensors = read_tensors(path)
    # Its constants, which are written out below.
    fixed = {k for k in tensors if k.startswith("scaling_layer.") or k.endswith(".filt")}
    tensors = {k: v for k, v in tensors.items() if k not in fixed}
    return Stlpips(
        mapping.imported(entries(), tensors, abstract_params(), str(path)), weights.sha256(path)
    )


def packaged_weights() -> Path:
    """The weights in the installed package; UvitError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UvitError(
            "the distance stlpips needs its weights: pip install 'uvit-jax[eval]', or name a file"
        )
    return Path(spec.origin).parent / PACKAGE_FILE


def abstract_params() -> Params:
    """The parameters' shapes: 2.5M numbers."""
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return {
        f"conv{i}": {
            "kernel": shape((size, size, before, after)),
            "bias": shape((after,)),
            "lin": shape((after,)),
        }
        for i, (_, before, after, size, _) in enumerate(_CONVS)
    }


def entries() -> Iterator[Entry]:
    """The names in the package's file."""
    flat = Transform(np.ravel, lambda a: a.reshape(1, -1, 1, 1))
    for i, (name, *_) in enumerate(_CONVS):
        yield Entry(f"{name}.weight", f"conv{i}/kernel", CONV)
        yield Entry(f"{name}.bias", f"conv{i}/bias")
        yield Entry(f"lin{i}.model.1.weight", f"conv{i}/lin", flat)


def features(params: Params, x_BHWC: jax.Array) -> list[jax.Array]:
    """Five maps of features, each of unit norm along its channels. `x_BHWC`: in [-1, 1]."""
    shift = jnp.array([-0.030, -0.088, -0.188])
    scale = jnp.array([0.458, 0.448, 0.450])
    x, maps = (x_BHWC - shift) / scale, []
    for i, (_, _, _, _, padding) in enumerate(_CONVS):
        p = params[f"conv{i}"]
        if i in _POOLED:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
            x = _blurred(x)
        x = _convolve(x, p["kernel"], padding) + p["bias"]
        x = jax.nn.relu(_blurred(x) if i == 0 else x)
        norm = jnp.sqrt((x * x).sum(axis=-1, keepdims=True))
        maps.append(x / (norm + 1e-10))
    return maps


def between(params: Params, a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Distances (B,) of pictures from their maps: weighted squares, averaged over places."""
    terms = [
        jnp.dot((x - y) ** 2, params[f"conv{i}"]["lin"], precision=PRECISION).mean(axis=(1, 2))
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    return sum(terms)


def _blurred(x_BHWC: jax.Array) -> jax.Array:
    """A blur of stride 2 after reflecting two pixels at each border."""
    x = jnp.pad(x_BHWC, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    C = x.shape[-1]
    kernel = jnp.tile(_BLUR[:, :, None, None], (1, 1, 1, C))
    return _convolve(x, kernel, 0, stride=2, groups=C)


def _convolve(x, kernel, padding, *, stride=1, groups=1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=PRECISION,
    )


def _pictures(x) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < LEAST or not len(x):
        raise UvitError(
            f"stlpips takes pictures (B, H, W, 3) of at least {LEAST} a side, got {x.shape}"
        )
    return x
