"""Recognises the model of a weight file: family, size and config, from tensor names and shapes."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop import (
    compare_models,
    dit_weights,
    files,
    mapping,
    unidiffuser_weights,
    uvit_weights,
)
from uvit_jax.interop.weight_files import WeightFile
from uvit_jax.models.model import Model, Params, build
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.parallel.sharding import path_string

FAMILIES = (uvit_weights, dit_weights, unidiffuser_weights)


@dataclasses.dataclass(frozen=True)
class Recognised:
    """The model of a weight file.

    Attributes:
      config: the model's config.
      family: a module of `FAMILIES`, of the tensors' names; None for our own names.
      style: of the names, `official`, `diffusers` or `own`.
    """

    config: ModelConfig
    family: ModuleType | None = None
    style: str = "own"


def recognise(source: WeightFile, **given: int | None) -> Recognised:
    """The model of a weight file. Values of tensors are not read, only shapes.

    Args:
      given: num_heads, num_classes, image_size and text_tokens, which shapes do not imply; None if
        unknown. They take precedence over the config.json beside the tensors.

    Raises:
      UvitError: if the model is of no supported family, or shapes and arguments do not match.
    """
    config = files.own_config(source.metadata, source.path)
    if config is not None:
        return Recognised(config)
    family, style = family_of(source)
    known = {**source.hints, **{k: v for k, v in given.items() if v is not None}}
    try:
        config = family.describe(source.tensors, source.path, **known)
    except UvitError:
        raise
    except KeyError as error:
        raise UvitError(f"{source.path} lacks the tensor {error}") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise UvitError(f"{source.path}: a tensor has an impossible shape ({error})") from None
    return Recognised(parse_model(config, where=source.path), family, style)


def family_of(source: WeightFile) -> tuple[ModuleType, str]:
    """The family and style of the tensors' names; UvitError if no family has such names."""
    for family in FAMILIES:
        style = family.style_of(source.tensors)
        if style is not None:
            return family, style
    names = mapping.some(sorted(source.tensors), 4)
    raise UvitError(f"{source.path} has no supported model; its tensors: {names}")


def read(source: WeightFile, recognised: Recognised) -> tuple[Model, Params]:
    """The recognised model and its parameters, float32 numpy arrays.

    Raises:
      UvitError: naming the tensors that are missing, unexpected, of another shape, not finite, or
        constants with other values.
    """
    model = build(recognised.config)
    abstract, tensors = model.abstract_params, dict(source.tensors)
    if recognised.family is None:
        paths = [path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(abstract)]
        entries = [mapping.Entry(path, path) for path in paths]
        return model, mapping.imported(entries, tensors, abstract, source.path)
    # A file may lack the constants, but not have other ones.
    for key, value in family_constants(recognised).items():
        stored = tensors.pop(key, value)
        if stored.shape != value.shape or not np.allclose(stored, value, atol=1e-5):
            raise UvitError(
                f"{source.path}: {key} {stored.shape} differs from the constant {value.shape} of "
                f"every {recognised.family.NAME}"
            )
    entries = recognised.family.entries(recognised.config, recognised.style)
    return model, mapping.imported(entries, tensors, abstract, source.path)


def family_constants(recognised: Recognised) -> Mapping[str, np.ndarray]:
    """A file's tensors that are not parameters."""
    return (
        recognised.family.constants(recognised.config, recognised.style)
        if recognised.family
        else {}
    )


def hints_of(config: ModelConfig) -> dict[str, Any]:
    """A model's num_heads, num_classes, image_size and text_tokens, which shapes do not imply."""
    hints: dict[str, Any] = {"num_heads": config.backbone.num_heads}
    for segment in (config.segments[name] for name in config.sequence):
        if segment.kind == "label" and segment.default(1) is None:
            hints["num_classes"] = segment.num_classes
        elif segment.kind == "patches" and segment.role == "noisy":
            hints["image_size"] = segment.shape[-3]
        elif segment.kind == "features" and segment.num_tokens > 1:
            hints["text_tokens"] = segment.num_tokens
    if all(config.segments[name].kind != "label" for name in config.sequence):
        hints["num_classes"] = 0
    return hints


def title(config: ModelConfig) -> str:
    """A model's name, `U-ViT-L/2`, or its family and sizes if it is not a published one."""
    backbone = config.backbone
    sizes = (backbone.width, backbone.depth, backbone.num_heads)
    patch_sizes = [s.patch_size for s in config.segments.values() if s.kind == "patches"]
    patch = f"/{patch_sizes[0]}" if patch_sizes else ""
    described = f"of width {sizes[0]}, depth {sizes[1]} and {sizes[2]} heads"
    for family in FAMILIES:
        if family_differences(config, family) == {}:
            size = next((name for name, known in family.SIZES.items() if known == sizes), None)
            if size is None:
                return f"{family.NAME}{patch} {described}"
            name, _, kind = size.partition("-")
            return f"{family.NAME}{'-' * bool(name)}{name}{patch}{f' {kind}' if kind else ''}"
    return f"model {described}, of no published family"


def family_differences(config: ModelConfig, family: ModuleType) -> dict[str, tuple[Any, Any]] | str:
    """The differences of a model from the most similar one of a family, as
    `compare_models.differences` returns them; or, if there is none, the reason as text."""
    try:
        counterpart = parse_model(family.counterpart(config))
    except UvitError as error:
        return str(error)
    return compare_models.differences(config, counterpart)
