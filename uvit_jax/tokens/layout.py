"""A layout: the ordered segments of one token sequence, checked once, when the model is built.

    layout = Layout([Segment(name="time", modality="time", of="image"),
                     Segment(name="image", modality="image", role="noisy", shape=(32, 32, 4))])
    layout.num_tokens, layout.slices["image"], layout.visibility()

A layout is static: it holds no arrays and does no computation on them. `embed.py` turns it into
modules.
"""

import copy
import functools
from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.tokens import checks
from uvit_jax.tokens.modalities import MODALITIES
from uvit_jax.tokens.segment import AXES, Segment

PRESENT = "refs_present"  # the input that says which references an example has, bool (B, S, V)
SUBJECT_SLOTS, VIEW_SLOTS = "subject_slots", "view_slots"  # int32 (B, S) and (B, S, V)


class Layout:
    """The ordered segments of a sequence.

    Args:
      segments: in the order of the sequence.
      max_subjects, max_views: sizes of the tables of slots, so that parameters fit layouts of more
        subjects and views than they were trained in; 0 is as many as the segments name.
      axes: those of `AXES` along which rotary positions turn.

    Attributes:
      segments: all of them. `tokens`, `adaln` and `cross` are those that enter each way, `noisy`
        those with an output, `inputs` those whose data the caller gives (all but times),
        `references` the clean ones in a subject slot.
      num_tokens: N, the length of the sequence.
      slices: where each token segment stands in it.
      time_keys: the keys of `times`, sorted.
      num_subjects, num_views: S and V, of the references here.

    Raises:
      UvitError: if the segments do not make a sequence, naming the segment and the remedy.
    """

    def __init__(
        self,
        segments: Iterable[Segment],
        *,
        max_subjects: int = 0,
        max_views: int = 0,
        axes: Sequence[str] = ("row", "column"),
    ):
        self.segments = tuple(segments)
        self.axes = tuple(axes)
        self.by_name = {s.name: s for s in self.segments}
        for segment in self.segments:
            checks.check_segment(segment)
        names = [s.name for s in self.segments]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise UvitError(f"the layout has two segments named {repeated[0]!r}")
        self.adaln = tuple(s for s in self.segments if s.enter == "adaln")
        self.cross = tuple(s for s in self.segments if s.enter == "cross")
        self._choose(self.segments)
        self.time_keys = tuple(sorted({s.time_key for s in self.noisy}))
        if not self.noisy:
            raise UvitError("the layout has no segment with role='noisy': nothing to generate")
        timed = {s.of for s in self.segments if s.modality == "time"}
        for key in self.time_keys:
            if key not in timed:
                raise UvitError(
                    f"no time segment shows the network the time of {key!r}: "
                    f"add one with modality='time', of={key!r}"
                )
        for segment in self.segments:
            checks.check_names(self, segment)
        subjects, views = (
            1 + max(getattr(s, slot) for s in self.segments) for slot in ("subject", "view")
        )
        self.max_subjects, self.max_views = max_subjects or subjects, max_views or views
        checks.check_slots(self, subjects, views)
        checks.check_axes(self)

    def _choose(self, segments: tuple[Segment, ...]) -> None:
        """Sets what follows from which segments there are."""
        self.tokens = tuple(s for s in segments if s.enter == "token")
        self.noisy = tuple(s for s in segments if s.role == "noisy")
        self.inputs = tuple(s for s in segments if s.modality != "time")
        self.references = tuple(s for s in segments if s.is_reference)
        self.num_subjects = 1 + max((s.subject for s in self.references), default=-1)
        self.num_views = 1 + max((max(s.view, 0) for s in self.references), default=-1)
        self.slices = {}
        start = 0
        for segment in self.tokens:
            stop = start + self.count(segment)
            self.slices[segment.name] = slice(start, stop)
            start = stop
        self.num_tokens = start

    @property
    def _identity(self) -> tuple:
        sizes = (self.max_subjects, self.max_views, self.axes)
        return (self.segments, self.tokens, *sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        parts = [f"{s.name}×{self.count(s)}" for s in self.tokens]
        parts += [f"{s.name}→{s.enter}" for s in (*self.adaln, *self.cross)]
        return f"Layout({', '.join(parts)})"

    @staticmethod
    def count(segment: Segment) -> int:
        """How many tokens a segment is."""
        return MODALITIES[segment.modality].num_tokens(segment)

    def source(self, segment: Segment) -> Segment:
        """The segment whose parameters embed this one: itself, or the one it is `like`."""
        return self.by_name[segment.like] if segment.like else segment

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs that a caller must give, and their shapes without the batch."""
        shapes = {s.name: s.shape for s in self.inputs}
        if any(s.optional for s in self.references):
            shapes[PRESENT] = (self.num_subjects, self.num_views)
        return shapes

    @property
    def slot_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs by which a caller may put references into other slots than the segments'."""
        if not self.references:
            return {}
        return {
            SUBJECT_SLOTS: (self.num_subjects,),
            VIEW_SLOTS: (self.num_subjects, self.num_views),
        }

    def inputs_in(self, batch: Container[str]) -> list[str]:
        """The names of this layout's inputs that a batch holds, slots of references among them."""
        return [name for name in (*self.input_shapes, *self.slot_shapes) if name in batch]

    @functools.cached_property
    def without_references(self) -> "Layout":
        """The same sequence with no references in it, for the same parameters."""
        return self._part(tuple(s for s in self.segments if not s.is_reference))

    @functools.cached_property
    def only_references(self) -> "Layout":
        """The references as a sequence of their own, for the same parameters.

        Raises:
          UvitError: if they are not the same at every step of sampling, saying why.
        """
        if not self.references:
            raise UvitError("the model has no references (clean segments with a subject) to cache")
        reason = self.changing_references()
        if reason:
            raise UvitError(f"references cannot be cached: {reason}")
        return self._part(self.references)

    def changing_references(self) -> str:
        """Why the references' keys and values change while the target is denoised; "" if not."""
        for segment in self.references:
            for other in self.tokens:
                if segment.may_see(other) and not other.is_reference:
                    return (
                        f"segment {segment.name!r} sees {other.name!r}, which depends on the "
                        "target; give it `sees` with references alone (visibility 'ref_isolated' "
                        "or 'ref_joint')"
                    )
            if self.adaln and segment.modulated_at != "zero":
                return (
                    f"segment {segment.name!r} is modulated by the target's time; set its "
                    "modulated_at to 'zero'"
                )
        if self.references and self.cross:
            return f"every token attends to segment {self.cross[0].name!r}, which enters by 'cross'"
        return ""

    def _part(self, segments: tuple[Segment, ...]) -> "Layout":
        part = copy.copy(self)
        for name in ("without_references", "only_references"):
            part.__dict__.pop(name, None)
        part._choose(segments)
        return part

    def visibility(self, *, cached: bool = False) -> np.ndarray | None:
        """Who may attend to whom: bool (N queries, M keys), or None when everyone sees everyone.

        Args:
          cached: whether the keys of all references stand before those of this part's tokens.
        """
        if not any(s.sees for s in self.tokens):
            return None
        references = [s for s in self.segments if s.is_reference] if cached else []
        keys = (*references, *self.tokens)
        rows = [
            np.concatenate([np.full(self.count(key), query.may_see(key)) for key in keys])
            for query in self.tokens
        ]
        return np.repeat(rows, [self.count(s) for s in self.tokens], axis=0)

    @property
    def has_rotary(self) -> bool:
        """Whether any token has rotary positions."""
        return any(s.positions == "rotary" for s in self.segments)

    def places(self, segment: Segment, number: Any = 0) -> Any:
        """Where a segment's tokens stand along `axes`, for rotary positions: float32 (n, A).

        A picture's first patch stands in row and column 1; tokens of other positions stand at 0
        along all axes, where nothing is turned. Along `segment` a picture stands at its number;
        the frame is 0 as long as nothing moves.

        Args:
          number: 0, or a reference's number, 1 + subject slot · max_views + view slot. It may be an
            array (B, 1, 1), and so the places (B, n, A).
        """
        if segment.positions != "rotary":
            return np.zeros((self.count(segment), len(self.axes)), np.float32)
        rows, columns = (n // segment.patch_size for n in segment.shape[:2])
        grid_n2 = 1 + np.indices((rows, columns)).reshape(2, -1).T
        grid_n4 = np.pad(grid_n2, ((0, 0), (2, 0))).astype(np.float32)
        shift = np.array([1, 0, 0, 0], np.float32)
        if segment.offset == "diagonal":
            shift[2:] = rows, columns
        chosen = [AXES.index(axis) for axis in self.axes]
        return grid_n4[:, chosen] + number * shift[chosen]

    def null(self, name: str, batch_size: int) -> np.ndarray:
        """The value of segment `name` that stands for "not given", for classifier-free guidance.

        Raises:
          UvitError: if the segment has none.
        """
        segment = self.by_name[name]
        value = None
        if segment.modality != "time":
            value = MODALITIES[segment.modality].null(segment, batch_size)
        if value is None:
            raise UvitError(
                f"segment {name!r} has no null value, so it cannot be dropped or guided"
            )
        return value
