"""A layout's parameters: data in as tokens and a modulation vector, tokens out as predictions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.initializers import normal
from uvit_jax.tokens.layout import Layout
from uvit_jax.tokens.modalities import MODALITIES
from uvit_jax.tokens.segment import Segment


class Embedded(NamedTuple):
    """What enters the backbone: tokens (B, N, D), and, where the layout has segments that enter so,
    a modulation vector (B, D) and a context for cross-attention (B, M, D)."""

    tokens_BND: jax.Array
    modulation_BD: jax.Array | None
    context_BMD: jax.Array | None


class Embed(nnx.Module):
    """Everything that enters, each way: `(inputs, times) → Embedded`.

    Its parameters are `segments/<name>/…` (what a modality needs), `positions/<name>` (n, D), and,
    where segments name slots, `subjects` (S, D) and `views` (V, D).
    """

    def __init__(self, layout: Layout, width: int, *, dtype: Any, rngs: nnx.Rngs):
        for segment in layout.segments:
            if segment.positions == "sincos2d" and width % 4:
                raise UvitError(
                    f"segment {segment.name!r}: positions='sincos2d' needs a width divisible by 4, "
                    f"not {width}"
                )
        self.layout = layout
        self.width = width
        self.dtype = dtype
        own = [s for s in layout.segments if not s.like]
        self.segments = nnx.Dict(
            {s.name: MODALITIES[s.modality](s, width, dtype=dtype, rngs=rngs) for s in own}
        )
        self.positions = nnx.Dict(
            {
                s.name: nnx.Param(normal(rngs.params(), (layout.count(s), width)))
                for s in own
                if s.enter != "adaln" and s.positions == "learned"
            }
        )
        for table, slot in (("subjects", "subject"), ("views", "view")):
            count = 1 + max(getattr(s, slot) for s in layout.segments)
            param = nnx.Param(normal(rngs.params(), (count, width))) if count else None
            setattr(self, table, param)

    def __call__(
        self, inputs: Mapping[str, jax.Array], times: Mapping[str, jax.Array]
    ) -> "Embedded":
        def embedded(segment: Segment) -> jax.Array:
            data = times[segment.of] if segment.modality == "time" else inputs[segment.name]
            return self.segments[self.layout.source(segment).name](data).astype(self.dtype)

        def sequence(segments: tuple[Segment, ...]) -> jax.Array:
            return jnp.concatenate([embedded(s) + self._offset(s) for s in segments], axis=1)

        adaln, cross = self.layout.adaln, self.layout.cross
        return Embedded(
            tokens_BND=sequence(self.layout.tokens),
            modulation_BD=sum(embedded(s)[:, 0] for s in adaln) if adaln else None,
            context_BMD=sequence(cross) if cross else None,
        )

    def _offset(self, segment: Segment) -> jax.Array:
        """What position, subject slot and view slot add to a segment's tokens: (n, D) or (1, D)."""
        offset = jnp.zeros((1, self.width), jnp.float32)
        if segment.positions == "learned":
            offset += self.positions[self.layout.source(segment).name][...]
        elif segment.positions == "sincos2d":
            height, width, _ = segment.shape
            p = segment.patch_size
            offset += sincos2d(height // p, width // p, self.width)
        if segment.subject >= 0:
            offset += self.subjects[segment.subject]
        if segment.view >= 0:
            offset += self.views[segment.view]
        return offset.astype(self.dtype)


class Heads(nnx.Module):
    """Everything that leaves: tokens (B, N, D) → a float32 prediction for each noisy segment."""

    def __init__(self, layout: Layout, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
        self.layout = layout
        self.segments = nnx.Dict(
            {
                s.name: MODALITIES[s.modality].Head(s, width, dtype=dtype, zero=zero, rngs=rngs)
                for s in layout.noisy
            }
        )

    def __call__(self, tokens_BND: jax.Array) -> dict[str, jax.Array]:
        return {
            s.name: self.segments[s.name](tokens_BND[:, self.layout.slices[s.name]]).astype(
                jnp.float32
            )
            for s in self.layout.noisy
        }


def sincos2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed positions of a grid, float32 (rows · columns, width), as in MAE and DiT.

    The first half of the width encodes the column, the second the row; each is `[sin, cos]` with
    frequencies 10000^(-i / (width / 4)).
    """
    quarter = width // 4
    frequencies = 10_000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
    features = [f(a) for a in angles for f in (np.sin, np.cos)]
    return np.concatenate(features, axis=1).astype(np.float32)
