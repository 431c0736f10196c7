"""A layout: the ordered segments of one token sequence, checked once, when the model is built.

    layout = Layout([Segment(name="time", modality="time", of="image"),
                     Segment(name="image", modality="image", role="noisy", shape=(32, 32, 4))])
    layout.num_tokens, layout.slices["image"], layout.visibility()

A layout is static: it holds no arrays and does no computation on them. `embed.py` turns it into
modules.
"""

from collections.abc import Iterable

import numpy as np

from uvit_jax.errors import UvitError, nearest
from uvit_jax.tokens.modalities import MODALITIES
from uvit_jax.tokens.segment import (
    ENTRIES,
    FINAL_CONVS,
    PATCH_EMBEDS,
    PATCH_INITS,
    POSITIONS,
    ROLES,
    Segment,
)


class Layout:
    """The ordered segments of a sequence.

    Args:
      segments: in the order of the sequence.

    Attributes:
      segments: all of them. `tokens`, `adaln` and `cross` are those that enter each way, `noisy`
        those with an output, `inputs` those whose data the caller gives (all but times).
      num_tokens: N, the length of the sequence.
      slices: where each token segment stands in it.
      time_keys: the keys of `times`, sorted.

    Raises:
      UvitError: if the segments do not make a sequence, naming the segment and the remedy.
    """

    def __init__(self, segments: Iterable[Segment]):
        self.segments = tuple(segments)
        self.by_name = {s.name: s for s in self.segments}
        for segment in self.segments:
            self._check(segment)
        names = [s.name for s in self.segments]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise UvitError(f"the layout has two segments named {repeated[0]!r}")
        self.tokens = tuple(s for s in self.segments if s.enter == "token")
        self.adaln = tuple(s for s in self.segments if s.enter == "adaln")
        self.cross = tuple(s for s in self.segments if s.enter == "cross")
        self.noisy = tuple(s for s in self.segments if s.role == "noisy")
        self.inputs = tuple(s for s in self.segments if s.modality != "time")
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
            self._check_references(segment)
        self.slices = {}
        start = 0
        for segment in self.tokens:
            stop = start + self.count(segment)
            self.slices[segment.name] = slice(start, stop)
            start = stop
        self.num_tokens = start

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

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

    def visibility(self) -> np.ndarray | None:
        """Who may attend to whom: bool (N queries, N keys), or None when everyone sees everyone."""
        if not any(s.sees for s in self.tokens):
            return None
        mask_NN = np.zeros((self.num_tokens, self.num_tokens), bool)
        for segment in self.tokens:
            seen = {*segment.sees, segment.name} if segment.sees else set(self.slices)
            for name in seen:
                mask_NN[self.slices[segment.name], self.slices[name]] = True
        return mask_NN

    def coordinates(self) -> np.ndarray | None:
        """Row and column of every token for rotary positions, float32 (N, 2); None without any.

        A picture's first patch stands at (1, 1); all other tokens stand at (0, 0), where nothing
        is turned.
        """
        if not any(s.positions == "rotary" for s in self.tokens):
            return None
        places_N2 = np.zeros((self.num_tokens, 2), np.float32)
        for segment in self.tokens:
            if segment.positions == "rotary":
                rows, columns = (n // segment.patch_size for n in segment.shape[:2])
                grid = np.indices((rows, columns)).reshape(2, -1).T
                places_N2[self.slices[segment.name]] = 1 + grid
        return places_N2

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

    def _check(self, segment: Segment) -> None:
        where = f"segment {segment.name!r}"
        if not segment.name:
            raise UvitError(f"a {segment.modality} segment has no name")
        for value, known, key in (
            (segment.modality, MODALITIES, "modality"),
            (segment.role, ROLES, "role"),
            (segment.enter, ENTRIES, "enter"),
            (segment.positions, POSITIONS, "positions"),
            (segment.patch_embed, PATCH_EMBEDS, "patch_embed"),
            (segment.patch_init, PATCH_INITS, "patch_init"),
            (segment.final_conv, FINAL_CONVS, "final_conv"),
        ):
            if value not in known:
                raise UvitError(f"{where}: unknown {key} {value!r}{nearest(value, known)}")
        if any(size < 1 for size in segment.shape):
            raise UvitError(f"{where}: shape={segment.shape} must be positive numbers")
        if min(segment.mlp_ratio, segment.sinusoid_size, 1 + segment.subject, 1 + segment.view) < 0:
            raise UvitError(
                f"{where}: mlp_ratio and sinusoid_size must be at least 0, subject and view -1"
            )
        modality = MODALITIES[segment.modality]
        if problem := modality.check(segment):
            raise UvitError(f"{where}: {problem}")
        if segment.role == "noisy":
            if modality.Head is None:
                raise UvitError(f"{where}: a {segment.modality} cannot be noisy, it has no output")
            if segment.enter != "token":
                raise UvitError(f"{where}: a noisy segment is read from its tokens: enter='token'")
        if segment.enter == "adaln" and modality.num_tokens(segment) != 1:
            raise UvitError(
                f"{where}: {modality.num_tokens(segment)} tokens cannot be summed into one "
                "modulation vector; use enter='token'"
            )
        if segment.enter != "token" and (segment.sees or segment.subject >= 0 or segment.view >= 0):
            raise UvitError(f"{where}: sees, subject and view need enter='token'")
        if segment.positions in ("sincos2d", "rotary") and segment.modality != "image":
            raise UvitError(f"{where}: positions={segment.positions!r} is for images")
        if segment.positions == "rotary" and segment.enter != "token":
            raise UvitError(f"{where}: positions='rotary' needs enter='token'")

    def _check_references(self, segment: Segment) -> None:
        where = f"segment {segment.name!r}"
        if segment.modality == "time" and segment.of not in self.time_keys:
            raise UvitError(
                f"{where}: of={segment.of!r} is the time of no noisy segment"
                f"{nearest(segment.of, self.time_keys)}"
            )
        for name in segment.sees:
            if name not in self.by_name or self.by_name[name].enter != "token":
                known = [s.name for s in self.tokens]
                raise UvitError(f"{where}: sees {name!r}, no token segment{nearest(name, known)}")
        if segment.like:
            source = self.by_name.get(segment.like)
            if source is None:
                hint = nearest(segment.like, self.by_name)
                raise UvitError(f"{where}: like={segment.like!r} is no segment{hint}")
            same = (source.modality, source.shape, source.patch_size, source.enter) == (
                segment.modality,
                segment.shape,
                segment.patch_size,
                segment.enter,
            )
            if source.like or not same:
                raise UvitError(
                    f"{where}: like={segment.like!r} must name a segment with parameters of its "
                    "own and the same modality, shape, patch_size and enter"
                )
