"""A tiny CLIP with random weights and a made-up tokenizer, in a folder as Hugging Face's are."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from uvit_jax.encoders import clip_weights as interop
from uvit_jax.encoders.clip import Clip, TextConfig

LENGTH, WIDTH = 12, 16


def text_tower(seed: int = 0, projection: int = 0) -> tuple[Clip, dict]:
    """A tower of two blocks whose features tell texts apart."""
    import jax

    config = TextConfig(
        width=WIDTH,
        depth=2,
        num_heads=2,
        mlp_width=24,
        projection=projection,
        vocab_size=514,
        length=LENGTH,
        eos=513,
    )
    tower, rng = Clip(config), np.random.default_rng(seed)
    draw = lambda a: rng.normal(scale=0.5, size=a.shape).astype(np.float32)  # noqa: E731
    return tower, jax.tree.map(draw, tower.abstract_params)


def write_clip(folder: Path, seed: int = 0, projection: int = 0) -> Path:
    """Writes such a folder: weights, config.json, vocab.json and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    tower, params = text_tower(seed, projection)
    safetensors.numpy.save_file(interop.export(tower, params), folder / "model.safetensors")
    config = {
        "model_type": "clip_text_model",
        "num_attention_heads": tower.config.num_heads,
        "hidden_act": "quick_gelu",
        "eos_token_id": tower.config.eos,
    }
    (folder / "config.json").write_text(json.dumps(config))
    # GPT-2's bytes as visible letters: each alone, and each at a word's end.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in visible]
    letters = [chr(b) for b in visible] + [chr(256 + i) for i in range(len(rest))]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder
