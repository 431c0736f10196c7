"""Converts model configs of earlier run directories to the current keys.

Until version 0.1 a segment was one flat set of thirty fields with a `modality`, all of which are in
a run directory's config.json. Fields that a kind does not have had no effect, and are
dropped.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.tokens.segment import KINDS

_KINDS = {"image": "patches"}
_KEYS = {"positions": "position", "like": "share", "null": "null_class"}
_VALUES = {
    "position": {"sincos2d": "sincos", "rotary": "rope"},
    "modulation": {"target": "time", "zero": "clean"},
}
_UNUSED = (
    "shape", "patch_size", "patch_embed", "patch_init", "num_classes", "init_std", "null_class",
    "vocab_size", "encoder_depth", "encoder_heads", "pooled", "sinusoid_size", "mlp_ratio",
    "final_conv", "learned_range", "offset",
)  # fmt: skip


def upgraded_segment(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A segment's config with the current keys; one without a `modality` is returned unchanged.

    Raises:
      UvitError: if it has a view and no subject.
    """
    if "modality" not in given:
        return dict(given)
    old = dict(given)
    modality = old.pop("modality")
    new: dict[str, Any] = {"kind": _KINDS.get(modality, modality)}
    time, of = old.pop("time", ""), old.pop("of", "")
    new["time"] = of if new["kind"] == "time" else time
    subject, view = old.pop("subject", -1), old.pop("view", -1)
    if subject >= 0:
        new["slot"] = (subject,) if view < 0 else (subject, view)
    elif view >= 0:
        raise UvitError(f"{where}: view={view} needs a subject; set slot=(SUBJECT, VIEW)")
    if "modulated_at" in old:
        new["modulation"] = old.pop("modulated_at")
    new |= {_KEYS.get(key, key): value for key, value in old.items()}
    for key, values in _VALUES.items():
        if key in new:
            new[key] = values.get(new[key], new[key])
    if new["kind"] not in KINDS:
        return new
    fields = {field.name for field in dataclasses.fields(KINDS[new["kind"]])}
    for key in [key for key in new if key not in fields and key in _UNUSED]:
        del new[key]
    return new
