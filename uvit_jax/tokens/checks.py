"""What cannot be a layout, and the sentences that say so: every function raises UvitError."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvit_jax.errors import UvitError, nearest
from uvit_jax.tokens.modalities import MODALITIES
from uvit_jax.tokens.segment import (
    AXES,
    ENTRIES,
    FINAL_CONVS,
    MODULATED_AT,
    OFFSETS,
    PATCH_EMBEDS,
    PATCH_INITS,
    POSITIONS,
    ROLES,
    Segment,
)

if TYPE_CHECKING:
    from uvit_jax.tokens.layout import Layout


def check_segment(segment: Segment) -> None:
    """Whether a segment can be at all."""
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
        (segment.offset, OFFSETS, "offset"),
        (segment.modulated_at, MODULATED_AT, "modulated_at"),
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
    slots = segment.subject >= 0 or segment.view >= 0
    if segment.enter != "token" and (segment.sees or segment.type or slots):
        raise UvitError(f"{where}: sees, type, subject and view need enter='token'")
    if not segment.is_reference and (segment.optional or segment.offset != "none"):
        raise UvitError(
            f"{where}: optional and offset are for references: role='clean' and a subject"
        )
    if segment.offset != "none" and segment.positions != "rotary":
        raise UvitError(f"{where}: offset={segment.offset!r} needs positions='rotary'")
    if segment.modulated_at == "zero" and segment.role != "clean":
        raise UvitError(f"{where}: modulated_at='zero' is for clean segments")
    if segment.positions in ("sincos2d", "rotary") and segment.modality != "image":
        raise UvitError(f"{where}: positions={segment.positions!r} is for images")
    if segment.positions == "rotary" and segment.enter != "token":
        raise UvitError(f"{where}: positions='rotary' needs enter='token'")


def check_slots(layout: Layout, subjects: int, views: int) -> None:
    """Whether the slots that references name exist and are theirs alone."""
    for slot, found, limit, key in (
        ("subject", subjects, layout.max_subjects, "max_subjects"),
        ("view", views, layout.max_views, "max_views"),
    ):
        if found > limit:
            last = next(s for s in layout.segments if getattr(s, slot) == found - 1)
            raise UvitError(
                f"segment {last.name!r} needs {slot} slot {found}, and the model has {limit}; "
                f"raise {key} before training, or take fewer"
            )
    taken: dict[tuple[int, int], str] = {}
    for segment in layout.references:
        other = taken.setdefault((segment.subject, max(segment.view, 0)), segment.name)
        if other != segment.name:
            raise UvitError(
                f"segments {other!r} and {segment.name!r} stand in the same slot: subject "
                f"{segment.subject}, view {segment.view}"
            )


def check_axes(layout: Layout) -> None:
    """Whether rotary positions can turn along the axes."""
    for axis in layout.axes:
        if axis not in AXES:
            raise UvitError(f"unknown axis {axis!r}{nearest(axis, AXES)}")
    if not layout.axes or len(set(layout.axes)) < len(layout.axes):
        raise UvitError(f"axes must be different ones of {AXES}, got {layout.axes}")
    if layout.axes != ("row", "column") and not layout.has_rotary:
        raise UvitError(f"axes={layout.axes} are of positions='rotary', which no segment has")


def check_names(layout: Layout, segment: Segment) -> None:
    """Whether what a segment names is there."""
    where = f"segment {segment.name!r}"
    if segment.modality == "time" and segment.of not in layout.time_keys:
        raise UvitError(
            f"{where}: of={segment.of!r} is the time of no noisy segment"
            f"{nearest(segment.of, layout.time_keys)}"
        )
    for name in segment.sees:
        if name not in layout.by_name or layout.by_name[name].enter != "token":
            known = [s.name for s in layout.tokens]
            raise UvitError(f"{where}: sees {name!r}, no token segment{nearest(name, known)}")
    if segment.like:
        source = layout.by_name.get(segment.like)
        if source is None:
            hint = nearest(segment.like, layout.by_name)
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
