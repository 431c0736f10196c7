"""The backbone: blocks in a scan over depth, with long skips between its two halves.

Blocks of one kind are one module whose parameters have a leading layer axis. The long skips of a
U-ViT are the stacked outputs of the first scan and inputs of the second. The second half is stored
in the order of its partners (block i of `out_blocks` takes the skip of block i of `in_blocks`) and
run from the last to the first, so that nothing is reversed in memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.models.layers import (
    Block,
    BlockInputs,
    KeysValues,
    Modulation,
    gathered_module,
    layer_norm,
    modulate,
)
from uvit_jax.models.model_config import BackboneConfig
from uvit_jax.parallel.sharding import constrain_batch, constrain_tokens, gather_params
from uvit_jax.tokens.embed import Embedded
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.positions import rope_angles

# `dots` does not save products of activations with activations: attention's logits, the largest
# arrays. The names of `attention` are given in layers.py.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("qkv", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """The keys and values of references, for all other tokens; a pytree.

    Attributes:
      keys_values: by stack of blocks, keys and values (L, B, M, H, K).
      present_BM: which of the M tokens an example has; None if it has all.

    Long skips are not part of it: they connect a token with itself.
    """

    keys_values: dict[str, KeysValues]
    present_BM: jax.Array | None

    @property
    def size(self) -> tuple[int, int]:
        """B and M."""
        return next(iter(self.keys_values.values()))[0].shape[1:3]

    def repeat(self, count: int) -> "Cache":
        """Each example `count` times in a row, as guidance batches its branches."""
        present_BM = self.present_BM
        return Cache(
            jax.tree.map(lambda a: jnp.repeat(a, count, axis=1), self.keys_values),
            None if present_BM is None else jnp.repeat(present_BM, count, axis=0),
        )


class Backbone(nnx.Module):
    """Embedded segments → tokens (B, N, D), normalised.

    Raises:
      UvitError: if the layout needs a modulation or positions that the backbone cannot have.
    """

    def __init__(
        self,
        config: BackboneConfig,
        layout: Layout,
        *,
        rope_theta: float = 100.0,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        if layout.adaln and config.modulation == "none":
            raise UvitError(
                f"segment {layout.adaln[0].name!r} enters by 'adaln', but backbone.modulation is "
                "'none'; set it to 'adaln_zero', or the segment's enter to 'token'"
            )
        if config.modulation != "none" and not layout.adaln:
            raise UvitError(
                f"backbone.modulation is {config.modulation!r}, but no segment enters by 'adaln'"
            )
        self.config = config
        self.rope_theta = rope_theta
        self.head_size = config.width // config.num_heads
        axes = len(layout.axes)
        if layout.has_rope and (self.head_size % 2 or self.head_size < 2 * axes):
            raise UvitError(
                f"position='rope' on {axes} axes needs an even head size (width / num_heads) of at "
                f"least {2 * axes}, not {self.head_size}"
            )
        self.dtype = dtype
        options = dict(cross=bool(layout.cross), gated=layout.gated, dtype=dtype)

        def stack(count: int, **kwargs) -> Block:
            make = nnx.vmap(lambda r: Block(config, rngs=r, **options, **kwargs))
            return make(rngs.split(count))

        half = config.depth // 2
        if config.skip == "none":
            self.blocks = stack(config.depth + config.mid_block)
        else:
            self.in_blocks = stack(half)
            middle = config.mid_block
            self.mid_block = Block(config, rngs=rngs, **options) if middle else None
            self.out_blocks = stack(half, merge_skip=True)
        self.norm = layer_norm(config, dtype=dtype, rngs=rngs)
        modulated = config.modulation != "none"
        self.modulation = Modulation(config, 2, dtype=dtype, rngs=rngs) if modulated else None

    def __call__(self, embedded: Embedded, layout: Layout, cache: Cache | None = None) -> jax.Array:
        """Runs the tokens of `layout`, which also attend to the references in a cache."""
        given = self._block_inputs(embedded, layout, cache)
        x_BND, _ = self._run(embedded.tokens_BND, given, cache.keys_values if cache else {})
        x_BND = self.norm(x_BND)
        if self.modulation is not None:
            modulation = gathered_module(self.modulation, self.dtype, path="modulation")
            x_BND = modulate(x_BND, *modulation(given))
        return x_BND

    def cache(self, embedded: Embedded, layout: Layout) -> Cache:
        """The keys and values of a layout of references."""
        given = self._block_inputs(embedded, layout, None)
        _, keys_values = self._run(embedded.tokens_BND, given, {}, keep_keys=True)
        return Cache(keys_values, embedded.present_BN)

    def _run(
        self,
        x_BND: jax.Array,
        given: BlockInputs,
        cached: dict[str, KeysValues],
        *,
        keep_keys: bool = False,
    ) -> tuple[jax.Array, dict[str, KeysValues]]:
        """Tokens after all blocks and, with `keep_keys`, their keys and values by stack."""
        kept: dict[str, KeysValues] = {}

        def run(name: str, x_BND, *, skips_LBND=None, keep_skips=False, reverse=False):
            """Scans a stack of blocks; also returns every block's output, with `keep_skips`."""
            graph, params_L = nnx.split(getattr(self, name))

            def body(x_BND, layer):
                params, skip_BND, keys_values = layer
                block = nnx.merge(graph, self._gathered(params))
                x_BND, keys_values = block(x_BND, given, skip_BND=skip_BND, cached=keys_values)
                x_BND = constrain_tokens(x_BND)
                skip_BND = x_BND.astype(self.dtype) if keep_skips else None
                return x_BND, (skip_BND, keys_values if keep_keys else None)

            layers = (params_L, skips_LBND, cached.get(name))
            x_BND, (skips_LBND, kept[name]) = self._scan(body, x_BND, layers, reverse)
            return x_BND, skips_LBND

        x_BND = constrain_tokens(x_BND)
        if self.config.residual == "float32":
            x_BND = x_BND.astype(jnp.float32)
        if self.config.skip == "none":
            x_BND, _ = run("blocks", x_BND)
            return x_BND, kept
        x_BND, skips_LBND = run("in_blocks", x_BND, keep_skips=True)
        if self.mid_block is not None:
            # A single block without a layer axis; its cache has one, of length 1.
            before = jax.tree.map(lambda a: a[0], cached.get("mid_block"))
            graph, params = nnx.split(self.mid_block)

            def middle(x_BND, params):
                return nnx.merge(graph, self._gathered(params))(x_BND, given, cached=before)

            x_BND, keys_values = self._remat(middle, in_scan=False)(x_BND, params)
            kept["mid_block"] = jax.tree.map(lambda a: a[None], keys_values)
        x_BND, _ = run("out_blocks", x_BND, skips_LBND=skips_LBND, reverse=True)
        return x_BND, kept

    def _scan(self, body: Callable, x_BND: jax.Array, layers: Any, reverse: bool) -> tuple:
        """`jax.lax.scan` with remat, or the same as a Python loop."""
        body = self._remat(body, in_scan=self.config.scan)
        if self.config.scan:
            return jax.lax.scan(body, x_BND, layers, reverse=reverse, unroll=self.config.unroll)
        count = jax.tree.leaves(layers)[0].shape[0]
        kept = [None] * count
        for i in reversed(range(count)) if reverse else range(count):
            x_BND, kept[i] = body(x_BND, jax.tree.map(lambda a, i=i: a[i], layers))
        return x_BND, jax.tree.map(lambda *a: jnp.stack(a), *kept)

    def _remat(self, function: Callable, *, in_scan: bool) -> Callable:
        if self.config.remat == "none":
            return function
        # Inside a scan, XLA cannot merge the recomputation with the forward pass, so the barrier
        # that would keep it from doing so is left out.
        policy = POLICIES[self.config.remat]
        return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)

    def _gathered(self, params: Any) -> Any:
        """A block's parameters, all-gathered for its products. Without remat, every block's
        gathered parameters would be saved for the backward pass; there the partitioner decides."""
        return params if self.config.remat == "none" else gather_params(params, self.dtype)

    def _block_inputs(self, embedded: Embedded, layout: Layout, cache: Cache | None) -> BlockInputs:
        ids_NA, angles_NR = embedded.position_ids_NA, None
        if ids_NA is not None:
            angles_NR = jnp.asarray(rope_angles(ids_NA, self.head_size, self.rope_theta))
        is_clean_N1 = None
        if embedded.clean_1D is not None:
            is_clean = [np.full(s.num_tokens, s.modulation == "clean") for s in layout.tokens]
            is_clean_N1 = jnp.asarray(np.concatenate(is_clean))[:, None]
        c_BD = embedded.modulation_BD
        return BlockInputs(
            modulation_BD=None if c_BD is None else constrain_batch(c_BD),
            clean_1D=embedded.clean_1D,
            is_clean_N1=is_clean_N1,
            context_BMD=embedded.context_BMD,
            mask_NM=layout.visibility(cached=cache is not None),
            windows=layout.windows(cached=cache is not None),
            angles_NR=angles_NR,
            present_BM=_present_keys(embedded, cache),
            gated_M=layout.gated_keys(cached=cache is not None),
        )


def _present_keys(embedded: Embedded, cache: Cache | None) -> jax.Array | None:
    """Which keys an example has, the cached ones first; None if it has all."""
    if cache is None or cache.present_BM is None:
        return embedded.present_BN
    B, N, _ = embedded.tokens_BND.shape
    return jnp.concatenate([cache.present_BM, jnp.ones((B, N), bool)], axis=1)
