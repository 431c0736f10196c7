"""What a model is made of, as static configuration: a sequence of segments and a backbone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from uvit_jax.config import parse, plain
from uvit_jax.errors import UvitError, nearest
from uvit_jax.parallel.attention import implementations
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.segment import Segment

SKIPS = ("concat", "add", "linear_of_sum", "sum_of_linear", "none")
MODULATIONS = ("none", "adaln", "adaln_zero")
INITS = ("normal", "xavier")
QK_NORMS = ("none", "rms", "layer")
RESIDUALS = ("same", "float32")
PRODUCTS = ("plain", "flat")
REMATS = ("none", "dots", "attention", "full")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A stack of transformer blocks. The defaults are U-ViT's.

    Attributes:
      name: a key of `uvit_jax.models.model.BACKBONES`.
      width: D. depth: number of blocks, of which half are before and half after `mid_block`.
      num_heads: H; the head size is D / H.
      mlp_ratio: hidden width of the MLPs, in units of D.
      mid_block: one block more, between the halves (U-ViT's "depth 12" is 6 + 1 + 6 blocks).
      skip: how each block of the first half is merged into its partner in the second, with h the
        main branch and s the skip (the ablation of U-ViT's paper): `concat`, Linear([h, s]), the
        published one; `add`, h + s; `linear_of_sum`, Linear(h + s); `sum_of_linear`,
        h + Linear(s); `none`.
      norm_affine, norm_eps: of every LayerNorm.
      activation: `gelu` (exact) or `gelu_tanh`.
      qkv_bias: whether queries, keys and values have a bias.
      qk_norm: how each head's queries and keys are normalised before they meet (and before rotary
        positions), so that logits cannot grow without bound in long runs at half precision: `rms`,
        RMSNorm (Stable Diffusion 3, Flux); `layer`, LayerNorm without bias (ViT-22B); `none`. Both
        have a learned scale of the head size, shared by the heads.
      init: of the blocks' matrices: `normal` with standard deviation 0.02 (U-ViT), or `xavier`
        uniform, which is larger for narrow models (DiT).
      modulation: `none`, `adaln` (shift and scale) or `adaln_zero` (and gates, all starting at 0)
        by the segments that enter by `adaln`.
      attention: a name in `parallel.attention.IMPLEMENTATIONS`.
      products: how the blocks' products with their parameters are written: `plain`, over the axes
        that there are, which sharding over devices needs; or `flat`, over all tokens of a batch as
        rows of one matrix, which XLA's CPU backend computes faster (see kernels.py).
      scan: run the blocks with `jax.lax.scan`; False is a Python loop, for debugging.
      unroll: blocks a scan's iteration.
      remat: what the backward pass recomputes, from most memory to least: `none` keeps every
        activation; `dots` keeps the results of products with parameters, 10 D a token and block
        (11 D with a skip's), and recomputes norms, activations and attention's own products;
        `attention` keeps queries, keys, values and what attention makes of them, 4 D, and
        recomputes the rest, the MLP above all; `full` keeps only the blocks' inputs.
      residual: dtype of the residual stream, to which every block adds: `same` as the model's
        `dtype`, or `float32`, where bfloat16 blocks would otherwise round away small additions to a
        large stream; norms then read float32 too, products stay as they are. Long skips are kept in
        the model's dtype. It costs 2 bytes more for each element of what blocks hand on.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    mid_block: bool = True
    skip: str = "concat"
    norm_affine: bool = True
    norm_eps: float = 1e-5
    activation: str = "gelu"
    qkv_bias: bool = False
    qk_norm: str = "none"
    init: str = "normal"
    modulation: str = "none"
    attention: str = "xla"
    products: str = "plain"
    scan: bool = True
    unroll: int = 1
    remat: str = "none"
    residual: str = "same"
    name: str = "transformer"

    def __post_init__(self):
        for key, known in (
            ("skip", SKIPS),
            ("modulation", MODULATIONS),
            ("qk_norm", QK_NORMS),
            ("products", PRODUCTS),
            ("remat", REMATS),
            ("residual", RESIDUALS),
            ("init", INITS),
            ("activation", ("gelu", "gelu_tanh")),
        ):
            value = getattr(self, key)
            if value not in known:
                raise UvitError(f"unknown {key} {value!r}{nearest(value, known)}")
        implementations.check(self.attention)
        if min(self.width, self.depth, self.num_heads, self.unroll) < 1:
            raise UvitError("width, depth, num_heads and unroll must be at least 1")
        if self.mlp_ratio * self.width < 1 or self.norm_eps <= 0:
            raise UvitError("mlp_ratio and norm_eps must be positive")
        if self.width % self.num_heads:
            raise UvitError(f"width={self.width} is not divisible by num_heads={self.num_heads}")
        if self.skip != "none" and self.depth % 2:
            raise UvitError(f"long skips pair the blocks: depth={self.depth} must be even")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model: `segments` by name, in the order of `sequence`, and a backbone.

    `sequence` is apart from `segments` so that an order survives JSON, and so that the command line
    can drop a segment: `--config.model.sequence="('time', 'image')"`.

    Attributes:
      sequence: names of segments, in their order. segments: by name. backbone: of the model.
      max_subjects, max_views: sizes of the tables of subject and view slots, 0 for as many as the
        segments name: what more subjects and views can be had at sampling than in training.
      axes: along which rotary positions turn, of `segment`, `frame`, `row` and `column`.
      dtype: of the computation, `float32` or `bfloat16`. Parameters, their gradients and averages
        and the optimizer's second moment are float32 always, and so are attention's logits and
        softmax, the norms' statistics, the outputs and the loss. With `bfloat16`, matrix products
        (and convolutions) have operands and results in bfloat16 and are summed in float32, and
        what blocks add up is bfloat16 as well unless `backbone.residual` says otherwise.
    """

    sequence: tuple[str, ...]
    segments: Mapping[str, Segment]
    backbone: BackboneConfig
    dtype: str = "float32"
    max_subjects: int = 0
    max_views: int = 0
    axes: tuple[str, ...] = ("row", "column")

    def __post_init__(self):
        if min(self.max_subjects, self.max_views) < 0:
            raise UvitError("max_subjects and max_views must be at least 0")
        if self.dtype not in DTYPES:
            raise UvitError(f"unknown dtype {self.dtype!r}{nearest(self.dtype, DTYPES)}")

    def __hash__(self) -> int:
        # A mapping has no hash; the segments are told apart by equality.
        return hash((self.sequence, self.backbone, self.dtype))

    def layout(self) -> Layout:
        """The layout that these segments make; raises UvitError if they make none."""
        return Layout(
            (self.segments[name] for name in self.sequence),
            max_subjects=self.max_subjects,
            max_views=self.max_views,
            axes=self.axes,
        )


def parse_model(config: Mapping[str, Any], where: str = "config.model") -> ModelConfig:
    """Builds a `ModelConfig` from a mapping.

    Args:
      config: nested mappings, such as a preset's; a `ModelConfig` stays as it is.
      where: its dotted path, for error messages.

    Raises:
      UvitError: on an unknown or missing key or an impossible value, naming the key.
    """
    if isinstance(config, ModelConfig):
        return config
    config = plain(config, where)
    given = plain(config.get("segments", {}), f"{where}.segments")
    segments = {}
    for name in given:
        here = f"{where}.segments.{name}"
        segments[name] = parse(Segment, {"name": name, **plain(given[name], here)}, here)
    config["segments"] = segments
    model = parse(ModelConfig, config, where)
    for name in model.sequence:
        if name not in model.segments:
            hint = nearest(name, model.segments)
            raise UvitError(f"{where}.sequence names {name!r}, which is no segment{hint}")
    return model
