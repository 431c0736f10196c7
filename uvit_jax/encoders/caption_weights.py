"""UniDiffuser's caption decoder from its files: official, or diffusers' folder `text_decoder`.

decode = load_captioner(folder)     # with the GPT-2's tokenizer
decode(text_BTF)                    # ["a red bus", …]
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvit_jax.encoders.caption_decoder import CaptionConfig, CaptionDecoder
from uvit_jax.encoders.clip_weights import TextEncoder
from uvit_jax.errors import UvitError
from uvit_jax.interop import files, mapping
from uvit_jax.interop.mapping import SAME, Entry, Tensors, linear
from uvit_jax.interop.weight_files import WEIGHTS
from uvit_jax.models.model import Params
from uvit_jax.paths import local_path

HEAD_SIZE = 64
"""Of GPT-2's attention heads, for files without a config."""
_FILES = (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin", "caption_decoder.pth")
# The names of the parts that hold the GPT-2, in the official file and in diffusers'.
_PREFIX = re.compile(r"^(module\.)?((gpt|transformer)\.)?(transformer\.)?")
# Masks, which old versions of GPT-2 store.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load_caption_decoder(
    path: str | os.PathLike, *, dtype: str = "float32"
) -> tuple[CaptionDecoder, Params]:
    """Loads a caption decoder.

    Args:
      path: a file, or a folder with one: diffusers' `text_decoder`, or one that holds it.
      dtype: of the computation, float32 or bfloat16.

    Returns:
      `(decoder, params)`, params float32 numpy arrays.

    Raises:
      UvitError: if the file is missing or damaged, or tensors are missing, unexpected or of another
        shape; it names them.
    """
    file, settings = _resolve(local_path(path))
    read = files.read_torch if file.suffix == ".bin" and file.is_file() else files.read_tensors
    tensors = canonical(read(file), str(file))
    config = describe(tensors, settings, str(file))
    decoder = CaptionDecoder(dataclasses.replace(config, dtype=dtype))
    params = mapping.imported(entries(config), tensors, decoder.abstract_params, str(file))
    return decoder, params


class ReducedTextEncoder:
    """Texts to features that a caption decoder has reduced, as `TextEncoder` to CLIP's.

    Attributes:
      shape: (T, F) of the features of a text. file: of the text encoder's weights. sha256: of both
        files.
    """

    def __init__(self, encode: TextEncoder, path: str | os.PathLike):
        self.encode, self.tower, self.file = encode, encode.tower, encode.file
        self.decoder, params = load_caption_decoder(path)
        if self.decoder.config.features != encode.shape[1]:
            raise UvitError(
                f"the caption decoder {path} takes features of size "
                f"{self.decoder.config.features}, and {encode.file} has {encode.shape[1]}"
            )
        self.shape = (encode.shape[0], self.decoder.config.reduced)
        # The layer that reduces belongs to the encoder: another one gives other features.
        kernel = np.ascontiguousarray(params["encode_prefix"]["kernel"])
        self.sha256 = f"{encode.sha256}+{hashlib.sha256(kernel.tobytes()).hexdigest()}"
        self._reduce = jax.jit(functools.partial(self.decoder.reduce, params))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The reduced features of texts, float32 (B, T, F)."""
        return np.asarray(self._reduce(self.encode(texts)))


class Captioner:
    """Texts of a diffusion model to words. Built by `load_captioner`.

    Attributes:
      decoder, params: the caption decoder.
    """

    def __init__(self, decoder: CaptionDecoder, params: Params, tokenizer: Any):
        self.decoder, self.params, self._tokenizer = decoder, params, tokenizer

    def __call__(self, text_BTF: np.ndarray) -> list[str]:
        """The captions of texts float (B, T, F), by beam search with 5 beams."""
        ids_BN, lengths_B = map(np.asarray, self.decoder.captions(self.params, text_BTF))
        captions = []
        for ids, length in zip(ids_BN.tolist(), lengths_B.tolist(), strict=True):
            words = [i for i in ids[:length] if i != self.decoder.config.eos]
            captions.append(self._tokenizer.decode(words, skip_special_tokens=True).strip())
        return captions


def load_captioner(path: str | os.PathLike, *, dtype: str = "float32") -> Captioner:
    """Loads a caption decoder and the tokenizer of its GPT-2.

    Args:
      path: a folder as for `load_caption_decoder`, which also has the tokenizer's files
        (`vocab.json` and `merges.txt`, or `tokenizer.json`), in itself or in `text_tokenizer`.

    Raises:
      UvitError: as `load_caption_decoder`; if the tokenizer is missing; without `transformers`.
    """
    path = local_path(path)
    decoder, params = load_caption_decoder(path, dtype=dtype)
    return Captioner(decoder, params, _tokenizer(path))


def canonical(tensors: Tensors, where: str) -> dict[str, np.ndarray]:
    """The tensors under the names of `entries`.

    Raises:
      UvitError: if the logits are not computed from the table of tokens.
    """
    renamed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        bare = _PREFIX.sub("", name)
        if _MASK.fullmatch(bare):
            continue
        if ".attn.c_attn." in bare and array.shape[-1] % 3 == 0:
            for part, letter in zip(np.split(array, 3, axis=-1), "qkv", strict=True):
                renamed[bare.replace("c_attn", letter)] = part
        else:
            renamed[bare] = array
    head, table = renamed.pop("lm_head.weight", None), renamed.get("wte.weight")
    if head is not None and table is not None and not np.array_equal(head, table):
        raise UvitError(f"{where}: lm_head.weight differs from wte.weight, which is not supported")
    return renamed


def describe(tensors: Tensors, settings: dict[str, Any], where: str) -> CaptionConfig:
    """The config, from canonical tensors and the settings of config.json, or {}."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != 2:
            raise UvitError(
                f"{where} is not UniDiffuser's caption decoder: {name} is missing or has another "
                "rank"
            )
        return tensors[name].shape

    (vocab_size, width), (length, _) = shape("wte.weight"), shape("wpe.weight")
    reduced, features = shape("encode_prefix.weight")
    return CaptionConfig(
        width=width,
        depth=len({name.split(".")[1] for name in tensors if name.startswith("h.")}),
        num_heads=settings.get("n_head") or max(width // HEAD_SIZE, 1),
        mlp_width=shape("h.0.mlp.c_fc.weight")[1],
        activation="gelu_tanh",
        eps=settings.get("layer_norm_epsilon", 1e-5),
        vocab_size=vocab_size,
        length=length,
        features=features,
        reduced=reduced,
    )


def entries(config: CaptionConfig) -> Iterator[Entry]:
    """All tensors under their canonical names. GPT-2's matrices are (inputs, outputs)."""
    yield Entry("wte.weight", "tokens/embedding")
    yield Entry("wpe.weight", "positions")
    yield from linear("encode_prefix", "encode_prefix")
    yield from linear("decode_prefix", "decode_prefix")
    yield from _norm("ln_f", "norm")
    for i in range(config.depth):
        for theirs, ours in (
            ("attn.q", "q"),
            ("attn.k", "k"),
            ("attn.v", "v"),
            ("attn.c_proj", "out"),
            ("mlp.c_fc", "fc1"),
            ("mlp.c_proj", "fc2"),
        ):
            yield from linear(f"h.{i}.{theirs}", f"blocks/{ours}", SAME, layer=i)
        for number in (1, 2):
            yield from _norm(f"h.{i}.ln_{number}", f"blocks/norm{number}", i)


def _norm(key: str, path: str, layer: int | None = None) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale", SAME, layer)
    yield Entry(f"{key}.bias", f"{path}/bias", SAME, layer)


def _resolve(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of tensors at `path`, and the settings of a config.json beside it, or {}."""
    if not path.is_dir():
        return path, {}
    folder = path / "text_decoder" if (path / "text_decoder").is_dir() else path
    existing = [folder / name for name in _FILES if (folder / name).is_file()]
    if not existing:
        raise UvitError(f"the folder {folder} has none of {', '.join(_FILES)}")
    try:
        return existing[0], dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return existing[0], {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UvitError(f"cannot read {folder / 'config.json'}: {error}") from None


def _tokenizer(path: Path) -> Any:
    folder = path if path.is_dir() else path.parent
    places = [folder / "text_tokenizer", folder.parent / "text_tokenizer", folder]
    names = ("tokenizer.json", "vocab.json")
    found = [p for p in places if any((p / name).is_file() for name in names)]
    if not found:
        raise UvitError(
            f"{folder} has no text_tokenizer with tokenizer.json, or vocab.json and merges.txt; "
            "add those of GPT-2"
        )
    try:
        from transformers import GPT2Tokenizer
    except ImportError:
        raise UvitError(
            "GPT-2's tokenizer needs the package transformers: pip install 'uvit-jax[text]'"
        ) from None
    try:
        return GPT2Tokenizer.from_pretrained(found[0], local_files_only=True)
    except Exception as error:  # transformers raises many types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UvitError(f"cannot read the tokenizer in {found[0]}: {reason}") from None
