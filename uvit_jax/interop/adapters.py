"""Adapters as files, with PEFT's names: `base_model.model.<layer>.lora_A.weight` and `lora_B`.

A layer's name is that of the official checkpoint where the model is a U-ViT or a DiT, so that PEFT
takes the adapter for the original network, and else our own path. A file `NAME.safetensors` is
whole by itself; any other name is a folder as PEFT writes it, `adapter_model.safetensors` and
`adapter_config.json`. Which base it belongs to, and how it was trained, stands in the metadata.

PEFT's A is (R, I) and its B (O, R), of one layer each. A fused kernel of P parts is one layer of
PEFT's, of rank P·R: the parts' A one below the other, and B block-diagonal.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop import dit, exporting, files, mapping
from uvit_jax.interop.recognise import FAMILIES
from uvit_jax.io import write_text
from uvit_jax.models import lora
from uvit_jax.models.lora import Adapter, Adapters, LoraConfig, Matrix
from uvit_jax.models.model import Model
from uvit_jax.models.model_config import ModelConfig

KEY = "uvit_jax.adapter"  # in the safetensors' metadata: a Record as JSON
PREFIX = "base_model.model."
FORMS = ("own", "official", "diffusers")
TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What an adapter's file tells of it.

    Attributes:
      lora: the adapters' config. base: SHA-256 of the parameters that they were trained for
        (`evaluation.report.params_sha256`), "" if unknown.
      training: prompts, steps, rate and whatever else is worth keeping, plain JSON.
    """

    lora: LoraConfig
    base: str = ""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _Place(NamedTuple):
    """A layer of PEFT's: its name, and the adapter, the index on the layer axis and the part that
    it is (None: there is no layer axis; all parts are in it)."""

    name: str
    path: str
    layer: int | None
    part: int | None


def save(
    out: str | os.PathLike,
    model: Model,
    adapters: Adapters,
    record: Record,
    *,
    form: str | None = None,
) -> str:
    """Writes adapters, where nothing stands yet, whole or not at all.

    Args:
      form: whose names the layers have, of `FORMS`; None is `official` where the model has that
        form, and else `own`.

    Returns:
      The form.

    Raises:
      UvitError: if something stands there, or the adapters or the form are not the model's.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UvitError(f"{out} exists already; give a new name")
    lora.check(model.abstract_params, adapters)
    form = form or _form(model.config)
    places = list(_places(model, adapters, form))
    if nameless := sorted(set(adapters) - {place.path for place in places}):
        raise UvitError(f"{mapping.some(nameless)} has no name in the {form} form; use another")
    tensors = {}
    for place in places:
        a, b = _peft(adapters[place.path], place)
        tensors[f"{PREFIX}{place.name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{place.name}.lora_B.weight"] = b
    told = json.dumps(dataclasses.asdict(record))
    metadata = {"format": "pt", KEY: told}
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        files.write_tensors(out, tensors, metadata)
        return form
    partial = out.with_name(f".{out.name}.writing.{os.getpid()}")
    try:
        partial.mkdir()
        files.write_tensors(partial / TENSORS, tensors, metadata)
        settings = _settings(adapters, places, record)
        write_text(partial / SETTINGS, json.dumps(settings, indent=2) + "\n")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return form


def load(
    path: str | os.PathLike, model: Model, *, base: str = "", any_base: bool = False
) -> tuple[Adapters, Record]:
    """Reads adapters of a model: ours, or PEFT's of the original network.

    Args:
      base: SHA-256 of the base's parameters. any_base: whether they may be others than those that
        the adapters were trained for.

    Raises:
      UvitError: if the file is missing or damaged, or of another model or another base.
    """
    path = Path(path).expanduser()
    file = path / TENSORS if path.is_dir() else path
    tensors = files.read_tensors(file)
    record = _record(file, files.read_metadata(file))
    names = {key.rpartition(".lora_")[0].removeprefix(PREFIX) for key in tensors}
    layers = lora.matrices(model.abstract_params)
    for form in FORMS:
        try:
            places = [p for p in _places(model, layers, form) if p.name in names]
        except UvitError:  # the model has no such form
            continue
        if {p.name for p in places} == names:
            break
    else:
        known = {p.name for p in _places(model, layers, "own")} | {
            p.name for p in _places(model, layers, _form(model.config))
        }
        raise UvitError(
            f"{path} is an adapter of another model: it has {mapping.some(sorted(names - known))}, "
            "which this one has not"
        )
    adapters = _adapters(path, tensors, places, layers, record.lora.rank)
    try:
        lora.check(model.abstract_params, adapters)
    except UvitError as error:
        raise UvitError(f"{path}: {error}") from None
    if base and not any_base and record.base != base:
        trained = f"parameters {record.base[:12]}…" if record.base else "an unknown base"
        raise UvitError(
            f"{path} was trained for {trained}, and these are {base[:12]}…, of the same shapes; "
            "give the checkpoint that it belongs to (--step, --raw), or take it all the same with "
            "--any_base"
        )
    return adapters, record


def _form(config: ModelConfig) -> str:
    try:
        exporting.family_for(config, FAMILIES)
    except UvitError:
        return "own"
    return "official"


def _places(model: Model, paths: Mapping[str, Any], form: str) -> Iterator[_Place]:
    """The layers of PEFT's that adapters at `paths` are."""
    if form not in FORMS:
        raise UvitError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    if form != "own":
        families = FAMILIES if form == "official" else (dit,)
        family = exporting.family_for(model.config, families)
        for entry in family.entries(model.config, form):
            path, _, name = entry.path.rpartition("/")
            if name == "kernel" and path in paths:
                yield _Place(entry.key.removesuffix(".weight"), path, entry.layer, entry.part)
        return
    for path, (lead, *_) in lora.matrices(model.abstract_params).items():
        if path not in paths:
            continue
        root, stack, *rest = path.split("/")
        for layer in range(lead[0]) if lead else (None,):
            index = [] if layer is None else [str(layer)]
            yield _Place(".".join([root, stack, *index, *rest]), path, layer, None)


def _peft(adapter: Adapter, place: _Place) -> tuple[np.ndarray, np.ndarray]:
    """A (R, I) and B (O, R), or (P·R, I) and (P·O, P·R) of a fused layer."""
    a, b = (np.asarray(x, np.float32) for x in adapter)
    if place.layer is not None:
        a, b = a[place.layer], b[place.layer]
    if place.part is not None:
        a, b = a[place.part, None], b[place.part, None]
    P, R, O = b.shape  # noqa: E741
    B = np.zeros((P, O, P, R), np.float32)
    B[np.arange(P), :, np.arange(P)] = b.swapaxes(1, 2)
    return a.swapaxes(1, 2).reshape(P * R, -1), B.reshape(P * O, P * R)


def _adapters(
    where: Path,
    tensors: Mapping[str, np.ndarray],
    places: list[_Place],
    layers: Mapping[str, Matrix],
    rank: int,
) -> Adapters:
    """Our adapters from PEFT's tensors."""
    found: dict[str, dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]] = {}
    for place in places:
        keys = [f"{PREFIX}{place.name}.lora_{letter}.weight" for letter in "AB"]
        if missing := [key for key in keys if key not in tensors]:
            raise UvitError(f"{where} lacks {missing[0]}")
        A, B = (np.asarray(tensors[key], np.float32) for key in keys)
        parts = layers[place.path].parts if place.part is None else 1
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or len(B) % parts:
            raise UvitError(f"{where}: {keys[0]} {A.shape} and {keys[1]} {B.shape} do not fit")
        own = parts > 1 and len(A) == parts * rank  # block-diagonal, if it is as we write it
        blocks = B.reshape(parts, -1, parts, rank) if own else None
        own = own and not any(
            blocks[i, :, j].any() for i in range(parts) for j in range(parts) if i != j
        )
        for p in range(parts):
            pair = A.T, B.reshape(parts, -1, B.shape[1])[p].T
            if own:
                pair = A[p * rank : (p + 1) * rank].T, blocks[p, :, p].T
            part = p if place.part is None else place.part
            found.setdefault(place.path, {})[place.layer or 0, part] = pair
    adapters = {}
    for path, pairs in found.items():
        lead, parts, *_ = layers[path]
        wanted = [(i, p) for i in range(lead[0] if lead else 1) for p in range(parts)]
        shapes = {(a.shape, b.shape) for a, b in pairs.values()}
        if set(pairs) != set(wanted) or len(shapes) != 1:
            raise UvitError(
                f"{where}: the adapters of {path} are not of one rank, or not of every layer, and "
                "here they are stacked"
            )
        a, b = (
            np.stack([pairs[key][i] for key in wanted]).reshape(*lead, parts, *shape)
            for i, shape in enumerate(next(iter(shapes)))
        )
        adapters[path] = Adapter(a=a, b=b)
    return adapters


def _record(file: Path, metadata: Mapping[str, str]) -> Record:
    try:
        if KEY in metadata:
            told = json.loads(metadata[KEY])
            config = LoraConfig(**{**told["lora"], "targets": tuple(told["lora"]["targets"])})
            return Record(lora=config, base=told["base"], training=told["training"])
        beside = file.with_name(SETTINGS)
        if not beside.is_file():
            raise UvitError(f"{file} does not say its rank and alpha, and has no {SETTINGS} beside")
        settings = json.loads(beside.read_text())
        if settings.get("rank_pattern") or settings.get("alpha_pattern"):
            raise UvitError(f"{beside} has ranks that differ by layer, which is not handled")
        return Record(lora=LoraConfig(rank=settings["r"], alpha=float(settings["lora_alpha"])))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UvitError):
            raise
        raise UvitError(f"{file}: what it tells of the adapter is damaged: {error!r}") from None


def _settings(adapters: Adapters, places: list[_Place], record: Record) -> dict[str, Any]:
    """PEFT's adapter_config.json."""
    R, alpha = record.lora.rank, record.lora.scale * record.lora.rank
    fused = {p.name: adapters[p.path].a.shape[-3] for p in places if p.part is None}
    patterns = {name: count for name, count in fused.items() if count > 1}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": record.base or None,
        "r": R,
        "lora_alpha": alpha,
        "rank_pattern": {name: R * count for name, count in patterns.items()},
        "alpha_pattern": {name: alpha * count for name, count in patterns.items()},
        "target_modules": [p.name for p in places],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
