"""The differences between two models as functions, for matching models to published families.

Fields that change neither parameters nor outputs are ignored.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.models.model_config import BackboneConfig, ModelConfig
from uvit_jax.tokens.segment import Segment

# Fields of precision, implementation and initialization.
_IGNORED = {
    "": ("dtype",),
    "backbone": ("attention", "products", "scan", "unroll", "remat", "init"),
    "segments": ("patch_init", "init_std"),
}


def differences(ours: ModelConfig, theirs: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two models differ as functions, with both values; a segment that
    only one of them has is one difference, of its kind and None."""
    known = {*ours.sequence} & {*theirs.sequence}
    a, b = _flat(ours, known), _flat(theirs, known)
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def as_text(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The result of `differences` as text: `backbone.depth (12, not 16), …`."""
    return ", ".join(f"{key} ({a!r}, not {b!r})" for key, (a, b) in changes.items())


def _flat(config: ModelConfig, known: Collection[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {"sequence": list(config.sequence)}
    for field in dataclasses.fields(config):
        if field.name not in ("sequence", "segments", "backbone", *_IGNORED[""]):
            flat[field.name] = to_dict(getattr(config, field.name))
    groups = {"backbone": (config.backbone, _IGNORED["backbone"])}
    for name in config.sequence:
        if name in known:
            groups[f"segments.{name}"] = (config.segments[name], _IGNORED["segments"])
        else:
            flat[f"segments.{name}"] = config.segments[name].kind
    for prefix, (group, left_out) in groups.items():
        values = {k: v for k, v in to_dict(group).items() if k not in left_out}
        flat |= {f"{prefix}.{key}": value for key, value in values.items()}
    # Ratios that give the same number of hidden units are equal.
    width = config.backbone.width
    flat["backbone.mlp_ratio"] = int(width * config.backbone.mlp_ratio) / width
    return flat


def segments_by_kind(
    config: ModelConfig, family: str, *, needed: Sequence[str], other: Sequence[str]
) -> dict[str, Segment]:
    """A model's segments by kind.

    Args:
      family: its name, for messages. needed, other: its required and optional kinds.

    Raises:
      UvitError: if a kind is missing, not supported or there twice, or the image is not square.
    """
    by_kind: dict[str, Segment] = {}
    for name in config.sequence:
        segment = config.segments[name]
        if segment.kind not in (*needed, *other):
            raise UvitError(
                f"this model is not a {family}: segment {name!r} has the kind {segment.kind!r}, "
                f"but a {family} has only {', '.join((*needed, *other))}"
            )
        if segment.kind in by_kind:
            raise UvitError(
                f"this model is not a {family}: {name!r} and {by_kind[segment.kind].name!r} are "
                f"both of kind {segment.kind!r}"
            )
        by_kind[segment.kind] = segment
    for kind in needed:
        if kind not in by_kind:
            raise UvitError(f"this model is not a {family}: it has no segment of kind {kind!r}")
    height, width = by_kind["patches"].shape[-3:-1]
    if height != width:
        raise UvitError(
            f"this model is not a {family}: its images, {height}×{width}, are not square"
        )
    return by_kind


def sizes(backbone: BackboneConfig) -> dict[str, Any]:
    """The backbone's keys for its size."""
    keys = ("width", "depth", "num_heads", "mlp_ratio")
    return {key: getattr(backbone, key) for key in keys}


def with_segment_names(model: dict[str, Any], names: Mapping[str, Segment]) -> dict[str, Any]:
    """A preset whose segments have the names (and time keys) of those in `names`, by kind."""
    new = {old: names[s["kind"]].name for old, s in model["segments"].items()}
    segments = {new[old]: dict(segment) for old, segment in model["segments"].items()}
    image = names["patches"]
    segments[image.name]["time"] = image.time
    segments[names["time"].name]["time"] = image.time_key
    return {**model, "segments": segments, "sequence": tuple(new[n] for n in model["sequence"])}
