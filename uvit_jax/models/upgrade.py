"""Converts model configs of earlier run directories to the current keys.

Until version 0.1 a segment was one flat set of thirty fields with a `modality`, all of which are in
a run directory's config.json. Fields that a kind does not have are dropped if they have their
defaults, and are an error otherwise.
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
_DEFAULTS: dict[str, Any] = {
    "shape": (),
    "patch_size": 1,
    "patch_embed": "linear",
    "patch_init": "torch",
    "num_classes": 0,
    "init_std": 1.0,
    "null_class": True,
    "vocab_size": 0,
    "encoder_depth": 0,
    "encoder_heads": 4,
    "pooled": False,
    "time": "",
    "sinusoid_size": 0,
    "mlp_ratio": 0.0,
    "final_conv": "after",
    "learned_range": False,
    "optional": False,
    "offset": "none",
}


def upgraded_segment(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A segment's config with the current keys; one without a `modality` is returned unchanged.

    Raises:
      UvitError: if a key that the kind does not have is set.
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
    for key in [key for key in new if key not in fields and key in _DEFAULTS]:
        value = new.pop(key)
        if value != _DEFAULTS[key] and list(value or ()) != list(_DEFAULTS[key] or ()):
            raise UvitError(f"{where}.{key}={value!r} is not a key of the kind {new['kind']!r}")
    return new
