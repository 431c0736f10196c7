"""Adapters as files, with PEFT's names: `base_model.model.<layer>.lora_A.weight` and `lora_B`.

Layers of a U-ViT or a DiT have the names of the official checkpoint, so that PEFT can load the
adapter into the original network; layers of other models have our own paths. An adapter is one file
`NAME.safetensors`, or a folder as PEFT writes it, `adapter_model.safetensors` and
`adapter_config.json`. The metadata identify the base parameters and say how it was trained.

PEFT's A is (R, I) and its B (O, R), of one layer each. A fused kernel of P parts is one layer of
rank P·R in PEFT: the parts' A are concatenated, and B is block-diagonal.
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
from uvit_jax.interop import exporting, files, mapping
from uvit_jax.interop.recognise import FAMILIES
from uvit_jax.io import write_text
from uvit_jax.models import lora
from uvit_jax.models.lora import Adapter, Adapters, LoraConfig, Matrix
from uvit_jax.models.model import Model
from uvit_jax.models.model_config import ModelConfig
from uvit_jax.paths import local_path

KEY = "uvit_jax.adapter"  # in the safetensors' metadata: an AdapterRecord as JSON
PREFIX = "base_model.model."
FORMS = ("own", "official", "diffusers")
TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """The metadata of an adapter file.

    Attributes:
      lora: the adapters' config. base: SHA-256 of the parameters that they were trained for
        (`evaluation.image_metrics.params_sha256`), "" if unknown.
      training: prompts, steps, learning rate and so on, plain JSON.
    """

    lora: LoraConfig
    base: str = ""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _PeftLayer(NamedTuple):
    """A layer of PEFT's, as a part of one of our adapters.

    Attributes:
      name: PEFT's name. path: of our adapter.
      stack_index: on the adapter's layer axis, None where it has none.
      part: index of the part of a fused kernel, None where the layer has all parts.
    """

    name: str
    path: str
    stack_index: int | None
    part: int | None


def save(
    out: str | os.PathLike,
    model: Model,
    adapters: Adapters,
    record: AdapterRecord,
    *,
    form: str | None = None,
) -> str:
    """Writes adapters to a new file or folder, atomically.

    Args:
      form: the naming of layers, one of `FORMS`; None is `official` where the model has that form,
        and `own` otherwise.

    Returns:
      The form.

    Raises:
      UvitError: if `out` exists, or the model does not have these adapters or this form.
    """
    out = local_path(out)
    if out.exists():
        raise UvitError(f"{out} exists already; give a new name")
    lora.check(model.abstract_params, adapters)
    form = form or _form(model.config)
    peft_layers = list(_peft_layers(model, adapters, form))
    if nameless := sorted(set(adapters) - {layer.path for layer in peft_layers}):
        raise UvitError(f"{mapping.some(nameless)} has no name in the {form} form; use form='own'")
    tensors = {}
    for layer in peft_layers:
        a, b = _peft(adapters[layer.path], layer)
        tensors[f"{PREFIX}{layer.name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{layer.name}.lora_B.weight"] = b
    metadata = {"format": "pt", KEY: json.dumps(dataclasses.asdict(record))}
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        files.write_tensors(out, tensors, metadata)
        return form
    partial = out.with_name(f".{out.name}.writing.{os.getpid()}")
    try:
        partial.mkdir()
        files.write_tensors(partial / TENSORS, tensors, metadata)
        settings = _settings(adapters, peft_layers, record)
        write_text(partial / SETTINGS, json.dumps(settings, indent=2) + "\n")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return form


def load(
    path: str | os.PathLike, model: Model, *, base: str = "", any_base: bool = False
) -> tuple[Adapters, AdapterRecord]:
    """Reads adapters for a model: ours, or PEFT's for the original network.

    Args:
      base: SHA-256 of the base parameters; "" skips the check. any_base: also accept adapters that
        were trained for other base parameters.

    Raises:
      UvitError: if the file is missing or damaged, or for another model or another base.
    """
    path = local_path(path)
    file = path / TENSORS if path.is_dir() else path
    tensors = files.read_tensors(file)
    record = _record(file, files.read_metadata(file))
    names = {key.rpartition(".lora_")[0].removeprefix(PREFIX) for key in tensors}
    matrices = lora.matrices(model.abstract_params)
    for form in FORMS:
        try:
            peft_layers = [p for p in _peft_layers(model, matrices, form) if p.name in names]
        except UvitError:  # the model has no such form
            continue
        if {p.name for p in peft_layers} == names:
            break
    else:
        known = {p.name for p in _peft_layers(model, matrices, "own")} | {
            p.name for p in _peft_layers(model, matrices, _form(model.config))
        }
        raise UvitError(
            f"{path} is an adapter of another model: it has {mapping.some(sorted(names - known))}, "
            "which this model lacks"
        )
    adapters = _adapters(path, tensors, peft_layers, matrices, record.lora.rank)
    try:
        lora.check(model.abstract_params, adapters)
    except UvitError as error:
        raise UvitError(f"{path}: {error}") from None
    if base and not any_base and record.base != base:
        trained = f"parameters {record.base[:12]}…" if record.base else "an unknown base"
        raise UvitError(
            f"{path} was trained for {trained}, but these are {base[:12]}…, of the same shapes; "
            "choose the checkpoint that it was trained for (--step, --raw), or force it with "
            "--any_base"
        )
    return adapters, record


def _form(config: ModelConfig) -> str:
    try:
        exporting.family_for(config, FAMILIES)
    except UvitError:
        return "own"
    return "official"


def _peft_layers(model: Model, paths: Mapping[str, Any], form: str) -> Iterator[_PeftLayer]:
    """PEFT's layers of the adapters at `paths`."""
    if form not in FORMS:
        raise UvitError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    if form != "own":
        families = FAMILIES if form == "official" else exporting.DIFFUSERS
        family = exporting.family_for(model.config, families)
        for entry in family.entries(model.config, form):
            path, _, name = entry.path.rpartition("/")
            if name == "kernel" and path in paths and not entry.unused:
                yield _PeftLayer(entry.key.removesuffix(".weight"), path, entry.layer, entry.part)
        return
    for path, (lead, *_) in lora.matrices(model.abstract_params).items():
        if path not in paths:
            continue
        root, stack, *rest = path.split("/")
        for layer in range(lead[0]) if lead else (None,):
            index = [] if layer is None else [str(layer)]
            yield _PeftLayer(".".join([root, stack, *index, *rest]), path, layer, None)


def _peft(adapter: Adapter, layer: _PeftLayer) -> tuple[np.ndarray, np.ndarray]:
    """A (R, I) and B (O, R), or (P·R, I) and (P·O, P·R) of a fused layer."""
    a, b = (np.asarray(x, np.float32) for x in adapter)
    if layer.stack_index is not None:
        a, b = a[layer.stack_index], b[layer.stack_index]
    if layer.part is not None:
        a, b = a[layer.part, None], b[layer.part, None]
    P, R, O = b.shape  # noqa: E741
    B = np.zeros((P, O, P, R), np.float32)
    B[np.arange(P), :, np.arange(P)] = b.swapaxes(1, 2)
    return a.swapaxes(1, 2).reshape(P * R, -1), B.reshape(P * O, P * R)


def _adapters(
    where: Path,
    tensors: Mapping[str, np.ndarray],
    peft_layers: list[_PeftLayer],
    matrices: Mapping[str, Matrix],
    rank: int,
) -> Adapters:
    """Our adapters from PEFT's tensors."""
    by_path: dict[str, dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]] = {}
    for layer in peft_layers:
        keys = [f"{PREFIX}{layer.name}.lora_{letter}.weight" for letter in "AB"]
        if missing := [key for key in keys if key not in tensors]:
            raise UvitError(f"{where} lacks {missing[0]}")
        A, B = (np.asarray(tensors[key], np.float32) for key in keys)
        parts = matrices[layer.path].parts if layer.part is None else 1
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or len(B) % parts:
            raise UvitError(
                f"{where}: the shapes of {keys[0]} {A.shape} and {keys[1]} {B.shape} do not match"
            )
        own = parts > 1 and len(A) == parts * rank  # block-diagonal, if `save` wrote it
        blocks = B.reshape(parts, -1, parts, rank) if own else None
        own = own and not any(
            blocks[i, :, j].any() for i in range(parts) for j in range(parts) if i != j
        )
        for p in range(parts):
            pair = A.T, B.reshape(parts, -1, B.shape[1])[p].T
            if own:
                pair = A[p * rank : (p + 1) * rank].T, blocks[p, :, p].T
            part = p if layer.part is None else layer.part
            by_path.setdefault(layer.path, {})[layer.stack_index or 0, part] = pair
    adapters = {}
    for path, pairs in by_path.items():
        lead, parts, *_ = matrices[path]
        wanted = [(i, p) for i in range(lead[0] if lead else 1) for p in range(parts)]
        shapes = {(a.shape, b.shape) for a, b in pairs.values()}
        if set(pairs) != set(wanted) or len(shapes) != 1:
            raise UvitError(
                f"{where}: the adapters of {path} differ in rank, or are not of every layer; only "
                "adapters of all layers with one rank are supported"
            )
        a, b = (
            np.stack([pairs[key][i] for key in wanted]).reshape(*lead, parts, *shape)
            for i, shape in enumerate(next(iter(shapes)))
        )
        adapters[path] = Adapter(a=a, b=b)
    return adapters


def _record(file: Path, metadata: Mapping[str, str]) -> AdapterRecord:
    try:
        if KEY in metadata:
            stored = json.loads(metadata[KEY])
            config = LoraConfig(**{**stored["lora"], "targets": tuple(stored["lora"]["targets"])})
            return AdapterRecord(lora=config, base=stored["base"], training=stored["training"])
        beside = file.with_name(SETTINGS)
        if not beside.is_file():
            raise UvitError(
                f"{file} has no rank and alpha in its metadata, and no {SETTINGS} beside"
            )
        settings = json.loads(beside.read_text())
        if settings.get("rank_pattern") or settings.get("alpha_pattern"):
            raise UvitError(f"{beside} has ranks that differ by layer, which is not supported")
        return AdapterRecord(
            lora=LoraConfig(rank=settings["r"], alpha=float(settings["lora_alpha"]))
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UvitError):
            raise
        raise UvitError(f"{file}: the adapter's metadata are damaged: {error!r}") from None


def _settings(
    adapters: Adapters, peft_layers: list[_PeftLayer], record: AdapterRecord
) -> dict[str, Any]:
    """PEFT's adapter_config.json."""
    R, alpha = record.lora.rank, record.lora.scale * record.lora.rank
    fused = {p.name: adapters[p.path].a.shape[-3] for p in peft_layers if p.part is None}
    patterns = {name: count for name, count in fused.items() if count > 1}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": record.base or None,
        "r": R,
        "lora_alpha": alpha,
        "rank_pattern": {name: R * count for name, count in patterns.items()},
        "alpha_pattern": {name: alpha * count for name, count in patterns.items()},
        "target_modules": [p.name for p in peft_layers],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
