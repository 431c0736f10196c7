"""A layout's parameters: data → tokens and a modulation vector, tokens → predictions."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.layout import PRESENT, SUBJECT_SLOTS, VIEW_SLOTS, Layout
from uvit_jax.tokens.positions import (
    position_ids,
    resized,
    shares,
    sincos,
    sincos_of,
)
from uvit_jax.tokens.segment import Segment, normal


class Embedded(NamedTuple):
    """The backbone's inputs.

    Attributes:
      tokens_BND: the sequence.
      modulation_BD: the sum of the segments that enter by adaLN, if there are any.
      clean_1D: the same at time 0, for segments with modulation='clean', if there are any.
      context_BMD: the segments that enter by cross-attention, if there are any.
      present_BN: which tokens an example has, if references are optional.
      position_ids_NA: for RoPE, (N, A), or (B, N, A) where they differ by example.
    """

    tokens_BND: jax.Array
    modulation_BD: jax.Array | None = None
    clean_1D: jax.Array | None = None
    context_BMD: jax.Array | None = None
    present_BN: jax.Array | None = None
    position_ids_NA: jax.Array | None = None


class Embed(nnx.Module):
    """`(inputs, times, layout) → Embedded`.

    Its parameters are `segments/<name>/…`, `positions/<name>` (n, D), and, where segments have
    types or slots, `types/<type>` (D,), `subjects` and `views`, a vector for each of the layout's
    `max_subjects` and `max_views`.
    """

    def __init__(self, layout: Layout, width: int, *, dtype: Any, rngs: nnx.Rngs):
        for segment in layout.segments:
            axes = len(segment.grid_axes)
            if segment.position == "sincos" and (width % 2 or min(shares(width, axes)) < 2):
                raise UvitError(
                    f"segment {segment.name!r}: position='sincos' on {axes} axes "
                    f"needs an even width of at least {2 * axes}, not {width}"
                )
        self.width = width
        self.dtype = dtype
        own = [s for s in layout.segments if not s.share]
        self.segments = nnx.Dict({s.name: s.embedding(width, dtype=dtype, rngs=rngs) for s in own})
        learned = [
            s
            for s in layout.segments
            if s.position == "learned" and s.enter != "adaln" and layout.position_source(s) is s
        ]
        self.positions = nnx.Dict(
            {s.name: nnx.Param(normal(rngs.params(), (_trained(s), width))) for s in learned}
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
    ) -> Embedded:
        """Embeds the segments of `layout`, the one that this was built for or a part of it.

        Without `times`, only tokens are embedded, none of which may be a timestep.
        """

        @functools.cache
        def embedded(segment: Segment) -> jax.Array:
            data = times[segment.time] if segment.kind == "time" else inputs[segment.name]
            return self.segments[layout.source(segment).name](data).astype(self.dtype)

        def name(segment: Segment) -> jax.Array:
            """The vector (B, 1, D) of the name of a reference's subject."""
            source = layout.by_name[segment.names_from]
            names_BSN, (subject, _) = source.names_in(inputs), _slots(segment, inputs)
            own_BN = jnp.take_along_axis(names_BSN, jnp.reshape(subject, (-1, 1, 1)), axis=1)
            return jnp.matmul(own_BN.astype(self.dtype), embedded(source))

        def of_frames(segment: Segment) -> jax.Array:
            """For each patch, the camera's token of its frame, (B, N, D)."""
            frames, rows, columns = segment.grid
            tokens_BTD = tokens(layout.by_name[segment.frames_from])
            tokens_BTD = tokens_BTD[:, layout.frames_of(segment)]
            B, T, D = tokens_BTD.shape
            tokens_BGD = tokens_BTD.reshape(B, frames, T // frames, D).mean(axis=2)
            return jnp.repeat(tokens_BGD, rows * columns, axis=1)

        def tokens(segment: Segment) -> jax.Array:
            tokens_BND = embedded(segment) + self._added(segment, inputs, layout)
            if segment.frames_from:
                tokens_BND += of_frames(segment)
            return tokens_BND + name(segment) if segment.names_from else tokens_BND

        def sequence(segments: tuple[Segment, ...]) -> jax.Array:
            return jnp.concatenate([tokens(s) for s in segments], axis=1)

        modulated = bool(layout.adaln) and times is not None
        return Embedded(
            tokens_BND=sequence(layout.tokens),
            modulation_BD=sum(embedded(s)[:, 0] for s in layout.adaln) if modulated else None,
            clean_1D=self._clean_modulation(layout),
            context_BMD=sequence(layout.cross) if layout.cross else None,
            present_BN=_present(inputs, layout),
            position_ids_NA=_position_ids(inputs, layout) if layout.has_rope else None,
        )

    def _clean_modulation(self, layout: Layout) -> jax.Array | None:
        """The modulation vector (1, D) of time 0 and nothing else."""
        if not layout.adaln or not any(s.modulation == "clean" for s in layout.tokens):
            return None
        clean_1D = jnp.zeros((1, self.width), self.dtype)
        for segment in layout.adaln:
            if segment.kind == "time":
                clean_1D += self.segments[layout.source(segment).name](jnp.zeros(1))[:, 0]
        return clean_1D

    def _added(
        self, segment: Segment, inputs: Mapping[str, jax.Array], layout: Layout
    ) -> jax.Array:
        """The sum of a segment's position, type and slot vectors: (n, D), (1, D), or (B, n, D) and
        (B, 1, D) where positions or slots differ by example."""
        added = jnp.zeros((1, self.width), jnp.float32)
        if segment.position == "learned":
            source = layout.position_source(segment)
            table, trained = self.positions[source.name][...], source.trained_grid
            if segment.grid[0] < source.grid[0]:  # the first frames of what it shares with
                frames = (source.grid[0], *trained[1:])
                table, trained = resized(table, trained, frames), (segment.grid[0], *trained[1:])
                table = table[: int(np.prod(trained))]
            added += resized(table, trained, segment.grid)
        elif segment.position == "sincos" and segment.follow_camera:
            added += sincos_of(_seen_points(segment, inputs, layout), self.width)
        elif segment.position == "sincos":
            added += sincos(segment, self.width, layout.source(segment).grid_axes)
        if segment.type:
            added += self.types[segment.type][...]
        subject, view = _slots(segment, inputs)
        if segment.subject >= 0:
            added = added + self.subjects[...][subject]
        if segment.view >= 0:
            added = added + self.views[...][view]
        return added.astype(self.dtype)


class Heads(nnx.Module):
    """Tokens (B, N, D) → a float32 prediction of each noisy segment.

    Its parameters are `segments/<name>/…`; segments that share have one head.
    """

    def __init__(self, layout: Layout, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs):
        sources = dict.fromkeys(layout.source(s) for s in layout.noisy)
        self.segments = nnx.Dict(
            {s.name: s.head(width, dtype=dtype, zero=zero, rngs=rngs) for s in sources}
        )

    def __call__(self, tokens_BND: jax.Array, layout: Layout) -> dict[str, jax.Array]:
        outputs = {}
        for segment in layout.noisy:
            head = self.segments[layout.source(segment).name]
            own_BND = tokens_BND[:, layout.slices[segment.name]]
            outputs[segment.name] = head(own_BND, segment).astype(jnp.float32)
        return outputs


def _trained(segment: Segment) -> int:
    return int(np.prod(segment.trained_grid))


def _slots(segment: Segment, inputs: Mapping[str, jax.Array]) -> tuple[Any, Any]:
    """Subject and view slot of a segment: its own, or for a reference those that the inputs give
    for each example, int32 (B, 1)."""
    subject, view = segment.subject, segment.view
    if segment.is_reference and SUBJECT_SLOTS in inputs:
        subject = inputs[SUBJECT_SLOTS][:, subject, None]
    if segment.is_reference and view >= 0 and VIEW_SLOTS in inputs:
        view = inputs[VIEW_SLOTS][:, segment.subject, view, None]
    return subject, view


def _present(inputs: Mapping[str, jax.Array], layout: Layout) -> jax.Array | None:
    """Which tokens an example has: bool (B, N), or None if every example has all."""
    if PRESENT not in layout.input_shapes:
        return None
    present_BSV = jnp.asarray(inputs[PRESENT]).astype(bool)
    B = present_BSV.shape[0]

    def of(segment: Segment) -> jax.Array:
        if not segment.optional:
            return jnp.ones((B, segment.num_tokens), bool)
        present_B = present_BSV[:, segment.subject, max(segment.view, 0)]
        return jnp.broadcast_to(present_B[:, None], (B, segment.num_tokens))

    return jnp.concatenate([of(s) for s in layout.tokens], axis=1)


def _seen_points(segment: Segment, inputs: Mapping[str, jax.Array], layout: Layout) -> jax.Array:
    """Rows and columns (B, N, 2) of the points that a video's patches show in the clip's middle
    view, in patches of the trained grid; of a patch of several frames their mean."""
    camera = layout.by_name[segment.frames_from]
    frames, *grid = segment.grid
    points_nA = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 2)
    points_BTnA = camera.seen_points(inputs[camera.name], points_nA, tuple(grid))
    points_BTnA = points_BTnA[:, layout.frames_of(segment)]
    B, T, n, _ = points_BTnA.shape
    points_BFnA = points_BTnA.reshape(B, frames, T // frames, n, 2).mean(axis=2)
    scale_A = np.asarray(segment.trained_grid[1:], np.float32) / grid
    return ((points_BFnA + 0.5) * scale_A - 0.5).reshape(B, frames * n, 2)


def _position_ids(inputs: Mapping[str, jax.Array], layout: Layout) -> Any:
    """The position ids of all tokens: (N, A), or (B, N, A) with slots or cameras by example.

    A reference's number follows from its slots alone, so that absent references do not shift the
    positions of others.
    """

    grids = [s.trained_grid[1:] for s in layout.segments if s.position == "rope"]
    largest = tuple(np.max(grids, axis=0).tolist())

    def of(segment: Segment) -> Any:
        if segment.follow_camera:
            points_BNA = _seen_points(segment, inputs, layout)
            return position_ids(segment, layout.axes, points=points_BNA)
        if not segment.is_reference:
            return position_ids(segment, layout.axes)
        subject, view = _slots(segment, inputs)
        view = view if segment.view >= 0 else 0
        number = 1 + subject * max(layout.max_views, 1) + view
        number = number if np.ndim(number) == 0 else number[..., None]
        return position_ids(segment, layout.axes, number, largest)

    ids = [of(s) for s in layout.tokens]
    if all(p.ndim == 2 for p in ids):
        return np.concatenate(ids)
    B = next(p.shape[0] for p in ids if p.ndim == 3)
    return jnp.concatenate([jnp.broadcast_to(p, (B, *p.shape[-2:])) for p in ids], axis=1)
