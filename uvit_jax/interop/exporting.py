"""Exports a model and its parameters to a file for this or another program.

own         our parameter paths, with the configs of model and run as metadata; `.safetensors`
official    the names of the official U-ViT, DiT and UniDiffuser files; `.safetensors`, `.pth` or
            `.pt`
diffusers   a DiT or UniDiffuser for diffusers: a folder with config.json, or one `.safetensors`
            file
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_dtypes
import numpy as np

from uvit_jax.config import to_dict
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError, nearest
from uvit_jax.interop import compare_models, dit_weights, files, mapping, unidiffuser_weights
from uvit_jax.interop.files import RUN_KEY, VOCABULARY_KEY
from uvit_jax.interop.recognise import FAMILIES, family_differences
from uvit_jax.interop.weight_files import WEIGHTS
from uvit_jax.io import atomic_folder, write_text
from uvit_jax.models.model import Model, Params
from uvit_jax.models.model_config import ModelConfig
from uvit_jax.paths import local_path

FORMS = ("own", "official", "diffusers")
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
DIFFUSERS = (dit_weights, unidiffuser_weights)
"""The families that diffusers has."""


def export(
    out: str | os.PathLike,
    model: Model,
    params: Params,
    form: str = "own",
    *,
    run: Any = None,
    vocabulary: Vocabulary | None = None,
    dtype: str = "float32",
) -> str:
    """Writes a model to a new file or folder, which `uvit_jax.load` reads back, in float32 bit for
    bit.

    Args:
      out: a path that does not exist; see the top of this file for its suffix.
      form: one of `FORMS`.
      run: a `RunConfig`, or None. vocabulary: of the run, or None. Our own form stores both, so
        that `experiments.import_checkpoint` can turn the file into a run directory.
      dtype: of the values, `float32` or `bfloat16`, half as large and rounded to 8 bits.

    Returns:
      A description of the form for messages.

    Raises:
      UvitError: if `out` exists or has another suffix, or the model does not have this form.
    """
    out = local_path(out)
    if form not in FORMS:
        raise UvitError(f"unknown format {form!r}{nearest(form, FORMS)}")
    if dtype not in DTYPES:
        raise UvitError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}")
    if dtype != "float32" and out.suffix in (".pth", ".pt"):
        raise UvitError(f"{out}: dtype={dtype} needs the suffix .safetensors")
    params = jax.tree.map(lambda a: np.asarray(a).astype(DTYPES[dtype]), params)
    if out.exists():
        raise UvitError(f"{out} exists already; give a new name")
    if form == "own" and out.suffix != ".safetensors":
        raise UvitError(f"{out}: the own form needs the suffix .safetensors")
    if form == "diffusers" and out.suffix not in ("", ".safetensors"):
        raise UvitError(f"{out}: the diffusers form is a folder or a .safetensors file")
    if form == "official" and out.suffix not in (".safetensors", ".pth", ".pt"):
        raise UvitError(f"{out}: the official form needs the suffix .safetensors, .pth or .pt")
    if form == "own":
        metadata = {}
        if run is not None:
            metadata[RUN_KEY] = json.dumps(to_dict(run))
        if vocabulary is not None:
            metadata[VOCABULARY_KEY] = vocabulary.to_json()
        out.parent.mkdir(parents=True, exist_ok=True)
        files.save_safetensors(out, model, params, metadata)
        return "our own form"
    family = family_for(model.config, FAMILIES if form == "official" else DIFFUSERS)
    if form == "diffusers":
        settings = family.diffusers_config(model.config)
    entries = family.entries(model.config, form)
    tensors = mapping.exported(entries, params) | family.constants(model.config, form)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form == "diffusers" and not out.suffix:
        _write_folder(out, tensors, settings)
    else:
        files.write_tensors(out, tensors)
    return f"{family.NAME}, {'official names' if form == 'official' else 'for diffusers'}"


def family_for(config: ModelConfig, families: tuple[ModuleType, ...]) -> ModuleType:
    """The family (a module of `FAMILIES`) that a model belongs to.

    Raises:
      UvitError: if it belongs to none, with its differences from the most similar one.
    """
    by_family = {family: family_differences(config, family) for family in families}
    for family, differences in by_family.items():
        if differences == {}:
            return family
    similar = {f: d for f, d in by_family.items() if not isinstance(d, str)}
    if not similar:
        raise UvitError("; ".join(dict.fromkeys(by_family.values())))
    family = min(similar, key=lambda f: len(similar[f]))
    raise UvitError(
        f"this model is not a {family.NAME}: {compare_models.as_text(similar[family])}; "
        "--format=own supports any model"
    )


def _write_folder(out: Path, tensors: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    with atomic_folder(out) as partial:
        write_text(partial / "config.json", json.dumps(settings, indent=2) + "\n")
        files.write_tensors(partial / f"{WEIGHTS}.safetensors", tensors, {"format": "pt"})
