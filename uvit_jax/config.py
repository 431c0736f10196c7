"""Configs: nested mappings in, frozen dataclasses out, every key and value checked.

A config is nested mappings: an `ml_collections.ConfigDict`, or a run directory's config.json. All
other code works with keyword-only frozen dataclasses, which `parse` builds. Enumerations are fields
annotated with `Literal`: `parse` checks them, and so does `Config` for dataclasses built in Python.
"""

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from uvit_jax.errors import UvitError, nearest

T = TypeVar("T")


class Config:
    """Base class of config dataclasses: a field annotated with `Literal` takes no other value, and
    numbers are neither infinite nor 0 in float32 unless they are 0.

    Subclasses with checks of their own call `super().__post_init__()` first.

    Raises:
      UvitError: for any other value, naming the field and the nearest known value.
    """

    def __post_init__(self) -> None:
        for name, known in _literals(type(self)).items():
            _check_literal(getattr(self, name), known, name)
        for field in dataclasses.fields(self):
            _check_float32(getattr(self, field.name), field.name)


def _literals(cls: type) -> dict[str, tuple[Any, ...]]:
    """The values that each `Literal` field of a dataclass may have."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: _known_values(hints[f.name]) for f in dataclasses.fields(cls)}
    return {name: known for name, known in fields.items() if known}


def _known_values(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, or of a union of one with None; empty for any other type."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else ()
    values = tuple(
        v for o in options if typing.get_origin(o) is Literal for v in typing.get_args(o)
    )
    return (*values, None) if values and type(None) in options else values


def _check_literal(value: Any, known: tuple[Any, ...], where: str) -> None:
    if not any(value is v or (type(value) is type(v) and value == v) for v in known):
        hint = nearest(value, [v for v in known if v is not None])
        raise UvitError(f"{where}={brief(value)} is not a known value{hint}")


def parse(cls: type[T], config: Mapping[str, Any], where: str = "config") -> T:
    """Builds the frozen dataclass `cls` from a mapping.

    Args:
      cls: a dataclass; fields that are dataclasses are parsed recursively, lists become
        tuples, and ints are accepted where floats are expected.
      config: a mapping (or ConfigDict) of the fields of `cls`; those with defaults may be absent.
      where: the dotted path of `config`, for error messages.

    Raises:
      UvitError: on an unknown or missing key, or a value of the wrong type, naming its path.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key in config:
        if key not in fields:
            raise UvitError(f"{where}.{key} is not a known key{nearest(key, fields)}")
        values[key] = _coerce(hints[key], config[key], f"{where}.{key}")
        _check_float32(values[key], f"{where}.{key}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise UvitError(f"{where}.{name} is missing")
    try:
        return cls(**values)
    except UvitError as error:
        # A class checks its own values and does not know its path in the config.
        message = str(error)
        raise UvitError(message if where in message else f"{where}: {message}") from None


def plain(config: Any, where: str = "config") -> dict[str, Any]:
    """Nested dicts for a mapping that may be, or hold, `ml_collections.ConfigDict`s.

    Raises:
      UvitError: if it is not a mapping.
    """

    def convert(value: Any) -> Any:
        # A ConfigDict is not a Mapping.
        value = value.to_dict() if hasattr(value, "to_dict") else value
        return {k: convert(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    try:
        converted = convert(config)
    except RecursionError:
        raise UvitError(f"{where} has too many levels") from None
    if not isinstance(converted, dict):
        raise UvitError(f"{where} must be a group of keys, got {brief(config)}")
    return converted


def to_dict(config: Any) -> Any:
    """The mapping that `parse` turns back into `config` (dataclasses to dicts, tuples to lists,
    recursively), as JSON gives it back."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    return config


def replaced(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config's nested dicts with the values at some dotted keys replaced.

    Raises:
      UvitError: if a parent of a key is not a group of keys.
    """
    config = plain(config)
    for key, value in changes.items():
        *groups, last = key.split(".")
        target = config
        for depth, group in enumerate(groups):
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise UvitError(f"config.{'.'.join(groups[: depth + 1])} is not a group of keys")
        target[last] = value
    return config


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if known := _known_values(hint):
        _check_literal(value, known, where)
        return value
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        rest = [o for o in options if o is not type(None)]
        return _coerce(rest[0], value, where) if len(rest) == 1 else value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise UvitError(f"{where} must be a group of keys, got {brief(value)}")
        return parse(hint, value, where)
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise UvitError(f"{where} must be a group of keys, got {brief(value)}")
        kind = typing.get_args(hint)[1]
        return {key: _coerce(kind, inner, f"{where}.{key}") for key, inner in value.items()}
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise UvitError(f"{where} must be a list, got {brief(value)}")
        inner = typing.get_args(hint)
        kind = inner[0] if inner else Any
        return tuple(_coerce(kind, v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise UvitError(f"{where} must lie within ±{MAX_INTEGER}, got {brief(value)}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise UvitError(f"{where} must be a finite number, got {value}")
    if hint in (int, float, str, bool) and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise UvitError(f"{where} must be {_ARTICLE[hint]}, got {brief(value)}")
    if isinstance(value, str) and len(value) > MAX_STRING:
        raise UvitError(f"{where} must have at most {MAX_STRING} characters, got {brief(value)}")
    return value


def brief(value: Any) -> str:
    """The `repr` of a value, for one line of an error."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits or levels
        return f"a large {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:99]}…"


def _check_float32(value: Any, where: str) -> None:
    """Raises UvitError for a number that float32, in which it is used, rounds to 0 or infinity."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_float32(inner, f"{where}.{key}")
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            _check_float32(inner, f"{where}[{i}]")
    elif isinstance(value, float) and value and not _FLOAT32[0] <= abs(value) <= _FLOAT32[1]:
        rounded = "0" if abs(value) < 1 else "not finite"
        raise UvitError(f"{where}={value} is {rounded} in float32; give another number")


MAX_INTEGER = 2**32
"""Of the integers of a config; sizes and steps are counted in 32 bits."""
MAX_STRING = 4096
"""Characters of a string in a config; the longest are paths."""
_FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # its least and greatest normal number
_UNIONS = (typing.Union, types.UnionType)
_ARTICLE = {int: "an integer", float: "a number", str: "a string", bool: "True or False"}
