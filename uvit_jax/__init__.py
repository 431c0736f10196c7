"""Diffusion transformers whose every input is a token, in JAX.

    model = uvit_jax.build(config.model)           # a Model, from a config
    params = model.init(jax.random.key(0))         # a pytree of float32 arrays
    outputs = model.apply(params, inputs, times)   # pure

    model, params = uvit_jax.load(path)            # a workdir, safetensors, an official .pth

Importing this package imports nothing heavy: a config file may use `uvit_jax.models.uvit` for its
presets without paying for JAX.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Model", "UvitError", "build", "load"]

if TYPE_CHECKING:
    from uvit_jax.api import Model, UvitError, build, load


def __getattr__(name: str):
    if name in __all__:
        from uvit_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'uvit_jax' has no attribute {name!r}")
