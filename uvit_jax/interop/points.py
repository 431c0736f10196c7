"""Which model is a point of which published family, and in what two models differ.

What decides is maths: the fields that leave parameters and outputs as they are do not count.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.models.model_config import BackboneConfig, ModelConfig
from uvit_jax.tokens.segment import Segment

# How a model is computed and how its training starts, but not what it computes.
INDIFFERENT = {
    "": ("dtype",),
    "backbone": ("attention", "products", "scan", "unroll", "remat", "init"),
    "segments": ("patch_init", "init_std"),
}


def differing(ours: ModelConfig, theirs: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two models differ as functions, with both values."""
    a, b = _flat(ours), _flat(theirs)
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def told(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """`differing`'s result as text: `backbone.depth (12, not 16), …`."""
    return ", ".join(f"{key} ({a!r}, not {b!r})" for key, (a, b) in differences.items())


def _flat(config: ModelConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {"sequence": list(config.sequence)}
    for field in dataclasses.fields(config):
        if field.name not in ("sequence", "segments", "backbone", *INDIFFERENT[""]):
            flat[field.name] = to_dict(getattr(config, field.name))
    groups = {"backbone": (config.backbone, INDIFFERENT["backbone"])}
    for name in config.sequence:
        groups[f"segments.{name}"] = (config.segments[name], INDIFFERENT["segments"])
    for prefix, (group, left_out) in groups.items():
        values = {k: v for k, v in to_dict(group).items() if k not in left_out}
        flat |= {f"{prefix}.{key}": value for key, value in values.items()}
    # Only the number of hidden units counts.
    width = config.backbone.width
    flat["backbone.mlp_ratio"] = int(width * config.backbone.mlp_ratio) / width
    return flat


def by_modality(
    config: ModelConfig, family: str, *, needed: Sequence[str], other: Sequence[str]
) -> dict[str, Segment]:
    """A model's segments by modality.

    Args:
      family: its name, for messages. needed, other: the modalities that it has and may have.

    Raises:
      UvitError: if there are others, or two of one kind, or one is missing; or if the picture is
        not square.
    """
    found: dict[str, Segment] = {}
    for name in config.sequence:
        segment = config.segments[name]
        if segment.modality not in (*needed, *other):
            raise UvitError(
                f"this model is no {family}: segment {name!r} is a {segment.modality}, and a "
                f"{family} has {', '.join((*needed, *other))} only"
            )
        if segment.modality in found:
            raise UvitError(
                f"this model is no {family}: {name!r} and {found[segment.modality].name!r} are "
                f"both of modality {segment.modality}"
            )
        found[segment.modality] = segment
    for modality in needed:
        if modality not in found:
            raise UvitError(f"this model is no {family}: it has no segment for {modality}")
    height, width, _ = found["image"].shape
    if height != width:
        raise UvitError(
            f"this model is no {family}: its pictures, {height}×{width}, are no squares"
        )
    return found


def sizes(backbone: BackboneConfig) -> dict[str, Any]:
    """The backbone's keys that say how large it is."""
    keys = ("width", "depth", "num_heads", "mlp_ratio")
    return {key: getattr(backbone, key) for key in keys}


def renamed(model: dict[str, Any], names: Mapping[str, Segment]) -> dict[str, Any]:
    """A preset with its segments named as those of the same modality in `names`."""
    new = {old: names[s["modality"]].name for old, s in model["segments"].items()}
    segments = {new[old]: dict(segment) for old, segment in model["segments"].items()}
    image = names["image"]
    segments[image.name]["time"] = image.time
    segments[names["time"].name]["of"] = image.time_key
    return {**model, "segments": segments, "sequence": tuple(new[n] for n in model["sequence"])}
