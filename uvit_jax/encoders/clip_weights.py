"""CLIP's checkpoints with Hugging Face's tensor names: `text_model.…`, `vision_model.…`.

A folder has `model.safetensors` or `pytorch_model.bin`, and `config.json`. That of a text tower
also has the tokenizer's files, or is named `text_encoder` beside `tokenizer` (Stable Diffusion).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvit_jax.encoders.clip import Clip, TextConfig, VisionConfig, prepare
from uvit_jax.errors import UvitError
from uvit_jax.interop import files, mapping
from uvit_jax.interop.mapping import SAME, Entry, Tensors, linear, patches
from uvit_jax.models.model import Params
from uvit_jax.paths import local_path

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREFIX = {"text": "text_model.", "vision": "vision_model."}
_PROJECTION = {"text": "text_projection", "vision": "visual_projection"}
HEAD_SIZE = 64
"""Of the attention heads of all published CLIPs, for files without a config."""


def load_text(path: str | os.PathLike, *, dtype: str = "float32") -> tuple[Clip, Params]:
    """Loads a text tower.

    Args:
      path: a folder as above, or a file of tensors (PyTorch's are read with `weights_only`).
      dtype: of the computation, float32 or bfloat16.

    Returns:
      `(tower, params)`, params float32 numpy arrays.

    Raises:
      UvitError: if the file is missing or damaged, or tensors are missing, unexpected or of another
        shape; it names them.
    """
    return _load(path, "text", dtype)


def load_vision(path: str | os.PathLike, *, dtype: str = "float32") -> tuple[Clip, Params]:
    """Loads a vision tower, as `load_text` does a text tower."""
    return _load(path, "vision", dtype)


class TextEncoder:
    """Texts to features: a tokenizer and a jitted text tower. Built by `load_text_encoder`.

    Attributes:
      shape: (T, D) of the features of a text. file: of the weights. sha256: of that file.
    """

    def __init__(self, tokenizer: Any, tower: Clip, params: Params, file: Path, batch_size: int):
        self.tower, self.file, self.sha256 = tower, file, _sha256(file)
        self.shape = (tower.config.length, tower.config.width)
        self._tokenizer, self._batch_size = tokenizer, batch_size
        # Sharded over the local devices only: processes may encode different texts.
        devices = jax.local_devices()
        count = max(d for d in range(1, len(devices) + 1) if batch_size % d == 0)
        mesh = jax.sharding.Mesh(np.array(devices[:count]), ("data",))
        rows = jax.NamedSharding(mesh, jax.P("data"))
        replicated = jax.NamedSharding(mesh, jax.P())
        self._params = jax.device_put(params, replicated)
        self._rows = rows
        self._run = jax.jit(lambda params, ids: tower.apply(params, ids)["hidden"])

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int32 (B, T), truncated or padded as in Stable Diffusion."""
        options = dict(padding="max_length", max_length=self.shape[0], truncation=True)
        ids = np.asarray(self._tokenizer(list(texts), **options)["input_ids"], np.int32)
        if ids.max(initial=0) >= self.tower.config.vocab_size:
            raise UvitError(
                f"the tokenizer yields the id {ids.max()}, but the tower in {self.file} has "
                f"vocab_size={self.tower.config.vocab_size}; use the tokenizer of that tower"
            )
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens texts have, first and end token included."""
        return [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The last hidden states after the final LayerNorm: float32 (B, T, D)."""
        ids = self.ids(texts)
        parts, n = [np.zeros((0, *self.shape), np.float32)], self._batch_size
        with jax.set_mesh(self._rows.mesh):
            for start in range(0, len(ids), n):
                # Padded to full batches: one compilation.
                batch = ids[np.arange(start, start + n) % len(ids)]
                parts.append(
                    jax.device_get(self._run(self._params, jax.device_put(batch, self._rows)))
                )
        return np.concatenate(parts)[: len(ids)]


def load_text_encoder(
    path: str | os.PathLike, *, dtype: str = "float32", batch_size: int = 64
) -> TextEncoder:
    """Loads a tokenizer and a text tower from a folder (see above).

    Raises:
      UvitError: as `load_text`; if the tokenizer is missing or damaged; without `transformers`.
    """
    path = local_path(path)
    if not path.is_dir():
        raise UvitError(f"{path} is not a folder; pass a folder with CLIP's tokenizer and weights")
    tower, params = load_text(path, dtype=dtype)
    return TextEncoder(_tokenizer(path), tower, params, resolve(path, "text")[0], batch_size)


class ImageEncoder:
    """Images to features, jitted. Built by `load_image_encoder`.

    Attributes:
      size: E, of the features. file: of the weights. sha256: of that file.
    """

    def __init__(self, tower: Clip, params: Params, file: Path):
        self.tower, self.size = tower, tower.config.projection
        self.file, self.sha256 = file, _sha256(file)
        self._params = jax.device_put(params)
        side = tower.config.image_size
        self._run = jax.jit(
            lambda params, pixels: tower.apply(params, prepare(pixels, side))["embeds"]
        )

    def __call__(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """The features of images uint8 (B, H, W, 3), not normalised: float32 (B, E)."""
        if np.ndim(images) != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise UvitError(f"CLIP takes images uint8 (B, H, W, 3), got {np.shape(images)}")
        parts, n = [np.zeros((0, self.size), np.float32)], min(batch_size, max(len(images), 1))
        for start in range(0, len(images), n):
            # Padded to full batches: one compilation.
            batch = images[np.arange(start, start + n) % len(images)].astype(np.float32)
            parts.append(jax.device_get(self._run(self._params, batch)))
        return np.concatenate(parts)[: len(images)]


def load_image_encoder(path: str | os.PathLike, *, dtype: str = "float32") -> ImageEncoder:
    """Loads a vision tower with its projection.

    Raises:
      UvitError: as `load_vision`; if there is no projection.
    """
    path = local_path(path)
    if (path / "image_encoder").is_dir():  # a UniDiffuser folder
        path = path / "image_encoder"
    tower, params = load_vision(path, dtype=dtype)
    file = resolve(path, "vision")[0]
    if not tower.config.projection:
        raise UvitError(f"{file} has no visual_projection, from which the features come")
    return ImageEncoder(tower, params, file)


def resolve(path: str | os.PathLike, kind: str) -> tuple[Path, dict]:
    """The file of tensors at `path`, and its config of one tower (`text`, `vision`), or {}.

    Raises:
      UvitError: if a folder has no such file, or its config.json is damaged.
    """
    path = local_path(path)
    if not path.is_dir():
        return path, {}
    if kind == "text" and (path / "text_encoder").is_dir():  # a Stable Diffusion folder
        path = path / "text_encoder"
    existing = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not existing:
        raise UvitError(f"the folder {path} has no {' or '.join(WEIGHTS)}; pass a folder of CLIP")
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return existing[0], dict(settings.get(f"{kind}_config", settings))
    except FileNotFoundError:
        return existing[0], {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UvitError(f"cannot read {path / 'config.json'}: {error}") from None


def own_tensors(tensors: Tensors, kind: str) -> dict[str, np.ndarray]:
    """The tensors of one tower, without its prefix, and its projection."""
    prefix, projection = _PREFIX[kind], f"{_PROJECTION[kind]}.weight"
    own = {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
    if not own:  # files of a single tower may have no prefix
        other = (*_PREFIX.values(), *(f"{p}." for p in _PROJECTION.values()), "logit_scale")
        own = {n: a for n, a in tensors.items() if not n.startswith(other)}
    if projection in tensors:
        own[projection] = tensors[projection]
    # Old files store the position ids 0, 1, 2, …
    return {n: a for n, a in own.items() if not n.endswith(".position_ids")}


def describe(
    tensors: Tensors, kind: str, settings: Mapping[str, Any], where: str
) -> TextConfig | VisionConfig:
    """The config of a tower, from the names and shapes of its tensors and config.json.

    Args:
      tensors: without prefix. kind: `text` or `vision`. settings: of config.json, for what shapes
        do not determine; {} takes OpenAI's values. where: the file, for messages.

    Raises:
      UvitError: if the tensors are not those of such a tower.
    """

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != dims:
            raise UvitError(
                f"{where} has no CLIP {kind} tower: {name} is missing or has another rank"
            )
        return tensors[name].shape

    depth = 0
    while any(name.startswith(f"encoder.layers.{depth}.") for name in tensors):
        depth += 1
    count, width = shape("embeddings.position_embedding.weight", 2)
    projection = f"{_PROJECTION[kind]}.weight"
    options = dict(
        width=width,
        depth=depth,
        mlp_width=shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_heads=settings.get("num_attention_heads") or max(width // HEAD_SIZE, 1),
        projection=shape(projection, 2)[0] if projection in tensors else 0,
        activation=settings.get("hidden_act", "quick_gelu"),
        eps=settings.get("layer_norm_eps", 1e-5),
    )
    try:
        if kind == "text":
            vocab_size = shape("embeddings.token_embedding.weight", 2)[0]
            eos = settings.get("eos_token_id", 2)
            # Old configs have a wrong 2; there the end token is the largest id.
            eos = None if eos == 2 else eos
            return TextConfig(**options, vocab_size=vocab_size, length=count, eos=eos)
        patch_size = shape("embeddings.patch_embedding.weight", 4)[-1]
        image_size = patch_size * round((count - 1) ** 0.5)
        return VisionConfig(**options, image_size=image_size, patch_size=patch_size)
    except UvitError as error:
        message = str(error)
        raise UvitError(message if where in message else f"{where}: {message}") from None


def entries(config: TextConfig | VisionConfig) -> Iterator[Entry]:
    """All tensors of a tower's checkpoint, without its prefix."""
    if isinstance(config, TextConfig):
        yield Entry("embeddings.token_embedding.weight", "tokens/embedding")
        yield from _norm("final_layer_norm", "norm")
        projection = _PROJECTION["text"]
    else:
        yield Entry("embeddings.class_embedding", "cls")
        patch = patches(config.patch_size, 3)
        yield Entry("embeddings.patch_embedding.weight", "patches/kernel", patch)
        yield from _norm("pre_layrnorm", "norm_in")  # sic
        yield from _norm("post_layernorm", "norm")
        projection = _PROJECTION["vision"]
    yield Entry("embeddings.position_embedding.weight", "positions")
    if config.projection:
        yield Entry(f"{projection}.weight", "project/kernel", mapping.LINEAR)
    for i in range(config.depth):
        key = f"encoder.layers.{i}"
        for name in ("q", "k", "v", "out"):
            yield from linear(f"{key}.self_attn.{name}_proj", f"blocks/{name}", layer=i)
        for number in (1, 2):
            yield from linear(f"{key}.mlp.fc{number}", f"blocks/fc{number}", layer=i)
            yield from _norm(f"{key}.layer_norm{number}", f"blocks/norm{number}", i)


def export(tower: Clip, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, with prefixes, float32; the inverse of loading."""
    kind = "text" if isinstance(tower.config, TextConfig) else "vision"
    tensors = mapping.exported(entries(tower.config), params)
    bare = f"{_PROJECTION[kind]}.weight"
    return {n if n == bare else _PREFIX[kind] + n: array for n, array in tensors.items()}


def _norm(key: str, path: str, layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale", SAME, layer)
    yield Entry(f"{key}.bias", f"{path}/bias", SAME, layer)


def _load(path: str | os.PathLike, kind: str, dtype: str) -> tuple[Clip, Params]:
    file, settings = resolve(path, kind)
    read = files.read_torch if file.suffix == ".bin" and file.is_file() else files.read_tensors
    tensors = own_tensors(read(file), kind)
    config = describe(tensors, kind, settings, str(file))
    tower = Clip(dataclasses.replace(config, dtype=dtype))
    params = mapping.imported(entries(config), tensors, tower.abstract_params, str(file))
    return tower, params


def _tokenizer(path: Path) -> Any:
    places = [path / "tokenizer", path / "clip_tokenizer"]
    if path.name == "text_encoder":
        places += [path.parent / "tokenizer", path.parent / "clip_tokenizer"]
    folder = next((place for place in places if place.is_dir()), path)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UvitError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt")
    try:
        from transformers import CLIPTokenizer
    except ImportError:
        raise UvitError(
            "tokenizing for CLIP needs the package transformers: pip install 'uvit-jax[text]'"
        ) from None
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UvitError(f"cannot read the tokenizer in {folder}: {reason}") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
