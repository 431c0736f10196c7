"""A segment: one entry of the token sequence, as static configuration.

Timestep, class label, caption, reference image, the image or video being generated: each is a
segment, and each kind of them is one small dataclass in `modalities/`, which declares its own
fields and knows its token grid, its embedding, its output head and its null value. Layout and
backbone use only what the base class has, so a new kind touches one file:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Colour(Segment):
        kind: Literal["colour"] = "colour"

        def embedding(self, width, *, dtype, rngs):
            return nnx.Linear(3, width, dtype=dtype, rngs=rngs)
        …
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import nnx

from uvit_jax.config import Config, brief
from uvit_jax.errors import UvitError

KINDS: dict[str, type["Segment"]] = {}
"""The segment classes by kind, the key `kind` of a segment's config."""

# PyTorch's trunc_normal_(std=.02) cuts at the absolute values ±2, a hundred standard deviations
# away: the published models start from the plain normal distribution.
normal = nnx.initializers.normal(0.02)

NAME_TOKENS = "name_tokens"  # the input with the position of each subject's name in features

Grid = tuple[int, int, int]
"""Tokens along (frames, rows, columns)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment(Config):
    """What all kinds of segments have in common.

    Attributes:
      name: its key in `inputs` and `outputs`.
      kind: the name of its class in `KINDS`.
      role: `noisy` (denoised: it has a timestep and an output head), `clean` (data at t = 0, such
        as references) or `condition`.
      enter: `token` (part of the sequence), `adaln` (added to the vector that modulates the blocks)
        or `cross` (attended to by cross-attention).
      position: `learned` (a vector for each token), `sincos` (fixed, from the grid), `rope`
        (rotary, from the grid) or `none`.
      time: of a noisy segment its key in `times`; empty stands for its name. Segments with one key
        share a timestep. Of a time segment, the key that it embeds.
      share: the segment whose embedding, learned positions and output head it uses as well (the
        references of one kind, the frames of one video).
      type: segments with one type have one learned vector added; empty for none.
      slot: (subject,) or (subject, view), from 0: a learned vector of each is added. A clean
        segment with a slot is a reference.
      names_from: of a reference, the text whose vector at its subject's name is added to its tokens
        (see `Text.names`); empty for none.
      optional: of a reference, whether examples may lack it; the input `refs_present` says which
        do.
      gated: of a reference, whether all that is not a gated reference attends to it through gates,
        one a head, that start closed: a trained model to which it is added predicts as before.
      sees: the segments that its tokens attend to, besides their own; empty for all.
      modulation: in an adaLN backbone, `time` modulates its tokens by all that enters by `adaln`,
        `clean` by the embedding of time 0 alone, as befits clean data (OminiControl, Tan et al.
        2024).

    Raises:
      UvitError: for a combination that cannot work, naming the segment, the field and the remedy.
    """

    integers: ClassVar[bool] = False
    """Whether its data are integers (class indices, token ids) rather than floating point."""
    null_remedy: ClassVar[str] = ""
    """What to do where `null` is None and one is needed, for the error message."""

    # Fields of some kinds, and what stands for them in the others.
    shape = ()
    start = 0
    frames_from = ""
    follow_camera = False
    window = 0
    offset = "none"
    learned_range = False

    name: str = ""
    kind: str = ""
    role: Literal["noisy", "clean", "condition"] = "condition"
    enter: Literal["token", "adaln", "cross"] = "token"
    position: Literal["learned", "sincos", "rope", "none"] = "learned"
    time: str = ""
    share: str = ""
    type: str = ""
    slot: tuple[int, ...] = ()
    names_from: str = ""
    optional: bool = False
    gated: bool = False
    sees: tuple[str, ...] = ()
    modulation: Literal["time", "clean"] = "time"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind := cls.__dict__.get("kind"):
            KINDS[kind] = cls

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise UvitError(f"a segment of kind {self.kind!r} has no name")
        if problem := self._problem() or self.problem():
            raise UvitError(f"segment {self.name!r}: {problem}")

    # What a kind defines.

    def problem(self) -> str:
        """What is wrong with the kind's own fields and how to fix it; "" if nothing is."""
        return ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example's data, without the batch."""
        return self.shape

    @property
    def num_ids(self) -> int | None:
        """Of integer data, the number of rows of their table; None for others."""
        return None

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one example in a data set, which `encoded` makes `input_shape`."""
        return self.input_shape

    def encoded(self, data: Any) -> Any:
        """A data set's batch (B, *data_shape) as the model's input (B, *input_shape); that itself
        is returned as it is."""
        return data

    @property
    def grid(self) -> Grid:
        """Its tokens along frames, rows and columns, in the order of the sequence."""
        return (1, 1, 1)

    @property
    def grid_axes(self) -> tuple[int, ...]:
        """The axes of `grid` along which its tokens have positions: those that are longer than 1,
        or the last."""
        return tuple(i for i, size in enumerate(self.grid) if size > 1) or (2,)

    @property
    def trained_grid(self) -> Grid:
        """The grid that its positions belong to; those of another grid are interpolated."""
        return self.grid

    @property
    def frames_per_token(self) -> int:
        """The distance of its tokens on the frame axis."""
        return 1

    def embedding(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        """A module from a batch of its data to tokens (B, n, width)."""
        raise NotImplementedError

    def head(self, width: int, *, dtype: Any, zero: bool, rngs: nnx.Rngs) -> nnx.Module | None:
        """A module `(tokens (B, n, width), segment) → prediction`, shaped like the data; None if
        this kind cannot be denoised. `zero`: starts with an output of 0."""
        return None

    def names_in(self, inputs: Mapping[str, jax.Array]) -> jax.Array | None:
        """Which of its tokens name which subject: float (B, S, n), rows that sum to 1, or to 0 for
        subjects that it does not name; None if it names none."""
        return None

    def default(self, batch_size: int) -> np.ndarray | None:
        """The data where the inputs have none, (batch_size, …), so that they may be left out; None
        if they are required."""
        return None

    def null(self, batch_size: int) -> np.ndarray | None:
        """The data that stand for "not given" in classifier-free guidance, (batch_size, …); None if
        there are none."""
        return None

    # What follows from it.

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return math.prod(self.grid)

    @property
    def time_key(self) -> str:
        """The key in `times` of a noisy segment."""
        return self.time or self.name

    @property
    def subject(self) -> int:
        """Its subject slot, -1 for none."""
        return self.slot[0] if self.slot else -1

    @property
    def view(self) -> int:
        """Its view slot, -1 for none."""
        return self.slot[1] if len(self.slot) > 1 else -1

    @property
    def is_reference(self) -> bool:
        """Whether it shows a subject: clean tokens with a slot."""
        return self.role == "clean" and self.enter == "token" and bool(self.slot)

    def fits(self, other: "Segment") -> bool:
        """Whether it can use the parameters of `other` (see `share`)."""
        same = (self.kind, self.enter) == (other.kind, other.enter)
        if not same or self.input_shape[-1:] != other.input_shape[-1:]:
            return False
        fields = self.shared_fields(other)
        return all(getattr(self, name) == getattr(other, name) for name in fields)

    def shared_fields(self, other: "Segment") -> tuple[str, ...]:
        """The kind's own fields that parameters depend on, and that it needs in common with a
        segment of its kind to share them."""
        own = {f.name for f in dataclasses.fields(self)} - {
            f.name for f in dataclasses.fields(Segment)
        }
        return tuple(sorted(own - {"kind", "shape", "trained_shape", "init_std", "default_class"}))

    def may_see(self, other: "Segment") -> bool:
        """Whether its tokens may attend to those of `other`."""
        return not self.sees or other.name in self.sees or other.name == self.name

    def _problem(self) -> str:
        if len(self.shape) > 4:
            return f"shape must have at most four axes, got {brief(self.shape)}"
        if self.role == "noisy" and type(self).head is Segment.head:
            return f"the kind {self.kind!r} has no output head and cannot have role='noisy'"
        if self.role == "noisy" and self.enter != "token":
            return "role='noisy' needs enter='token', which its prediction is read from"
        if self.time and self.role != "noisy" and self.kind != "time":
            return f"time={self.time!r} needs role='noisy'"
        if len(self.slot) > 2 or any(s < 0 for s in self.slot):
            return f"slot={brief(self.slot)} must be (subject,) or (subject, view), from 0"
        if self.enter != "token" and (self.sees or self.type or self.slot):
            return "sees, type and slot need enter='token'"
        if self.optional and not self.is_reference:
            return "optional=True is for references: role='clean' and a slot"
        if self.gated and not self.is_reference:
            return "gated=True is for references: role='clean' and a slot"
        if self.names_from and not self.is_reference:
            return "names_from is for references: role='clean' and a slot"
        if self.modulation == "clean" and self.role != "clean":
            return "modulation='clean' needs role='clean'"
        if self.position == "rope" and self.enter != "token":
            return "position='rope' needs enter='token'"
        if self.position in ("sincos", "rope") and type(self).grid is Segment.grid:
            return f"position={self.position!r} needs a grid of tokens; use 'learned' or 'none'"
        if self.slot and self.role == "noisy":
            return "slot is for clean segments and conditions, not for role='noisy'"
        if self.is_reference and self.integers:
            return f"the kind {self.kind!r} cannot be a reference (role='clean' with a slot)"
        return ""
