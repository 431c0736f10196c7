"""From a model and its parameters to a file that this or another program reads.

own         our names, and the configs of model and run in the metadata; `.safetensors`
official    the names of the official U-ViT and DiT files; `.safetensors`, `.pth` or `.pt`
diffusers   a DiT for diffusers: a folder with config.json, or one `.safetensors` file
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from uvit_jax.config import to_dict
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError, nearest
from uvit_jax.interop import dit, files, mapping, points
from uvit_jax.interop.files import RUN_KEY, VOCABULARY_KEY
from uvit_jax.interop.recognise import FAMILIES, difference
from uvit_jax.interop.sources import WEIGHTS
from uvit_jax.io import write_text
from uvit_jax.models.model import Model, Params
from uvit_jax.models.model_config import ModelConfig

FORMS = ("own", "official", "diffusers")


def export(
    out: str | os.PathLike,
    model: Model,
    params: Params,
    form: str = "own",
    *,
    run: Any = None,
    vocabulary: Vocabulary | None = None,
) -> str:
    """Writes a model; what is written, `uvit_jax.load` reads back bit for bit.

    Args:
      out: where nothing stands yet; see above for what its name may end in.
      form: of `FORMS`.
      run: a `RunConfig`, or None. vocabulary: of the run, or None. Our own form stores both, so
        that `experiments.import_checkpoint` can turn the file into a run directory.

    Returns:
      Which form it is, as a text for the user.

    Raises:
      UvitError: if something stands there, or the model has no such form.
    """
    out = Path(out).expanduser()
    if form not in FORMS:
        raise UvitError(f"unknown format {form!r}{nearest(form, FORMS)}")
    if out.exists():
        raise UvitError(f"{out} exists already; give a new name")
    if form == "own" and out.suffix != ".safetensors":
        raise UvitError(f"{out}: our own form needs a name that ends in .safetensors")
    if form == "diffusers" and out.suffix not in ("", ".safetensors"):
        raise UvitError(f"{out}: diffusers' form is a folder or a .safetensors file")
    if form == "official" and out.suffix not in (".safetensors", ".pth", ".pt"):
        raise UvitError(f"{out}: the official form ends in .safetensors, .pth or .pt")
    if form == "own":
        metadata = {}
        if run is not None:
            metadata[RUN_KEY] = json.dumps(to_dict(run))
        if vocabulary is not None:
            metadata[VOCABULARY_KEY] = vocabulary.to_json()
        out.parent.mkdir(parents=True, exist_ok=True)
        files.save_safetensors(out, model, params, metadata)
        return "our own form"
    family = family_for(model.config, FAMILIES if form == "official" else (dit,))
    if form == "diffusers":
        settings = dit.diffusers_config(model.config)
    entries = family.entries(model.config, form)
    tensors = mapping.exported(entries, params) | family.constants(model.config, form)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form == "diffusers" and not out.suffix:
        _write_folder(out, tensors, settings)
    else:
        files.write_tensors(out, tensors)
    return f"{family.NAME}, {'official names' if form == 'official' else 'for diffusers'}"


def family_for(config: ModelConfig, families: tuple[ModuleType, ...]) -> ModuleType:
    """The family of which a model is a point.

    Raises:
      UvitError: if it is a point of none, saying what keeps it from being one of the nearest.
    """
    differences = {family: difference(config, family) for family in families}
    for family, found in differences.items():
        if found == {}:
            return family
    sets = {f: d for f, d in differences.items() if not isinstance(d, str)}
    if not sets:
        raise UvitError("; ".join(dict.fromkeys(differences.values())))
    family = min(sets, key=lambda f: len(sets[f]))
    raise UvitError(
        f"this model is no {family.NAME}, so it has no such form: {points.told(sets[family])}; "
        "--format=own writes any model"
    )


def _write_folder(out: Path, tensors: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    partial = out.with_name(f".{out.name}.exporting.{os.getpid()}")
    try:
        partial.mkdir()
        write_text(partial / "config.json", json.dumps(settings, indent=2) + "\n")
        files.write_tensors(partial / f"{WEIGHTS}.safetensors", tensors, {"format": "pt"})
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
