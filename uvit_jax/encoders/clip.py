"""CLIP's text and vision towers as pure functions.

    tower, params = load_text(path)                # of clip_weights; also load_vision
    out = tower.apply(params, ids)                 # int32 (B, 77)
    out["hidden"], out["pooled"], out["embeds"]    # (B, 77, D), (B, D), (B, E)

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(2021). U-ViT and Stable Diffusion use `hidden` of the text tower (ViT-L/14: 77×768),
UniDiffuser also `embeds` of images (ViT-B/32: 512).
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.config import Config
from uvit_jax.errors import UvitError
from uvit_jax.models.pure_network import Params, PureNetwork

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x),
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": functools.partial(nnx.gelu, approximate=True),
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of CLIP's training images, for values in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig(Config):
    """The transformer of a tower.

    Attributes:
      width, depth, num_heads, mlp_width: of its blocks. projection: E of `embeds`, 0 for none.
      activation: `quick_gelu` (OpenAI's), `gelu` (OpenCLIP's larger ones) or `gelu_tanh` (GPT-2).
      eps: of the LayerNorms. dtype: of the computation; statistics and outputs are float32.
      layer_scale: whether residual branches have learned factors (DINOv2).
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    projection: int = 0
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    eps: float = 1e-5
    dtype: Literal["float32", "bfloat16"] = "float32"
    layer_scale: bool = False

    def __post_init__(self):
        super().__post_init__()
        if min(self.width, self.depth, self.num_heads, self.mlp_width) < 1 or self.projection < 0:
            raise UvitError("width, depth, num_heads and mlp_width must be at least 1")
        if self.width % self.num_heads:
            raise UvitError(f"num_heads={self.num_heads} does not divide the width {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """A text tower.

    Attributes:
      vocab_size: of the tokenizer. length: T, 77 as published.
      eos: the id of the end token, where the text is pooled; None takes the largest id, as in the
        oldest checkpoints.
    """

    vocab_size: int
    length: int
    eos: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """A vision tower. image_size: side of the images. patch_size: side of a patch, in pixels."""

    image_size: int
    patch_size: int


def linear(config: TowerConfig, inputs: int, outputs: int, rngs: nnx.Rngs, bias=True):
    """A tower's linear layer, at full precision in float32."""
    # Features must match other implementations: no bfloat16 on TPUs unless requested.
    precision = jax.lax.Precision.HIGHEST if config.dtype == "float32" else None
    dtype = jnp.dtype(config.dtype)
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, precision=precision, rngs=rngs)


def norm(config: TowerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A tower's LayerNorm."""
    dtype = jnp.dtype(config.dtype)
    options = dict(epsilon=config.eps, dtype=dtype, use_fast_variance=False, rngs=rngs)
    return nnx.LayerNorm(config.width, **options)


KeysValues = tuple[jax.Array, jax.Array]


class TowerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, N, D) → (B, N, D).

    With `past`, keys and values (B, M, H, K) of all M positions, x has the N positions from `start`
    on: their keys and values are written, and each attends to the positions up to its own.
    """

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        D = config.width
        self.config = config
        self.norm1, self.norm2 = norm(config, rngs), norm(config, rngs)
        self.q, self.k, self.v, self.out = (linear(config, D, D, rngs) for _ in range(4))
        self.fc1 = linear(config, D, config.mlp_width, rngs)
        self.fc2 = linear(config, config.mlp_width, D, rngs)
        if config.layer_scale:
            self.scale1, self.scale2 = nnx.Param(jnp.ones((D,))), nnx.Param(jnp.ones((D,)))

    def __call__(
        self,
        x_BND: jax.Array,
        *,
        causal: bool,
        past: KeysValues | None = None,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeysValues | None]:
        """The tokens after the block, and the keys and values of all positions, if there were."""
        B, N, D = x_BND.shape
        h_BND = self.norm1(x_BND)
        q, k, v = (
            f(h_BND).reshape(B, N, self.config.num_heads, -1) for f in (self.q, self.k, self.v)
        )
        if past is not None:
            k, v = past = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
                for old, new in zip(past, (k, v), strict=True)
            )
        precision = self.q.precision
        logits_BHNM = jnp.einsum("bnhk,bmhk->bhnm", q, k, precision=precision).astype(jnp.float32)
        logits_BHNM *= q.shape[-1] ** -0.5
        if causal:
            seen_NM = np.arange(k.shape[1]) <= start + np.arange(N)[:, None]
            logits_BHNM = jnp.where(seen_NM, logits_BHNM, -jnp.inf)
        weights_BHNM = nnx.softmax(logits_BHNM).astype(q.dtype)
        h_BND = jnp.einsum("bhnm,bmhk->bnhk", weights_BHNM, v, precision=precision)
        x_BND += self._scaled(self.out(h_BND.reshape(B, N, D)), 1)
        activate = ACTIVATIONS[self.config.activation]
        return x_BND + self._scaled(self.fc2(activate(self.fc1(self.norm2(x_BND)))), 2), past

    def _scaled(self, h_BND: jax.Array, branch: int) -> jax.Array:
        if not self.config.layer_scale:
            return h_BND
        return h_BND * getattr(self, f"scale{branch}")[...].astype(h_BND.dtype)


class Tower(nnx.Module):
    """The transformer that both towers share: blocks with a leading layer axis, run in a scan."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        self.config = config
        make = nnx.vmap(lambda r: TowerBlock(config, rngs=r))
        self.blocks = make(rngs.split(config.depth))
        self.norm = norm(config, rngs)
        size = config.projection
        self.project = linear(config, config.width, size, rngs, bias=False) if size else None

    def run(self, x_BND: jax.Array, *, causal: bool) -> jax.Array:
        return self.run_from(x_BND, None, 0, causal=causal)[0]

    def run_from(
        self,
        x_BND: jax.Array,
        past_L: KeysValues | None,
        start: jax.Array | int,
        *,
        causal: bool = True,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Tokens from position `start` on, after the keys and values (L, B, M, H, K) of all blocks
        (see `TowerBlock`); also returns those."""
        graph, params_L = nnx.split(self.blocks)

        def body(x_BND, layer):
            params, past = layer
            return nnx.merge(graph, params)(x_BND, causal=causal, past=past, start=start)

        return jax.lax.scan(body, x_BND, (params_L, past_L))

    def outputs(self, hidden_BND: jax.Array, pooled_BD: jax.Array) -> dict[str, jax.Array]:
        outputs_by_name = {"hidden": hidden_BND, "pooled": pooled_BD}
        if self.project is not None:
            outputs_by_name["embeds"] = self.project(pooled_BD)
        return {name: value.astype(jnp.float32) for name, value in outputs_by_name.items()}


class TextNetwork(Tower):
    """int32 (B, T) → hidden (B, T, D) after the last norm, pooled (B, D), embeds (B, E)."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        dtype = jnp.dtype(config.dtype)
        self.tokens = nnx.Embed(config.vocab_size, config.width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((config.length, config.width)))

    def __call__(self, ids_BT: jax.Array) -> dict[str, jax.Array]:
        x_BTD = self.tokens(ids_BT)
        x_BTD += self.positions[: ids_BT.shape[1]].astype(x_BTD.dtype)
        hidden_BTD = self.norm(self.run(x_BTD, causal=True))
        # The first maximum: texts are padded with the end token.
        eos = self.config.eos
        end_B = jnp.argmax(ids_BT if eos is None else ids_BT == eos, axis=1)
        return self.outputs(hidden_BTD, hidden_BTD[jnp.arange(len(ids_BT)), end_B])


class VisionNetwork(Tower):
    """(B, H, W, 3) → hidden (B, 1 + HW/p², D), pooled (B, D) after a norm, embeds (B, E)."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        p = config.patch_size
        self.patches = linear(config, p * p * 3, config.width, rngs, bias=False)
        self.cls = nnx.Param(jnp.zeros((config.width,)))
        count = 1 + (config.image_size // p) ** 2
        self.positions = nnx.Param(jnp.zeros((count, config.width)))
        self.norm_in = norm(config, rngs)

    def __call__(self, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        p, (B, H, W, C) = self.config.patch_size, x_BHWC.shape
        x_BNP = x_BHWC.reshape(B, H // p, p, W // p, p, C).swapaxes(2, 3).reshape(B, -1, p * p * C)
        x_BND = self.patches(x_BNP)
        cls_B1D = jnp.broadcast_to(self.cls[...].astype(x_BND.dtype), (B, 1, x_BND.shape[-1]))
        x_BND = jnp.concatenate([cls_B1D, x_BND], axis=1)
        x_BND += self.positions[...].astype(x_BND.dtype)
        hidden_BND = self.run(self.norm_in(x_BND), causal=False)
        return self.outputs(hidden_BND, self.norm(hidden_BND[:, 0]))


class Clip(PureNetwork):
    """One tower as pure functions: `init`, `apply`.

    Attributes:
      config: a `TextConfig` or `VisionConfig`.
      abstract_params: the shapes and dtypes of the parameters.
    """

    def __init__(self, config: TextConfig | VisionConfig):
        network = TextNetwork if isinstance(config, TextConfig) else VisionNetwork
        super().__init__(config, functools.partial(network, config))

    def apply(self, params: Params, inputs: Any) -> dict[str, jax.Array]:
        """Runs the tower. Pure.

        Args:
          params: as `init` returns them.
          inputs: token ids int32 (B, T), T up to `config.length`; or images, float (B, S, S, 3)
            with S = `config.image_size`, see `prepare`.

        Returns:
          float32: `hidden` (B, N, D), of texts after the final LayerNorm, of images before it;
          `pooled` (B, D), of the end token or the class token; `embeds` (B, E), not normalised, if
          the tower has a projection.

        Raises:
          UvitError: on another shape.
        """
        config, shape = self.config, np.shape(inputs)
        if isinstance(config, TextConfig):
            if len(shape) != 2 or not 0 < shape[1] <= config.length:
                raise UvitError(f"CLIP takes ids (B, T), T up to {config.length}, got {shape}")
            inputs = jnp.asarray(inputs, jnp.int32)
        else:
            side = config.image_size
            if shape[1:] != (side, side, 3):
                raise UvitError(f"CLIP takes images (B, {side}, {side}, 3), got {shape}")
            inputs = jnp.asarray(inputs, jnp.dtype(config.dtype))
        return nnx.merge(self._graph, params)(inputs)


def prepare(pixels_BHWC: jax.Array, size: int = 224) -> jax.Array:
    """CLIP's preprocessing: bicubic resizing of the short side to `size`, and a centre crop.

    As in Pillow, the filter widens when shrinking, and rows, then columns, are rounded to 256
    levels.

    Args:
      pixels_BHWC: float32 (B, H, W, 3) in [0, 255]. size: of the output.

    Returns:
      float32 (B, size, size, 3), normalised by `MEAN` and `STD`.
    """
    B, H, W, C = pixels_BHWC.shape
    short = min(H, W)
    height, width = (int(size * side / short) for side in (H, W))
    x = pixels_BHWC
    for shape in ((B, H, width, C), (B, height, width, C)):
        if shape != x.shape:
            options = dict(antialias=True, precision=jax.lax.Precision.HIGHEST)
            x = jax.image.resize(x, shape, "cubic", **options)
            x = jnp.clip(jnp.round(x), 0, 255)
    top, left = (height - size) // 2, (width - size) // 2
    x = x[:, top : top + size, left : left + size]
    return (x / 255 - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
