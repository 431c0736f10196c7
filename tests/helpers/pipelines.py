"""A folder as diffusers' UniDiffuser pipeline, with tiny networks of random weights."""

import json
from pathlib import Path

import pytest
import safetensors.numpy

from tests.helpers.autoencoders import randomised
from tests.helpers.clips import LENGTH, WIDTH, write_clip
from tests.helpers.weights import random_params
from uvit_jax.autoencoders.kl import build_autoencoder
from uvit_jax.autoencoders.kl_weights import export_autoencoder
from uvit_jax.encoders import clip_weights
from uvit_jax.encoders.clip import Clip, VisionConfig

REDUCED, EMBEDS = 6, 10
"""Sizes of the reduced text features and of the image feature."""
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "<|EOS|>"]


def write_pipeline(root: Path) -> Path:
    """Writes its autoencoder (which halves images), CLIP's towers, caption decoder and
    tokenizers."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    write_clip(root / "text_encoder")
    (root / "clip_tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (root / "text_encoder" / name).rename(root / "clip_tokenizer" / name)
    vision = Clip(
        VisionConfig(
            width=16,
            depth=1,
            num_heads=2,
            mlp_width=16,
            projection=EMBEDS,
            image_size=8,
            patch_size=4,
        )
    )
    (root / "image_encoder").mkdir()
    tensors = clip_weights.export(vision, random_params(vision))
    safetensors.numpy.save_file(tensors, root / "image_encoder" / "model.safetensors")
    settings = {"num_attention_heads": 2}
    (root / "image_encoder" / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    decoder = diffusers.UniDiffuserTextDecoder(
        prefix_length=LENGTH,
        prefix_inner_dim=WIDTH,
        prefix_hidden_dim=REDUCED,
        vocab_size=len(WORDS),
        n_positions=LENGTH + 67,
        n_embd=16,
        n_layer=1,
        n_head=2,
    )
    decoder.save_pretrained(root / "text_decoder", safe_serialization=False)
    (root / "text_tokenizer").mkdir()
    vocabulary = json.dumps({w: i for i, w in enumerate(WORDS)})
    (root / "text_tokenizer" / "vocab.json").write_text(vocabulary)
    (root / "text_tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    net = randomised(build_autoencoder(dict(widths=(4, 4), num_blocks=1, num_groups=2)))
    (root / "vae").mkdir()
    weights = root / "vae" / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(export_autoencoder(*net), weights)
    settings = {"_class_name": "AutoencoderKL", "norm_num_groups": 2}
    (root / "vae" / "config.json").write_text(json.dumps(settings))
    return root
