"""The backbone: blocks in a scan over depth, long skips between its two halves.

Blocks of one kind are one module whose parameters carry a leading layer axis. The long skips of a
U-ViT are the first scan's stacked outputs and the second scan's inputs; the second half is stored
in the order of its partners (block i of `out_blocks` takes the skip of block i of `in_blocks`) and
run from the last to the first, so that nothing is ever reversed in memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.models.config import BackboneConfig
from uvit_jax.models.layers import Block, Modulation, layer_norm, modulate, rotary_angles
from uvit_jax.parallel.sharding import constrain_tokens, gathered
from uvit_jax.tokens.layout import Layout

# What `dots` leaves out, products of activations with activations, are attention's logits, the
# largest arrays of all. The names of `attention` are given in layers.py.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("qkv", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Backbone(nnx.Module):
    """Tokens (B, N, D), and a modulation vector (B, D) and a context (B, M, D) where the layout has
    them, → tokens (B, N, D), normalised.

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
        if layout.coordinates() is not None and head_size % 4:
            raise UvitError(
                f"positions='rotary' need a head size (width / num_heads) divisible by 4, not "
                f"{head_size}"
            )
        self.layout = layout
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

    def __call__(
        self,
        x_BND: jax.Array,
        c_BD: jax.Array | None = None,
        context_BMD: jax.Array | None = None,
    ) -> jax.Array:
        context = dict(c_BD=c_BD, context_BMD=context_BMD, **self._between_tokens())
        x_BND = constrain_tokens(x_BND)
        if self.config.residual == "float32":
            x_BND = x_BND.astype(jnp.float32)
        if self.config.skip == "none":
            x_BND, _ = self._run(self.blocks, x_BND, context)
        else:
            x_BND, skips_LBND = self._run(self.in_blocks, x_BND, context, keep=True)
            if self.mid_block is not None:
                graph, params = nnx.split(self.mid_block)

                def middle(x_BND, params):
                    return nnx.merge(graph, self._gathered(params))(x_BND, **context)

                x_BND = self._remat(middle, alone=True)(x_BND, params)
            x_BND, _ = self._run(self.out_blocks, x_BND, context, skips=skips_LBND, reverse=True)
        x_BND = self.norm(x_BND)
        if self.modulation is not None:
            x_BND = modulate(x_BND, *self.modulation(c_BD))
        return x_BND

    def _between_tokens(self) -> dict[str, jax.Array | None]:
        """What the layout says of pairs of tokens: who sees whom, and where they stand."""
        mask_NN, places_N2 = self.layout.visibility(), self.layout.coordinates()
        angles_NR = None
        if places_N2 is not None:
            angles_NR = rotary_angles(places_N2, self.config.width // self.config.num_heads)
        # The mask stays NumPy's: kernels leave out the blocks of it that nobody sees.
        return {
            "mask_NN": mask_NN,
            "angles_NR": None if angles_NR is None else jnp.asarray(angles_NR),
        }

    def _gathered(self, params: Any) -> Any:
        """A block's parameters as its products take them. Without remat they would be kept for the
        backward pass, every block's, whole; there, the partitioner gathers them as it sees fit."""
        return params if self.config.remat == "none" else gathered(params, self.dtype)

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
        keep: bool = False,
        reverse: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs a stack of blocks; with `keep`, also returns every block's output (L, B, N, D)."""
        graph, params_L = nnx.split(blocks)

        def body(x_BND, layer):
            params, skip_BND = layer
            params = self._gathered(params)
            x_BND = nnx.merge(graph, params)(x_BND, skip_BND=skip_BND, **context)
            x_BND = constrain_tokens(x_BND)
            return x_BND, x_BND.astype(self.dtype) if keep else None

        body = self._remat(body)
        xs = (params_L, skips)
        if self.config.scan:
            return jax.lax.scan(body, x_BND, xs, reverse=reverse, unroll=self.config.unroll)
        count = jax.tree.leaves(params_L)[0].shape[0]
        order = range(count)[::-1] if reverse else range(count)
        kept = [None] * count
        for i in order:
            x_BND, kept[i] = body(x_BND, jax.tree.map(lambda a, i=i: a[i], xs))
        return x_BND, jnp.stack(kept) if keep else None
