"""Diffusion transformers whose every input is a token, in JAX.

    model = uvit_jax.build(config.model)           # a Model, from a config
    params = model.init(jax.random.key(0))         # a pytree of float32 arrays
    outputs = model.apply(params, inputs, times)   # pure

    model, params = uvit_jax.load(path)            # a workdir, safetensors, an official .pth,
                                                   # or a shipped network: "totems"

Importing this package imports nothing heavy: a config file may use `uvit_jax.models.presets`
without paying for JAX.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Model", "UvitError", "build", "load"]

if TYPE_CHECKING:
    from uvit_jax.errors import UvitError
    from uvit_jax.models.model import Model, build
    from uvit_jax.training.load import load

_HOMES = {
    "Model": "uvit_jax.models.model",
    "UvitError": "uvit_jax.errors",
    "build": "uvit_jax.models.model",
    "load": "uvit_jax.training.load",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'uvit_jax' has no attribute {name!r}")
