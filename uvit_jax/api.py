"""The public face, gathered: what `import uvit_jax` offers."""

from uvit_jax.errors import UvitError
from uvit_jax.interop.load import load
from uvit_jax.models.model import Model, build

__all__ = ["Model", "UvitError", "build", "load"]
