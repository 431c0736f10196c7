"""Adapters as files, with PEFT's names: `base_model.model.<layer>.lora_A.weight` and `lora_B`.

Layers of a U-ViT or a DiT have the names of the official checkpoint, so that PEFT can load the
adapter into the original network; layers of other models have our own paths. An adapter is one file
`NAME.safetensors`, or a folder as PEFT writes it, `adapter_model.safetensors` and
`adapter_config.json`. The metadata identify the base parameters and say how it was trained.

PEFT's A is (R, I) and its B (O, R), of one layer each; of the convolution that embeds patches they
are (R, C, p, p) and (O, R, 1, 1). A fused kernel of P parts is one layer of rank P·R in PEFT: the
parts' A are concatenated, and B is block-diagonal. Ranks and scales of PEFT may differ by layer:
ours have the largest rank of their kernel, with zeros, and one scale.

Vectors of subjects' own words are PEFT's `trainable_token_indices` of their table:
`<table>.token_adapter.trainable_tokens_delta` (n, D) holds the vectors themselves.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from uvit_jax import described_names
from uvit_jax.errors import UvitError
from uvit_jax.interop import exporting, files, mapping
from uvit_jax.interop.adapter_names import peft_tensors
from uvit_jax.interop.mapping import Tensors, Transform
from uvit_jax.interop.peft_settings import PeftSettings
from uvit_jax.interop.recognise import FAMILIES
from uvit_jax.io import atomic_folder, write_text
from uvit_jax.models import lora
from uvit_jax.models.lora import Adapter, Adapters, LoraConfig, Matrix, WordVectors
from uvit_jax.models.model import Model
from uvit_jax.models.model_config import ModelConfig
from uvit_jax.paths import local_path
from uvit_jax.remote import fetched

KEY = "uvit_jax.adapter"  # in the safetensors' metadata: an AdapterRecord as JSON
PREFIX = "base_model.model."
FORMS = ("own", "official", "diffusers")
TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_FACTOR = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight")
_WORDS = re.compile(
    rf"(?:{re.escape(PREFIX)})?(.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?"
)
# The first of these that matches a tensor says what the file is instead.
_OTHERS = (
    (r"lora_magnitude_vector|dora_scale", "of DoRA, which scales the base kernels' columns"),
    (r"\.(hada|lokr|glora|oft|boft)_", "of LoHa, LoKr or another method that is not LoRA"),
    (
        r"^lora_|\.lora_(down|up)\.|\.alpha$",
        "in kohya's format, not in PEFT's",
    ),
    (r"^(transformer|unet)\.|_lora\.(down|up)\.|\.processor\.", "in the format of diffusers"),
    (r"\.lora_embedding_[AB]", "an adapter of an embedding table"),
    (r"\.lora_B(\.default)?\.bias", "a bias of LoRA (lora_bias)"),
)


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
      convolution: between (R, C, p, p) and (p²C, R), where PEFT's layer is a convolution.
    """

    name: str
    path: str
    stack_index: int | None
    part: int | None
    convolution: Transform | None = None


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
      UvitError: if `out` exists or cannot be written, or the model does not have these adapters or
        this form.
    """
    out = local_path(out)
    if out.exists():
        raise UvitError(f"{out} exists already; give a new name")
    lora.check(model.abstract_params, adapters)
    form = form or _form(model.config)
    words = {path: one for path, one in adapters.items() if isinstance(one, WordVectors)}
    adapters = {path: one for path, one in adapters.items() if path not in words}
    if words and form != "own":
        raise UvitError(f"word vectors have no name in the {form} form; use form='own'")
    peft_layers = list(_peft_layers(model, adapters, form))
    if nameless := sorted(set(adapters) - {layer.path for layer in peft_layers}):
        raise UvitError(f"{mapping.some(nameless)} has no name in the {form} form; use form='own'")
    tensors = {}
    for layer in peft_layers:
        a, b = _peft(adapters[layer.path], layer)
        tensors[f"{PREFIX}{layer.name}.lora_A.weight"] = a
        tensors[f"{PREFIX}{layer.name}.lora_B.weight"] = b
    indices = {}
    for path, one in words.items():
        # Their rows of the base are 0.
        name, (rows, _) = path.replace("/", "."), lora.word_table(model.abstract_params)[1]
        indices[name] = list(range(rows - described_names.NAMES, rows))
        delta = np.asarray(one.delta, np.float32)
        tensors[f"{PREFIX}{name}.token_adapter.trainable_tokens_delta"] = delta
    metadata = {"format": "pt", KEY: json.dumps(dataclasses.asdict(record))}
    if out.suffix == ".safetensors":
        files.write_tensors(out, tensors, metadata)
        return form
    with atomic_folder(out) as partial:
        files.write_tensors(partial / TENSORS, tensors, metadata)
        settings = _settings(adapters, peft_layers, record)
        if indices:
            settings["trainable_token_indices"] = indices
        write_text(partial / SETTINGS, json.dumps(settings, indent=2) + "\n")
    return form


def load(
    path: str | os.PathLike, model: Model, *, base: str = "", any_base: bool = False
) -> tuple[Adapters, AdapterRecord]:
    """Reads adapters for a model: ours, or PEFT's for the original network, or such a file with
    kohya's or diffusers' names (see adapter_names.py), whose alphas become part of the factors.

    PEFT's may be of some layers only, or of the queries and values only; the others' update is 0.

    Args:
      base: SHA-256 of the base parameters; "" skips the check. any_base: also accept adapters that
        were trained for other base parameters.

    Raises:
      UvitError: if the file is missing or damaged, for another model or another base, or if it has
        a tensor or a setting that is not supported.
    """
    path = fetched(path)
    file = _file(path)
    read = files.read_torch if file.suffix == ".bin" else files.read_tensors
    tensors = read(file)
    words = _words(path, tensors, model)
    metadata = files.read_metadata(file)
    matrices = lora.matrices(model.abstract_params)
    renamed = None
    if KEY not in metadata and tensors:
        renamed = peft_tensors(path, tensors, _layer_names(model, matrices), PREFIX)
    factors = {}
    if tensors or not words:
        factors = _factors(path, tensors if renamed is None else renamed)
    settings, beside = None, file.with_name(SETTINGS)
    if renamed is not None:
        rank = max(1, *(len(np.atleast_1d(layer["A"][1])) for layer in factors.values()))
        record = AdapterRecord(lora=LoraConfig(rank=rank))
    else:
        if beside.is_file() and (path.is_dir() or KEY not in metadata):
            settings = PeftSettings(beside)
        record = _record(file, metadata, settings)
    for form in FORMS:
        try:
            candidates = list(_peft_layers(model, matrices, form))
        except UvitError:  # the model has no such form
            continue
        peft_layers = [layer for layer in candidates if layer.name in factors]
        if {layer.name for layer in peft_layers} == set(factors):
            break
    else:
        known = {
            layer.name
            for form in ("own", _form(model.config))
            for layer in _peft_layers(model, matrices, form)
        }
        raise UvitError(
            f"{path} is of another model: it has {mapping.some(sorted(set(factors) - known))}, "
            "which are not linear layers of this model"
        )
    ours = {layer.path for layer in peft_layers} if KEY in metadata else set()
    targeted = {
        layer.name
        for layer in candidates
        if settings is not None and settings.targets(layer.name, linear=_is_linear(layer))
    }
    targeted |= {layer.name for layer in candidates if layer.path in ours}
    if "trainable_token_indices" in (settings.given if settings else ()) and not words:
        raise UvitError(
            f"{beside}: trainable_token_indices names word vectors that the adapter lacks; save it "
            "again"
        )
    missing = targeted - set(factors)
    if missing:
        raise UvitError(
            f"{path} lacks {mapping.some(sorted(missing))}: it is incomplete or of another model, "
            "and not of every layer that it names; save it again, or choose the model it is of"
        )
    adapters = _adapters(path, factors, peft_layers, matrices, record.lora, settings) | words
    if base and not any_base and record.base != base:
        trained = f"parameters {record.base[:12]}…" if record.base else "an unknown base"
        raise UvitError(
            f"{path} was trained for {trained}, but these are {base[:12]}…, of the same shapes; "
            "choose the checkpoint that it was trained for (--step, --raw), or force it with "
            "--any_base"
        )
    return adapters, record


def _layer_names(model: Model, matrices: Mapping[str, Matrix]) -> set[str]:
    """The names of the model's layers in all of its forms."""
    names = set()
    for form in FORMS:
        with contextlib.suppress(UvitError):  # the model has no such form
            names |= {layer.name for layer in _peft_layers(model, matrices, form)}
    return names


def _words(where: Path, tensors: Tensors, model: Model) -> Adapters:
    """The word vectors among an adapter's tensors, from which they are removed."""
    found: Adapters = {}
    for key in [key for key in tensors if _WORDS.fullmatch(key)]:
        path, (_, width) = lora.word_table(model.abstract_params)
        delta = np.asarray(tensors.pop(key), np.float32)
        name, expected = path.replace("/", "."), (described_names.NAMES, width)
        if _WORDS.fullmatch(key)[1] != name or delta.shape != expected:
            raise UvitError(
                f"{where}: {key} {delta.shape} is of another model; the words of this one are "
                f"{name} {expected}"
            )
        if not np.isfinite(delta).all():
            raise UvitError(f"{where}: {key} has values that are not finite (NaN or infinity)")
        found[path] = WordVectors(delta)
    return found


def _file(path: Path) -> Path:
    """The tensors of the file or folder at `path`."""
    if not path.is_dir():
        return path
    file, older = path / TENSORS, path / "adapter_model.bin"
    return older if older.is_file() and not file.is_file() else file


def _factors(where: Path, tensors: Tensors) -> dict[str, dict[str, tuple[str, np.ndarray]]]:
    """The tensors `A` and `B`, with their names in the file, by PEFT's layers, as float32."""
    factors: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    matches = {key: _FACTOR.fullmatch(key) for key in tensors}
    for pattern, what in _OTHERS:
        if others := [key for key in tensors if re.search(pattern, key)]:
            raise UvitError(
                f"{where} is not supported: {mapping.some(others, 2)} is {what}; save it as plain "
                "LoRA with PEFT's names, or merge it there and import the merged weights"
            )
    if unused := [key for key, match in matches.items() if match is None]:
        raise UvitError(
            f"{where} has {mapping.some(unused)}, which are no LoRA factors; merge it with "
            "PEFT and import the merged weights"
        )
    for key, match in matches.items():
        if not jnp.issubdtype(tensors[key].dtype, jnp.floating):
            raise UvitError(f"{where}: {key} has dtype {tensors[key].dtype}, not floats")
        with np.errstate(over="ignore"):  # of float64, refused below
            value = np.asarray(tensors[key], np.float32)
        if not np.isfinite(value).all():
            raise UvitError(f"{where}: {key} has values that are not finite (NaN or infinity)")
        layer = factors.setdefault(match[1], {})
        if match[2] in layer:
            raise UvitError(f"{where} has both {layer[match[2]][0]} and {key}; keep one of them")
        layer[match[2]] = key, value
    for name, layer in factors.items():
        if missing := {"A", "B"} - set(layer):
            raise UvitError(f"{where} lacks {PREFIX}{name}.lora_{missing.pop()}.weight")
    if not factors:
        raise UvitError(f"{where} has no tensors; save the adapter again")
    return factors


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
                embedded = path.startswith("embed/") and entry.transform is not mapping.LINEAR
                convolution = entry.transform if embedded else None
                key = entry.key.removesuffix(".weight")
                yield _PeftLayer(key, path, entry.layer, entry.part, convolution)
        return
    for path, (lead, *_) in lora.matrices(model.abstract_params).items():
        if path not in paths:
            continue
        root, stack, *rest = path.split("/")
        for layer in range(lead[0]) if lead else (None,):
            index = [] if layer is None else [str(layer)]
            yield _PeftLayer(".".join([root, stack, *index, *rest]), path, layer, None)


def _is_linear(layer: _PeftLayer) -> bool:
    """Whether PEFT's `all-linear` has the layer in every model: not convolutions and outputs."""
    return layer.convolution is None and not layer.path.startswith("heads/")


def _peft(adapter: Adapter, layer: _PeftLayer) -> tuple[np.ndarray, np.ndarray]:
    """A (R, I) and B (O, R), or (P·R, I) and (P·O, P·R) of a fused layer."""
    a, b = (np.asarray(x, np.float32) for x in adapter)
    if layer.stack_index is not None:
        a, b = a[layer.stack_index], b[layer.stack_index]
    if layer.part is not None:
        a, b = a[layer.part, None], b[layer.part, None]
    if layer.convolution is not None:
        return layer.convolution.theirs(a[0]), b[0].T[..., None, None]
    P, R, O = b.shape  # noqa: E741
    B = np.zeros((P, O, P, R), np.float32)
    B[np.arange(P), :, np.arange(P)] = b.swapaxes(1, 2)
    return a.swapaxes(1, 2).reshape(P * R, -1), B.reshape(P * O, P * R)


def _adapters(
    where: Path,
    factors: Mapping[str, Mapping[str, tuple[str, np.ndarray]]],
    peft_layers: list[_PeftLayer],
    matrices: Mapping[str, Matrix],
    config: LoraConfig,
    settings: PeftSettings | None,
) -> Adapters:
    """Our adapters, whose scale is `config.scale`, from PEFT's factors."""
    by_path: dict[str, dict[tuple[int, int], Adapter]] = {}
    for layer in peft_layers:
        pairs = _parts(where, factors[layer.name], layer, matrices[layer.path], config.rank)
        if settings is not None:
            rank, scale = settings.layer(layer.name)
            key, A = factors[layer.name]["A"]
            if len(A) != rank:
                raise UvitError(f"{where}: {key} has the rank {len(A)}, but {SETTINGS} says {rank}")
            if not np.isclose(scale, config.scale, rtol=1e-12, atol=0):
                with np.errstate(over="ignore"):
                    factor = np.float32(scale / config.scale)
                    pairs = [pair._replace(b=factor * pair.b) for pair in pairs]
                if not all(np.isfinite(pair.b).all() for pair in pairs):
                    raise UvitError(
                        f"{where}: the adapter of {layer.name} is not finite when scaled by "
                        f"{scale:g} (lora_alpha); save the adapter again"
                    )
        for p, pair in enumerate(pairs):
            part = p if layer.part is None else layer.part
            copy = by_path.setdefault(layer.path, {}).setdefault(
                (layer.stack_index or 0, part), pair
            )
            if not all(np.array_equal(*both) for both in zip(pair, copy, strict=True)):
                raise UvitError(
                    f"{where}: the adapter of {layer.name} differs from that of another copy of "
                    "the same layer; only equal ones are supported"
                )
    adapters = {}
    for path, pairs in by_path.items():
        lead, parts, inputs, outputs = matrices[path]
        rank = max(pair.rank for pair in pairs.values())
        a = np.zeros((*(lead or (1,)), parts, inputs, rank), np.float32)
        b = np.zeros((*(lead or (1,)), parts, rank, outputs), np.float32)
        for index, pair in pairs.items():
            a[index][:, : pair.rank], b[index][: pair.rank] = pair
        adapters[path] = Adapter(a=a if lead else a[0], b=b if lead else b[0])
    return adapters


def _parts(
    where: Path,
    factors: Mapping[str, tuple[str, np.ndarray]],
    layer: _PeftLayer,
    matrix: Matrix,
    rank: int,
) -> list[Adapter]:
    """The factors of every part that one of PEFT's layers has."""
    (key_A, A), (key_B, B) = factors["A"], factors["B"]
    parts = matrix.parts if layer.part is None else 1
    if layer.convolution is not None and A.ndim == 4 and B.shape[2:] == (1, 1):
        A, B = A.transpose(0, 2, 3, 1).reshape(len(A), -1), B[..., 0, 0]
    R, shapes = len(A) if A.ndim else 0, (A.shape, B.shape)
    if not R or shapes != ((R, matrix.inputs), (parts * matrix.outputs, R)):
        raise UvitError(
            f"{where}: the adapter of {layer.name} is of another model, or damaged: {key_A} "
            f"{shapes[0]} and {key_B} {shapes[1]} do not match a layer of {matrix.inputs} inputs "
            f"and {parts * matrix.outputs} outputs"
        )
    if parts > 1 and parts * rank == R:  # block-diagonal, if `save` wrote it
        blocks = B.reshape(parts, -1, parts, rank)
        if not any(blocks[i, :, j].any() for i in range(parts) for j in range(parts) if i != j):
            return [
                Adapter(a=A[p * rank : (p + 1) * rank].T, b=blocks[p, :, p].T) for p in range(parts)
            ]
    return [Adapter(a=A.T, b=B.reshape(parts, -1, R)[p].T) for p in range(parts)]


def _record(
    file: Path, metadata: Mapping[str, str], settings: PeftSettings | None
) -> AdapterRecord:
    if KEY not in metadata:
        if settings is None:
            raise UvitError(
                f"{file} has no rank and alpha in its metadata, and no {SETTINGS} beside"
            )
        # A scale that LoraConfig cannot express is part of the factors.
        scale = settings.scale if settings.scale > 0 else 1.0
        try:
            config = LoraConfig(rank=settings.rank, alpha=scale * settings.rank)
        except UvitError as error:
            raise UvitError(f"{file.with_name(SETTINGS)}: lora_alpha: {error}") from None
        return AdapterRecord(lora=config)
    try:
        stored = json.loads(metadata[KEY])
        config = LoraConfig(**{**stored["lora"], "targets": tuple(stored["lora"]["targets"])})
        return AdapterRecord(lora=config, base=stored["base"], training=stored["training"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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
        "base_model_name_or_path": None,  # PEFT would look a hash up on the network
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
