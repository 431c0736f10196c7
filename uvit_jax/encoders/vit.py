"""DINO's and DINOv2's vision transformers as pure functions.

    tower, params = load_vit(path)                   # of vit_weights
    out = tower.apply(params, images)              # (B, H, W, 3), sides multiples of the patch
    out["pooled"], out["hidden"]                     # (B, D), (B, N, D)

Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021); Oquab et
al., "DINOv2" (2023: layer scale); Darcet et al., "Vision Transformers Need Registers"
(2023). The blocks are those of CLIP's towers.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.encoders import clip
from uvit_jax.encoders.clip import TowerConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.pure_network import Params, PureNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TowerConfig):
    """A vision transformer with a class token.

    Attributes:
      image_size: side of the training images; positions are interpolated for other sizes.
      patch_size: side of a patch, in pixels. registers: number of register tokens.
      position_offset: added to the side, in patches, when computing the step of interpolation: 0.1
        in the authors' code, 0 in transformers.
      position_antialias: whether interpolation is antialiased (with registers).
    """

    image_size: int
    patch_size: int
    registers: int = 0
    position_offset: float = 0.0
    position_antialias: bool = False
    activation: Literal["quick_gelu", "gelu"] = "gelu"
    eps: float = 1e-6


class ViTNetwork(clip.Tower):
    """(B, H, W, 3) → hidden (B, 1 + registers + HW/p², D) and pooled (B, D), after the norm."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        p, D = config.patch_size, config.width
        self.patches = clip.linear(config, p * p * 3, D, rngs)
        self.cls = nnx.Param(jnp.zeros((D,)))
        self.positions = nnx.Param(jnp.zeros((1 + (config.image_size // p) ** 2, D)))
        if config.registers:
            self.registers = nnx.Param(jnp.zeros((config.registers, D)))

    def __call__(self, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        config, (B, H, W, C) = self.config, x_BHWC.shape
        p, dtype = config.patch_size, x_BHWC.dtype
        x_BNP = x_BHWC.reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3).reshape(B, -1, p * p * C)
        positions_ND = self._positions(H // p, W // p)
        x_BND = self.patches(x_BNP) + positions_ND[1:].astype(dtype)
        first = [(self.cls[...] + positions_ND[0])[None]]
        if config.registers:
            first.append(self.registers[...])
        first_BMD = jnp.concatenate(first).astype(dtype)
        first_BMD = jnp.broadcast_to(first_BMD, (B, *first_BMD.shape))
        hidden_BND = self.run(jnp.concatenate([first_BMD, x_BND], axis=1), causal=False)
        hidden_BND = self.norm(hidden_BND)
        return self.outputs(hidden_BND, hidden_BND[:, 0])

    def _positions(self, height: int, width: int) -> jax.Array:
        """The class token's position and those of a grid, (1 + height·width, D)."""
        config = self.config
        side = config.image_size // config.patch_size
        positions = self.positions[...]
        if (height, width) == (side, side):
            return positions
        rows, columns = (
            _bicubic(side, n, config.position_offset, config.position_antialias)
            for n in (height, width)
        )
        grid = positions[1:].reshape(side, side, -1)
        precision = jax.lax.Precision.HIGHEST
        grid = jnp.einsum("hr,wc,rcd->hwd", rows, columns, grid, precision=precision)
        return jnp.concatenate([positions[:1], grid.reshape(-1, grid.shape[-1])])


class ViT(PureNetwork):
    """The network as pure functions: `init`, `apply`.

    Attributes:
      config: its `ViTConfig`.
      abstract_params: the shapes and dtypes of the parameters.
    """

    def __init__(self, config: ViTConfig):
        super().__init__(config, functools.partial(ViTNetwork, config))

    def __repr__(self) -> str:
        return f"ViT({self.config})"

    def apply(self, params: Params, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Runs the network. Pure.

        Args:
          params: as `init` returns them.
          x_BHWC: normalised images, float (B, H, W, 3), cropped at the right and bottom to
            multiples of the patch, as by the patch convolution.

        Returns:
          float32: `hidden` (B, 1 + registers + N, D) and `pooled` (B, D), of the class token.

        Raises:
          UvitError: on another shape.
        """
        shape, p = np.shape(x_BHWC), self.config.patch_size
        if len(shape) != 4 or shape[-1] != 3 or min(shape[1:3]) < p:
            raise UvitError(
                f"a vision transformer takes images (B, H, W, 3) of at least {p} pixels a side, "
                f"got {shape}"
            )
        height, width = (side // p * p for side in shape[1:3])
        x_BHWC = jnp.asarray(x_BHWC, jnp.dtype(self.config.dtype))[:, :height, :width]
        return nnx.merge(self._graph, params)(x_BHWC)


def _bicubic(before: int, after: int, offset: float, antialias: bool) -> np.ndarray:
    """The matrix (after, before) of PyTorch's bicubic interpolation along one axis.

    Its cubic has a = -3/4, or -1/2 where it is antialiased (Keys 1981); pixels are areas. Beyond
    the border the last value repeats, or, antialiased, is left out.
    """
    scale = before / (after + offset)
    centres = (np.arange(after) + 0.5) * scale - 0.5
    widening = max(scale, 1.0) if antialias else 1.0
    reach = int(np.ceil(2 * widening)) + 1
    weights = np.zeros((after, before))
    for step in range(-reach, reach + 1):
        taps = np.floor(centres).astype(int) + step
        value = _cubic((taps - centres) / widening, -0.5 if antialias else -0.75)
        inside = (taps >= 0) & (taps < before)
        if antialias:
            value = np.where(inside, value, 0)
        np.add.at(weights, (np.arange(after), np.clip(taps, 0, before - 1)), value)
    if antialias:
        weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
