"""The backbone: blocks in a scan over depth, long skips between its two halves.

Blocks of one kind are one module whose parameters carry a leading layer axis. The long skips of a
U-ViT are the first scan's stacked outputs and the second scan's inputs; the second half is stored
in the order of its partners (block i of `out_blocks` takes the skip of block i of `in_blocks`) and
run from the last to the first, so that nothing is ever reversed in memory.
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
    KeysValues,
    Modulation,
    layer_norm,
    modulate,
    rotary_angles,
    with_gathered_params,
)
from uvit_jax.models.model_config import BackboneConfig
from uvit_jax.parallel.sharding import constrain_batch, constrain_tokens, gather_params
from uvit_jax.tokens.embed import Embedded
from uvit_jax.tokens.layout import Layout

# What `dots` leaves out, products of activations with activations, are attention's logits, the
# largest arrays of all. The names of `attention` are given in layers.py.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("qkv", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """What the tokens of references leave to all others, a pytree.

    Attributes:
      keys_values: by stack of blocks, keys and values (L, B, M, H, K), as they are attended to.
      present_BM: which of the M tokens an example has; None if it has all.

    Long skips are not among it: they join a token with itself, and so stay among the references.
    """

    keys_values: dict[str, KeysValues]
    present_BM: jax.Array | None

    @property
    def size(self) -> tuple[int, int]:
        """B and M."""
        return next(iter(self.keys_values.values()))[0].shape[1:3]

    def repeat(self, count: int) -> "Cache":
        """Every example `count` times, side by side, as guidance puts them into one batch."""
        present_BM = self.present_BM
        return Cache(
            jax.tree.map(lambda a: jnp.repeat(a, count, axis=1), self.keys_values),
            None if present_BM is None else jnp.repeat(present_BM, count, axis=0),
        )


class Backbone(nnx.Module):
    """What was embedded → tokens (B, N, D), normalised.

    Raises:
      UvitError: if the layout asks for a way in that the backbone lacks.
    """

    def __init__(self, config: BackboneConfig, layout: Layout, *, dtype: Any, rngs: nnx.Rngs):
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
        head_size = config.width // config.num_heads
        pairs = 2 * len(layout.axes)
        if layout.has_rotary and head_size % pairs:
            raise UvitError(
                f"positions='rotary' along {len(layout.axes)} axes need a head size (width / "
                f"num_heads) divisible by {pairs}, not {head_size}"
            )
        self.dtype = dtype

        def stack(count: int, **kwargs) -> Block:
            make = nnx.vmap(lambda r: Block(config, cross=cross, dtype=dtype, rngs=r, **kwargs))
            return make(rngs.split(count))

        cross = bool(layout.cross)

        half = config.depth // 2
        if config.skip == "none":
            self.blocks = stack(config.depth + config.mid_block)
        else:
            self.in_blocks = stack(half)
            middle = config.mid_block
            self.mid_block = Block(config, cross=cross, dtype=dtype, rngs=rngs) if middle else None
            self.out_blocks = stack(half, merge_skip=True)
        self.norm = layer_norm(config, dtype=dtype, rngs=rngs)
        modulated = config.modulation != "none"
        self.modulation = Modulation(config, 2, dtype=dtype, rngs=rngs) if modulated else None

    def __call__(self, embedded: Embedded, layout: Layout, cache: Cache | None = None) -> jax.Array:
        """Runs the tokens of `layout`, which also see the references in a cache."""
        context = self._context(embedded, layout, cache)
        x_BND, _ = self._blocks(embedded.tokens_BND, context, cache=cache)
        x_BND = self.norm(x_BND)
        if self.modulation is not None:
            modulation = with_gathered_params(self.modulation, self.dtype, path="modulation")
            x_BND = modulate(x_BND, *modulation(context["c_BD"], context["still"]))
        return x_BND

    def cache(self, embedded: Embedded, layout: Layout) -> Cache:
        """The keys and values of a layout of references."""
        context = self._context(embedded, layout, None)
        _, keys_values = self._blocks(embedded.tokens_BND, context, keep_keys=True)
        return Cache(keys_values, embedded.present_BN)

    def _blocks(
        self,
        x_BND: jax.Array,
        context: dict,
        *,
        cache: Cache | None = None,
        keep_keys: bool = False,
    ) -> tuple[jax.Array, dict[str, KeysValues]]:
        """All blocks; also, with `keep_keys`, keys and values by stack."""
        cached = {} if cache is None else cache.keys_values
        found = {}

        def run(name: str, x_BND: jax.Array, **options) -> tuple[jax.Array, jax.Array | None]:
            x_BND, skips_LBND, keys_values = self._run(
                getattr(self, name),
                x_BND,
                context,
                cached=cached.get(name),
                keep_keys=keep_keys,
                **options,
            )
            found[name] = keys_values
            return x_BND, skips_LBND

        x_BND = constrain_tokens(x_BND)
        if self.config.residual == "float32":
            x_BND = x_BND.astype(jnp.float32)
        if self.config.skip == "none":
            x_BND, _ = run("blocks", x_BND)
            return x_BND, found
        x_BND, skips_LBND = run("in_blocks", x_BND, keep=True)
        if self.mid_block is not None:
            # Its cache has a leading layer axis like the others', of one.
            before = jax.tree.map(lambda a: a[0], cached.get("mid_block"))
            graph, params = nnx.split(self.mid_block)

            def middle(x_BND, params):
                block = nnx.merge(graph, self._gathered(params))
                return block(x_BND, cached=before, **context)

            x_BND, keys_values = self._remat(middle, alone=True)(x_BND, params)
            found["mid_block"] = jax.tree.map(lambda a: a[None], keys_values)
        x_BND, _ = run("out_blocks", x_BND, skips=skips_LBND, reverse=True)
        return x_BND, found

    def _context(self, embedded: Embedded, layout: Layout, cache: Cache | None) -> dict[str, Any]:
        """What all blocks are told besides the tokens: conditions, who sees whom, and where tokens
        stand."""
        mask_NM = layout.visibility(cached=cache is not None)
        present_BM = _present(embedded, cache)
        places_NA, angles_NR = embedded.places_NA, None
        if places_NA is not None:
            head_size = self.config.width // self.config.num_heads
            angles_NR = jnp.asarray(rotary_angles(places_NA, head_size))
        still = None
        if self.modulation is not None and embedded.still_1D is not None:
            which_N = [np.full(layout.count(s), s.modulated_at == "zero") for s in layout.tokens]
            still = embedded.still_1D, jnp.asarray(np.concatenate(which_N))[:, None]
        c_BD = embedded.modulation_BD
        return dict(
            c_BD=None if c_BD is None else constrain_batch(c_BD),
            still=still,
            context_BMD=embedded.context_BMD,
            # It stays NumPy's: kernels leave out the blocks of it that nobody sees.
            mask_NM=mask_NM,
            angles_NR=angles_NR,
            present_BM=present_BM,
        )

    def _gathered(self, params: Any) -> Any:
        """A block's parameters as its products take them. Without remat they would be kept for the
        backward pass, every block's, whole; there, the partitioner gathers them as it sees fit."""
        return params if self.config.remat == "none" else gather_params(params, self.dtype)

    def _remat(self, function: Callable, *, alone: bool = False) -> Callable:
        if self.config.remat == "none":
            return function
        # Inside a scan, XLA cannot merge the recomputation with the forward pass anyway, so the
        # barrier that would stop it from doing so is left out.
        return jax.checkpoint(
            function,
            policy=POLICIES[self.config.remat],
            prevent_cse=alone or not self.config.scan,
        )

    def _run(
        self,
        blocks: Block,
        x_BND: jax.Array,
        context: dict,
        *,
        skips: jax.Array | None = None,
        cached: KeysValues | None = None,
        keep: bool = False,
        keep_keys: bool = False,
        reverse: bool = False,
    ) -> tuple[jax.Array, jax.Array | None, KeysValues | None]:
        """Runs a stack of blocks; also returns, with `keep`, every block's output (L, B, N, D), and
        with `keep_keys` its keys and values (L, B, N, H, K)."""
        graph, params_L = nnx.split(blocks)

        def body(x_BND, layer):
            params, skip_BND, keys_values = layer
            block = nnx.merge(graph, self._gathered(params))
            x_BND, keys_values = block(x_BND, skip_BND=skip_BND, cached=keys_values, **context)
            x_BND = constrain_tokens(x_BND)
            skip_BND = x_BND.astype(self.dtype) if keep else None
            return x_BND, (skip_BND, keys_values if keep_keys else None)

        body = self._remat(body)
        xs = (params_L, skips, cached)
        if self.config.scan:
            x_BND, kept = jax.lax.scan(body, x_BND, xs, reverse=reverse, unroll=self.config.unroll)
            return x_BND, *kept
        count = jax.tree.leaves(params_L)[0].shape[0]
        order = range(count)[::-1] if reverse else range(count)
        kept = [None] * count
        for i in order:
            x_BND, kept[i] = body(x_BND, jax.tree.map(lambda a, i=i: a[i], xs))
        return x_BND, *jax.tree.map(lambda *a: jnp.stack(a), *kept)


def _present(embedded: Embedded, cache: Cache | None) -> jax.Array | None:
    """Which keys an example has, the cached ones first; None if it has all."""
    if cache is None or cache.present_BM is None:
        return embedded.present_BN
    B, N, _ = embedded.tokens_BND.shape
    return jnp.concatenate([cache.present_BM, jnp.ones((B, N), bool)], axis=1)
