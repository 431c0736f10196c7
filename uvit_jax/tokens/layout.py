"""A layout: the ordered segments of one token sequence, checked once, when the model is built.

    layout = Layout([Time(name="time", time="image"),
                     Patches(name="image", role="noisy", shape=(32, 32, 4))])
    layout.num_tokens, layout.slices["image"], layout.visibility()

A layout is static: it holds no arrays. `embed.py` has the modules.
"""

import copy
import functools
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from uvit_jax.errors import UvitError, nearest
from uvit_jax.tokens import windows
from uvit_jax.tokens.positions import AXES, grid_axes
from uvit_jax.tokens.segment import NAME_TOKENS, Segment

PRESENT = "refs_present"  # the input that says which references an example has, bool (B, S, V)
SUBJECT_SLOTS, VIEW_SLOTS = "subject_slots", "view_slots"  # int32 (B, S) and (B, S, V)


class Layout:
    """The ordered segments of a sequence.

    Args:
      segments: in the order of the sequence.
      max_subjects, max_views: sizes of the learned tables of subject and view slots, so that the
        parameters serve layouts of more subjects and views than were trained; 0 stands for as many
        as the segments have.
      axes: the axes of `positions.AXES` that rotary positions use; empty for those of the grids of
        the segments with position='rope' (rows and columns of images, and frames of videos).

    Attributes:
      segments: all of them. `tokens`, `adaln` and `cross`: those that enter in that way. `noisy`:
        those with an output. `inputs`: those whose data are inputs (all but timesteps).
        `references`: the clean ones with a slot.
      num_tokens: N, the length of the sequence.
      slices: each token segment's part of it.
      time_keys: the keys of `times`, sorted.
      num_subjects, num_views: S and V, of the references.

    Raises:
      UvitError: if the segments do not make a sequence, naming the segment and the remedy.
    """

    def __init__(
        self,
        segments: Iterable[Segment],
        *,
        max_subjects: int = 0,
        max_views: int = 0,
        axes: Sequence[str] = (),
    ):
        self.segments = tuple(segments)
        self.by_name = {s.name: s for s in self.segments}
        if reserved := {PRESENT, SUBJECT_SLOTS, VIEW_SLOTS, NAME_TOKENS} & self.by_name.keys():
            raise UvitError(f"{reserved.pop()!r} is an input of references; rename the segment")
        names = [s.name for s in self.segments]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise UvitError(f"the layout has two segments named {repeated[0]!r}; rename one")
        self.adaln = tuple(s for s in self.segments if s.enter == "adaln")
        self.cross = tuple(s for s in self.segments if s.enter == "cross")
        self._select(self.segments)
        self.time_keys = tuple(sorted({s.time_key for s in self.noisy}))
        self.axes = tuple(axes) or grid_axes(self.segments)
        subjects = 1 + max((s.subject for s in self.segments), default=-1)
        views = 1 + max((s.view for s in self.segments), default=-1)
        self.max_subjects, self.max_views = max_subjects or subjects, max_views or views
        self._check_times()
        for segment in self.segments:
            self._check_entry(segment)
            self._check_names(segment)
        self._check_slots(subjects, views)
        self._check_axes()

    def _select(self, segments: tuple[Segment, ...]) -> None:
        """Sets the attributes that depend on which segments are in the sequence."""
        self.tokens = tuple(s for s in segments if s.enter == "token")
        self.noisy = tuple(s for s in segments if s.role == "noisy")
        self.inputs = tuple(s for s in segments if s.kind != "time")
        self.references = tuple(s for s in segments if s.is_reference)
        self.num_subjects = 1 + max((s.subject for s in self.references), default=-1)
        self.num_views = 1 + max((max(s.view, 0) for s in self.references), default=-1)
        self.slices = {}
        start = 0
        for segment in self.tokens:
            self.slices[segment.name] = slice(start, start + segment.num_tokens)
            start += segment.num_tokens
        self.num_tokens = start

    @property
    def _identity(self) -> tuple:
        return (self.segments, self.tokens, self.max_subjects, self.max_views, self.axes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        parts = [f"{s.name}×{s.num_tokens}" for s in self.tokens]
        parts += [f"{s.name}→{s.enter}" for s in (*self.adaln, *self.cross)]
        return f"Layout({', '.join(parts)})"

    def source(self, segment: Segment) -> Segment:
        """The segment whose parameters this one uses: its own, or those of the one it shares."""
        return self.by_name[segment.share] if segment.share else segment

    def position_source(self, segment: Segment) -> Segment:
        """The segment whose learned positions this one uses: those of the one it shares, unless it
        begins at another frame."""
        source = self.source(segment)
        return source if source.start == segment.start else segment

    @property
    def name_sources(self) -> tuple[Segment, ...]:
        """The texts from which references take the vectors of their subjects' names."""
        names = dict.fromkeys(s.names_from for s in self.references if s.names_from)
        return tuple(self.by_name[name] for name in names)

    def setting(self, sets: str) -> Segment | None:
        """The segment with the sampler's `interval` or `guidance` (see `SettingToken`), if any."""
        return next((s for s in self.inputs if getattr(s, "sets", "") == sets), None)

    @property
    def noisy_images(self) -> tuple[Segment, ...]:
        """The images and videos that are denoised."""
        return tuple(s for s in self.noisy if s.kind == "patches")

    @property
    def conditions(self) -> tuple[Segment, ...]:
        """The inputs that are not denoised and have no default."""
        return tuple(s for s in self.inputs if s.role != "noisy" and s.default(1) is None)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs that a caller must give, with their shapes without the batch."""
        shapes = {s.name: s.input_shape for s in self.inputs if s.default(1) is None}
        if any(s.optional for s in self.references):
            shapes[PRESENT] = (self.num_subjects, self.num_views)
        if any(source.kind == "features" for source in self.name_sources):
            shapes[NAME_TOKENS] = (self.max_subjects,)
        return shapes

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """`input_shapes` without the noisy segments."""
        noisy = {s.name for s in self.noisy}
        return {name: shape for name, shape in self.input_shapes.items() if name not in noisy}

    @property
    def optional_shapes(self) -> dict[str, tuple[int, ...]]:
        """The optional inputs: segments with a default, and those that assign references to other
        slots than their segments'."""
        shapes = {s.name: s.input_shape for s in self.inputs if s.default(1) is not None}
        if self.references:
            shapes[SUBJECT_SLOTS] = (self.num_subjects,)
            shapes[VIEW_SLOTS] = (self.num_subjects, self.num_views)
        return shapes

    def defaults(self, batch_size: int) -> dict[str, np.ndarray]:
        """The data of the segments that have a default, leaves (batch_size, …)."""
        values = {s.name: s.default(batch_size) for s in self.inputs}
        return {name: value for name, value in values.items() if value is not None}

    def inputs_in(self, batch: Container[str]) -> list[str]:
        """The names of this layout's inputs in a batch, optional ones included."""
        return [name for name in (*self.input_shapes, *self.optional_shapes) if name in batch]

    def conditions_in(self, batch: Container[str]) -> list[str]:
        """`inputs_in` without the noisy segments."""
        noisy = {s.name for s in self.noisy}
        return [name for name in self.inputs_in(batch) if name not in noisy]

    @functools.cached_property
    def without_references(self) -> "Layout":
        """The same sequence without references, for the same parameters."""
        return self._part(tuple(s for s in self.segments if not s.is_reference))

    def without_noisy(self, names: Collection[str]) -> "Layout":
        """The same sequence without some of its noisy segments, and without times that only they
        have, for the same parameters.

        Raises:
          UvitError: if no noisy segment is left.
        """
        kept = {s.time_key for s in self.noisy if s.name not in names}
        if not kept:
            raise UvitError(f"without {', '.join(sorted(names))} there is nothing to generate")
        segments = tuple(
            s
            for s in self.segments
            if (s.time in kept if s.kind == "time" else s.name not in names)
        )
        part = self._part(segments)
        part.segments, part.time_keys = segments, tuple(sorted(kept))
        part.adaln = tuple(s for s in self.adaln if s in segments)
        return part

    @functools.cached_property
    def only_references(self) -> "Layout":
        """The references as a sequence of their own, for the same parameters.

        Raises:
          UvitError: if they are not the same at every step of sampling, saying why.
        """
        if not self.references:
            raise UvitError("the model has no references (clean segments with a slot) to cache")
        if reason := self.changing_references():
            raise UvitError(f"references cannot be cached: {reason}")
        part = self._part(self.references)
        part.inputs = (*self.name_sources, *self.references)
        return part

    def changing_references(self) -> str:
        """Why the references' keys and values change while the target is denoised; "" if they do
        not."""
        for segment in self.references:
            for other in self.tokens:
                if segment.may_see(other) and not other.is_reference:
                    return (
                        f"segment {segment.name!r} sees {other.name!r}, which depends on the "
                        "target; restrict its `sees` to references (visibility 'ref_isolated' or "
                        "'ref_joint')"
                    )
            if self.adaln and segment.modulation != "clean":
                return (
                    f"segment {segment.name!r} is modulated by the target's time; set its "
                    "modulation to 'clean'"
                )
        if self.references and self.cross:
            return f"every token attends to segment {self.cross[0].name!r}, which enters by 'cross'"
        return ""

    def _part(self, segments: tuple[Segment, ...]) -> "Layout":
        part = copy.copy(self)
        for name in ("without_references", "only_references"):
            part.__dict__.pop(name, None)
        part._select(segments)
        return part

    def visibility(self, *, cached: bool = False) -> np.ndarray | None:
        """The attention mask: bool (N queries, M keys), or None if every token sees every token.

        Args:
          cached: whether the keys of all references stand before those of this sequence's tokens.
        """
        if not any(s.sees for s in self.tokens):
            return None
        references = [s for s in self.segments if s.is_reference] if cached else []
        keys = (*references, *self.tokens)
        rows = [
            np.concatenate([np.full(key.num_tokens, query.may_see(key)) for key in keys])
            for query in self.tokens
        ]
        return np.repeat(rows, [s.num_tokens for s in self.tokens], axis=0)

    def windows(self, *, cached: bool = False) -> tuple[windows.Group, ...] | None:
        """Which queries see which keys by `Patches.window`; None if no clip has windows.

        Args:
          cached: see `visibility`.
        """
        references = [s for s in self.segments if s.is_reference] if cached else []

        def windowed(segment: Segment) -> windows.Windowed:
            clip = segment.role == "noisy" and self.source(segment).window
            first = self.frames_of(segment).start if clip else 0
            return segment, self.source(segment), first

        keys = [windowed(s) for s in (*references, *self.tokens)]
        return windows.groups([windowed(s) for s in self.tokens], keys)

    @property
    def gated(self) -> bool:
        """Whether any reference of the model is attended to through gates."""
        return any(s.gated for s in self.segments)

    def gated_keys(self, *, cached: bool = False) -> np.ndarray | None:
        """Which keys are of gated references, bool (M,); None if no other token attends to one.

        Args:
          cached: see `visibility`.
        """
        references = [s for s in self.segments if s.is_reference] if cached else []
        keys = (*references, *self.tokens)
        if not any(s.gated for s in keys) or all(s.gated for s in self.tokens):
            return None
        return np.repeat([s.gated for s in keys], [s.num_tokens for s in keys])

    @property
    def has_rope(self) -> bool:
        """Whether any token has rotary positions."""
        return any(s.position == "rope" for s in self.segments)

    def check_ids(self, inputs: Mapping[str, Any]) -> None:
        """Raises UvitError if an index among the inputs is no row of its table: JAX would count a
        negative one from the end, silently.

        Args:
          inputs: by name; not all need be there. Arrays that `jit` traces have no values and pass.
        """
        sizes = {s.name: s.num_ids for s in self.inputs if s.num_ids is not None}
        sizes |= {SUBJECT_SLOTS: self.max_subjects, VIEW_SLOTS: max(self.max_views, 1)}
        for name, size in sizes.items():
            values = inputs.get(name)
            if values is None or isinstance(values, jax.core.Tracer):
                continue
            if isinstance(values, jax.Array) and not values.is_fully_addressable:
                continue
            values = np.asarray(values)
            wrong = np.argwhere((values < 0) | (values >= size))
            if len(wrong):
                index = tuple(wrong[0].tolist())
                raise UvitError(
                    f"inputs[{name!r}] has {values[index]} at {list(index)}, which is not an index "
                    f"from 0 to {size - 1}; correct or remove that example"
                )

    def null(
        self, name: str, batch_size: int, features_null: np.ndarray | None = None
    ) -> np.ndarray:
        """The value of segment `name` that stands for "not given" in classifier-free guidance:
        (batch_size, …).

        Args:
          features_null: (N, F), a text encoder's features of the empty text, for segments of
            features (`Vocabulary.null_features`).

        Raises:
          UvitError: if the segment has none.
        """
        segment = self.by_name[name]
        value = segment.null(batch_size)
        if value is None and segment.kind == "features" and features_null is not None:
            value = np.broadcast_to(features_null, (batch_size, *features_null.shape))
        if value is None:
            raise UvitError(
                f"segment {name!r} has no null value, so it cannot be dropped or guided"
                f"{segment.null_remedy}"
            )
        return value

    def _check_times(self) -> None:
        if not self.noisy:
            raise UvitError("the layout has no segment with role='noisy': nothing to generate")
        embedded = {s.time for s in self.segments if s.kind == "time"}
        for key in self.time_keys:
            if key not in embedded:
                raise UvitError(
                    f"no time segment embeds the time {key!r}; add one with kind='time', "
                    f"time={key!r}"
                )

    def _check_entry(self, segment: Segment) -> None:
        if segment.enter == "adaln" and segment.num_tokens != 1:
            raise UvitError(
                f"segment {segment.name!r}: {segment.num_tokens} tokens cannot be summed into one "
                "modulation vector; use enter='token'"
            )

    def _check_names(self, segment: Segment) -> None:
        """Raises UvitError if the segments and times that a segment names do not exist."""
        where = f"segment {segment.name!r}"
        if segment.modulation == "clean" and not self.adaln:
            raise UvitError(f"{where}: modulation='clean' needs segments with enter='adaln'")
        if segment.kind == "time" and segment.time not in self.time_keys:
            raise UvitError(
                f"{where}: time={segment.time!r} is the time of no noisy segment"
                f"{nearest(segment.time, self.time_keys)}"
            )
        for name in segment.sees:
            if name not in self.by_name or self.by_name[name].enter != "token":
                hint = nearest(name, [s.name for s in self.tokens])
                raise UvitError(f"{where}: sees={name!r} is not a token segment{hint}")
        if segment.names_from:
            self._check_name_source(segment)
        if segment.frames_from:
            self._check_frame_source(segment)
        if not segment.share:
            return
        source = self.by_name.get(segment.share)
        if source is None:
            hint = nearest(segment.share, self.by_name)
            raise UvitError(f"{where}: share={segment.share!r} is not a segment{hint}")
        if source.share or not segment.fits(source):
            raise UvitError(
                f"{where}: share={segment.share!r} must name a segment with parameters of its own "
                f"and the same kind, enter, channels, {', '.join(segment.shared_fields(source))}"
            )
        learned = segment.position == "learned" and self.position_source(segment) is source
        if learned and source.position != "learned":
            raise UvitError(
                f"{where}: position='learned' shares the positions of {source.name!r}, which has "
                f"position={source.position!r}; give both the same"
            )

    def frames_of(self, segment: Segment) -> slice:
        """The frames that a noisy video has of its clip, which is all noisy videos with the same
        parameters and camera, in the order of the sequence."""

        def clip(part: Segment) -> tuple:
            return part.role, self.source(part), part.frames_from

        first = 0
        for name, part in self.by_name.items():
            if name == segment.name:
                break
            first += part.shape[0] if clip(part) == clip(segment) else 0
        return slice(first, first + segment.shape[0])

    def _check_frame_source(self, segment: Segment) -> None:
        where = f"segment {segment.name!r}: frames_from={segment.frames_from!r}"
        cameras = {s.name: s for s in self.segments if s.kind == "camera"}
        source = cameras.get(segment.frames_from)
        if source is None:
            raise UvitError(f"{where} is not a camera{nearest(segment.frames_from, cameras)}")
        if segment.follow_camera and not source.is_planar:
            raise UvitError(
                f"{where} has {source.shape[1]} features, and follow_camera=True needs the 5 of a "
                "planar camera (given, x, y, zoom, roll)"
            )
        if segment.position == "sincos" and source.position not in ("learned", "sincos"):
            raise UvitError(
                f"{where} has position={source.position!r}, which gives sin-cos patches no "
                "position of their frame; set it to 'learned'"
            )
        shared = self.source(segment)
        if segment.role == shared.role and bool(shared.frames_from) != bool(segment.frames_from):
            raise UvitError(
                f"{where}, and {shared.name!r}, whose parameters it shares, has none; give both one"
            )
        if segment.role == shared.role and shared.follow_camera != segment.follow_camera:
            raise UvitError(
                f"segment {segment.name!r}: follow_camera={segment.follow_camera}, and of "
                f"{shared.name!r}, whose parameters it shares, {shared.follow_camera}; make them "
                "equal"
            )
        if (count := self.frames_of(segment).stop) > source.shape[0]:
            raise UvitError(
                f"{where} has {source.shape[0]} frames, and the clip {count}; give it as many"
            )

    def _check_name_source(self, segment: Segment) -> None:
        where = f"segment {segment.name!r}: names_from={segment.names_from!r}"
        texts = [s for s in self.segments if type(s).names_in is not Segment.names_in]
        source = next((s for s in texts if s.name == segment.names_from), None)
        if source is None:
            hint = nearest(segment.names_from, [s.name for s in texts])
            raise UvitError(f"{where} is not a segment of text or features{hint}")
        if source.role != "condition" or source.enter == "adaln":
            raise UvitError(
                f"{where} needs role='condition' and enter='token' or 'cross' there, got "
                f"{source.role!r} and {source.enter!r}"
            )
        if source.kind == "text" and len(source.names) < self.max_subjects:
            raise UvitError(
                f"{where} has names={source.names}, fewer than max_subjects={self.max_subjects}; "
                "give the id of each subject's name"
            )

    def _check_slots(self, subjects: int, views: int) -> None:
        """Raises UvitError if the references' slots do not exist or are taken twice."""
        for slot, found, limit, key in (
            ("subject", subjects, self.max_subjects, "max_subjects"),
            ("view", views, self.max_views, "max_views"),
        ):
            if found > limit:
                last = next(s for s in self.segments if getattr(s, slot) == found - 1)
                raise UvitError(
                    f"segment {last.name!r} needs {slot} slot {found}, and the model has {limit}; "
                    f"raise {key} before training, or use fewer"
                )
        taken: dict[tuple[int, int], str] = {}
        for segment in self.references:
            other = taken.setdefault((segment.subject, max(segment.view, 0)), segment.name)
            if other != segment.name:
                raise UvitError(
                    f"segments {other!r} and {segment.name!r} have the same slot, {segment.slot}"
                )

    def _check_axes(self) -> None:
        for axis in self.axes:
            if axis not in AXES:
                raise UvitError(f"axes: {axis!r} is not a known axis{nearest(axis, AXES)}")
        if len(set(self.axes)) < len(self.axes):
            raise UvitError(f"axes must be different ones of {AXES}, got {self.axes}")
        if not self.has_rope and self.axes != ("row", "column"):
            raise UvitError(f"axes={self.axes} need a segment with position='rope'")
