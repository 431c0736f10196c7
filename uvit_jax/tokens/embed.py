"""A layout's parameters: data in as tokens and a modulation vector, tokens out as predictions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.initializers import normal
from uvit_jax.tokens.layout import PRESENT, SUBJECT_SLOTS, VIEW_SLOTS, Layout
from uvit_jax.tokens.modalities import MODALITIES
from uvit_jax.tokens.segment import Segment


class Embedded(NamedTuple):
    """What enters the backbone.

    Attributes:
      tokens_BND: the sequence.
      modulation_BD: the sum of what enters by adaLN, if anything does.
      still_1D: its part at time 0, for segments that are modulated so, if there are any.
      context_BMD: for cross-attention, if anything enters so.
      present_BN: which tokens an example has, where references are optional.
      places_NA: for rotary positions, (N, A), or (B, N, A) where slots differ by example.
    """

    tokens_BND: jax.Array
    modulation_BD: jax.Array | None = None
    still_1D: jax.Array | None = None
    context_BMD: jax.Array | None = None
    present_BN: jax.Array | None = None
    places_NA: jax.Array | None = None


class Embed(nnx.Module):
    """Everything that enters, each way: `(inputs, times, layout) → Embedded`.

    Its parameters are `segments/<name>/…` (what a modality needs), `positions/<name>` (n, D), and,
    where segments name types or slots, `types/<type>` (D,), `subjects` and `views`, a vector each
    of the layout's `max_subjects` and `max_views`.
    """

    def __init__(self, layout: Layout, width: int, *, dtype: Any, rngs: nnx.Rngs):
        for segment in layout.segments:
            if segment.positions == "sincos2d" and width % 4:
                raise UvitError(
                    f"segment {segment.name!r}: positions='sincos2d' needs a width divisible by 4, "
                    f"not {width}"
                )
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
        for table, count in (("subjects", layout.max_subjects), ("views", layout.max_views)):
            param = nnx.Param(normal(rngs.params(), (count, width))) if count else None
            setattr(self, table, param)
        types = sorted({s.type for s in layout.segments} - {""})
        self.types = nnx.Dict({t: nnx.Param(normal(rngs.params(), (width,))) for t in types})

    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        times: Mapping[str, jax.Array] | None,
        layout: Layout,
    ) -> "Embedded":
        """Embeds the segments of `layout`, which may be a part of the one it was built for; without
        `times` nothing enters but tokens, of which none is a time."""

        def embedded(segment: Segment) -> jax.Array:
            data = times[segment.of] if segment.modality == "time" else inputs[segment.name]
            return self.segments[layout.source(segment).name](data).astype(self.dtype)

        def sequence(segments: tuple[Segment, ...]) -> jax.Array:
            return jnp.concatenate(
                [embedded(s) + self._offset(s, inputs, layout) for s in segments], axis=1
            )

        timed = times is not None
        return Embedded(
            tokens_BND=sequence(layout.tokens),
            modulation_BD=(
                sum(embedded(s)[:, 0] for s in layout.adaln) if layout.adaln and timed else None
            ),
            still_1D=self._still(layout),
            context_BMD=sequence(layout.cross) if layout.cross else None,
            present_BN=_present(inputs, layout),
            places_NA=_places(inputs, layout) if layout.has_rotary else None,
        )

    def _still(self, layout: Layout) -> jax.Array | None:
        """The modulation (1, D) of segments that are modulated by time 0 alone."""
        if not layout.adaln or not any(s.modulated_at == "zero" for s in layout.tokens):
            return None
        still_1D = jnp.zeros((1, self.width), self.dtype)
        for segment in layout.adaln:
            if segment.modality == "time":
                still_1D += self.segments[layout.source(segment).name](jnp.zeros(1))[:, 0]
        return still_1D

    def _offset(
        self, segment: Segment, inputs: Mapping[str, jax.Array], layout: Layout
    ) -> jax.Array:
        """What position, type and slots add to a segment's tokens: (n, D), (1, D), or (B, n, D) and
        (B, 1, D) where slots differ by example."""
        offset = jnp.zeros((1, self.width), jnp.float32)
        if segment.positions == "learned":
            offset += self.positions[layout.source(segment).name][...]
        elif segment.positions == "sincos2d":
            height, width, _ = segment.shape
            p = segment.patch_size
            offset += sincos2d(height // p, width // p, self.width)
        if segment.type:
            offset += self.types[segment.type][...]
        subject, view = _slots(segment, inputs)
        if segment.subject >= 0:
            offset = offset + self.subjects[...][subject]
        if segment.view >= 0:
            offset = offset + self.views[...][view]
        return offset.astype(self.dtype)


class Heads(nnx.Module):
    """Everything that leaves: tokens (B, N, D) → a float32 prediction for each noisy segment."""

    def __init__(self, layout: Layout, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
        self.segments = nnx.Dict(
            {
                s.name: MODALITIES[s.modality].Head(s, width, dtype=dtype, zero=zero, rngs=rngs)
                for s in layout.noisy
            }
        )

    def __call__(self, tokens_BND: jax.Array, layout: Layout) -> dict[str, jax.Array]:
        return {
            s.name: self.segments[s.name](tokens_BND[:, layout.slices[s.name]]).astype(jnp.float32)
            for s in layout.noisy
        }


def _slots(segment: Segment, inputs: Mapping[str, jax.Array]) -> tuple[Any, Any]:
    """Subject and view slot of a segment: its own, or for a reference those of each example, int32
    (B, 1), if the inputs have them."""
    subject, view = segment.subject, segment.view
    if segment.is_reference and SUBJECT_SLOTS in inputs:
        subject = inputs[SUBJECT_SLOTS][:, subject, None]
    if segment.is_reference and view >= 0 and VIEW_SLOTS in inputs:
        view = inputs[VIEW_SLOTS][:, segment.subject, view, None]
    return subject, view


def _present(inputs: Mapping[str, jax.Array], layout: Layout) -> jax.Array | None:
    """Which tokens an example has: bool (B, N), or None if it has all."""
    if PRESENT not in layout.input_shapes:
        return None
    present_BSV = jnp.asarray(inputs[PRESENT]).astype(bool)
    B = present_BSV.shape[0]

    def of(segment: Segment) -> jax.Array:
        if not segment.optional:
            return jnp.ones((B, layout.count(segment)), bool)
        one_B = present_BSV[:, segment.subject, max(segment.view, 0)]
        return jnp.broadcast_to(one_B[:, None], (B, layout.count(segment)))

    return jnp.concatenate([of(s) for s in layout.tokens], axis=1)


def _places(inputs: Mapping[str, jax.Array], layout: Layout) -> Any:
    """Where all tokens stand along the layout's axes: (N, A), or (B, N, A) with slots by example.

    A reference's number follows from its slots alone, so that absent ones leave the others where
    they are.
    """

    def of(segment: Segment) -> Any:
        if not segment.is_reference:
            return layout.places(segment)
        subject, view = _slots(segment, inputs)
        view = view if segment.view >= 0 else 0
        number = 1 + subject * max(layout.max_views, 1) + view
        return layout.places(segment, number if np.ndim(number) == 0 else number[..., None])

    places = [of(s) for s in layout.tokens]
    if all(p.ndim == 2 for p in places):
        return np.concatenate(places)
    B = next(p.shape[0] for p in places if p.ndim == 3)
    return jnp.concatenate([jnp.broadcast_to(p, (B, *p.shape[-2:])) for p in places], axis=1)


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
