"""What a model is made of, as static configuration: a sequence of segments and a backbone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from uvit_jax.config import Config, brief, parse, plain
from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.upgrade import upgraded_segment
from uvit_jax.parallel.attention.implementations import Implementation
from uvit_jax.tokens import modalities  # noqa: F401  # registers the kinds
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.positions import grid_axes
from uvit_jax.tokens.segment import KINDS, Segment

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "attention", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig(Config):
    """A stack of transformer blocks. The defaults are U-ViT's.

    Attributes:
      name: a key of `uvit_jax.models.model.BACKBONES`.
      width: D. depth: number of blocks, half of them before and half after `mid_block`.
      num_heads: H; the head size is D / H.
      mlp_ratio: hidden width of the MLPs, in units of D.
      mid_block: one more block between the halves (U-ViT's "depth 12" is 6 + 1 + 6 blocks).
      skip: how each block of the first half is merged into its partner in the second, with h the
        main branch and s the skip (the ablation of U-ViT's paper): `concat`, Linear([h, s]), the
        published one; `add`, h + s; `linear_of_sum`, Linear(h + s); `sum_of_linear`,
        h + Linear(s); `none`.
      norm_affine, norm_eps: of every LayerNorm.
      activation: `gelu` (exact) or `gelu_tanh`.
      qkv_bias: whether queries, keys and values have a bias.
      qk_norm: normalisation of each head's queries and keys before attention (and before RoPE), so
        that logits stay bounded in long runs at half precision: `rms`, RMSNorm (Stable Diffusion 3,
        Flux); `layer`, LayerNorm without bias (ViT-22B); `none`. Both have a learned scale of the
        head size, shared by the heads.
      init: of the blocks' matrices: `normal` with standard deviation 0.02 (U-ViT), or `xavier`
        uniform, which is larger for narrow models (DiT).
      modulation: by the segments that enter by `adaln`: `none`, `adaln` (shift and scale) or
        `adaln_zero` (and gates, all initialised to 0).
      attention: see `parallel.attention.implementations.attention`.
      products: how the blocks' matrix products are written: `plain`, over the axes as they are, as
        sharding needs; or `flat`, over all tokens of a batch as rows of one matrix, which is faster
        on XLA's CPU backend (see linear.py).
      scan: run the blocks with `jax.lax.scan`; False is a Python loop, for debugging.
      unroll: blocks in one iteration of the scan.
      remat: what the backward pass recomputes, from most memory to least: `none` saves every
        activation; `dots` saves the results of products with parameters, 10 D a token and block
        (11 D with a skip's), and recomputes norms, activations and attention's own products;
        `attention` saves queries, keys, values and attention's output, 4 D, and recomputes the
        rest, above all the MLP; `full` saves only the blocks' inputs.
      residual: dtype of the residual stream: `same` as the model's `dtype`, or `float32`, where
        bfloat16 would round away a block's small addition to a large stream; norms then read
        float32 too, products do not change. Long skips are in the model's dtype. It costs 2 bytes
        more for each element that a block passes on.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    mid_block: bool = True
    skip: Literal["concat", "add", "linear_of_sum", "sum_of_linear", "none"] = "concat"
    norm_affine: bool = True
    norm_eps: float = 1e-5
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    qkv_bias: bool = False
    qk_norm: Literal["none", "rms", "layer"] = "none"
    init: Literal["normal", "xavier"] = "normal"
    modulation: Literal["none", "adaln", "adaln_zero"] = "none"
    attention: Implementation = "xla"
    products: Literal["plain", "flat"] = "plain"
    scan: bool = True
    unroll: int = 1
    remat: Remat = "none"
    residual: Literal["same", "float32"] = "same"
    name: str = "transformer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.depth, self.num_heads, self.unroll) < 1:
            raise UvitError("width, depth, num_heads and unroll must be at least 1")
        if self.mlp_ratio * self.width < 1 or self.norm_eps <= 0:
            raise UvitError("mlp_ratio and norm_eps must be positive")
        if self.width % self.num_heads:
            raise UvitError(f"width={self.width} is not divisible by num_heads={self.num_heads}")
        if self.skip != "none" and self.depth % 2:
            raise UvitError(f"long skips pair the blocks: depth={self.depth} must be even")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """A model: `segments` by name, in the order of `sequence`, and a backbone.

    `sequence` is separate from `segments` so that the order survives JSON, and so that the command
    line can leave out a segment: `--config.model.sequence="('time', 'image')"`.

    Attributes:
      sequence: names of segments, in order. segments: by name. backbone: of the model.
      max_subjects, max_views: sizes of the tables of subject and view slots; 0 stands for as many
        as the segments have. With larger tables, sampling may use more subjects and views than
        training.
      axes: of RoPE, from `segment`, `frame`, `row` and `column`; empty for those of the segments'
        grids (rows and columns of images, and frames of videos).
      rope_theta: the base of RoPE's frequencies.
      dtype: of the computation. Parameters, gradients, their averages and the optimizer's second
        moment are always float32, and so are attention's logits and softmax, the norms' statistics,
        the outputs and the loss. With `bfloat16`, matrix products and convolutions have bfloat16
        operands and results and accumulate in float32; the residual stream is bfloat16 unless
        `backbone.residual` says otherwise.
    """

    sequence: tuple[str, ...]
    segments: Mapping[str, Segment]
    backbone: BackboneConfig
    dtype: Dtype = "float32"
    max_subjects: int = 0
    max_views: int = 0
    axes: tuple[str, ...] = ()
    rope_theta: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.max_subjects, self.max_views) < 0:
            raise UvitError("max_subjects and max_views must be at least 0")
        if self.rope_theta <= 1:
            raise UvitError(f"rope_theta must be larger than 1, got {self.rope_theta}")
        # Axes that are those of the grids mean the same as none; equal models compare equal.
        if self.axes == grid_axes(self.segments[n] for n in self.sequence if n in self.segments):
            object.__setattr__(self, "axes", ())

    def __hash__(self) -> int:
        # A mapping has no hash; equality compares the segments.
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
      config: nested mappings, such as a preset's; a `ModelConfig` is returned as it is.
      where: its dotted path, for error messages.

    Raises:
      UvitError: on an unknown or missing key or an impossible value, naming the key.
    """
    if isinstance(config, ModelConfig):
        return config
    config = plain(config, where)
    segments = {}
    for name, given in plain(config.get("segments", {}), f"{where}.segments").items():
        here = f"{where}.segments.{name}"
        segments[name] = _parse_segment(name, plain(given, here), here)
    config["segments"] = segments
    model = parse(ModelConfig, config, where)
    for name in model.sequence:
        if name not in model.segments:
            hint = nearest(name, model.segments)
            raise UvitError(f"{where}.sequence names {name!r}, which is no segment{hint}")
    return model


def _parse_segment(name: str, given: dict[str, Any], where: str) -> Segment:
    given = {"name": name, **upgraded_segment(given, where)}
    if given["name"] != name:
        raise UvitError(f"{where}.name={brief(given['name'])} must be the segment's key, {name!r}")
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        problem = " is missing" if kind is None else f"={brief(kind)} is not a known kind"
        raise UvitError(f"{where}.kind{problem}{nearest(str(kind), KINDS)}")
    return parse(KINDS[kind], given, where)
