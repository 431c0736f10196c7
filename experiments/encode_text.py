"""Encodes the captions of a folder of latents with CLIP's text tower, once, for training on them.

    python -m experiments.encode_latents --data.name=coco_captions --data.image_size=256 \\
        --data.text=True --autoencoder=vae.safetensors --scale=0.2301 --out=latents/coco256
    python -m experiments.encode_text --latents=latents/coco256 --encoder=clip-vit-large-patch14
    python -m experiments.train --config=configs/uvit.py:coco-S/2

The encoder is a folder of a Hugging Face CLIP: weights, config.json and the tokenizer's files. The
last hidden states after the final LayerNorm (77×768 for ViT-L/14, 118 kB per caption in half
precision) are stored beside the latents, and those of the empty text for guidance.

Rerunning the command resumes a stopped run. Several hosts share the work if each has its own
--part=0/4, 1/4, … and all the same folder, or with --distributed=auto on a TPU pod.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import cli, encoding_flags
from experiments.encode_latents import part_of
from uvit_jax.errors import UvitError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _parse(argv)
    part = part_of(args.part) if args.part else None

    from uvit_jax.data import text_shards
    from uvit_jax.data.data_config import DataConfig
    from uvit_jax.data.pipeline import dataset
    from uvit_jax.data.sources.latent_folders import check_one_size
    from uvit_jax.encoders.caption_weights import ReducedTextEncoder
    from uvit_jax.encoders.clip_weights import load_text_encoder
    from uvit_jax.parallel import distributed
    from uvit_jax.paths import local_path

    if args.batch_size < 1:
        raise UvitError(f"--batch_size must be at least 1, got {args.batch_size}")
    check_one_size(local_path(args.latents))
    # Raises at once if the latents are incomplete or damaged.
    latents = dataset(DataConfig(name="latents", path=str(args.latents)))
    if not latents.index.captions:
        raise UvitError(
            f"the latents in {args.latents} have no captions; encode them with --data.text=True"
        )
    distributed.initialize(args.distributed)

    import jax

    encoder = load_text_encoder(args.encoder, dtype=args.precision, batch_size=args.batch_size)
    if args.caption_decoder:
        encoder = ReducedTextEncoder(encoder, args.caption_decoder)
    index = text_shards.make_index(
        latents.index,
        encoder,
        shape=encoder.shape,
        dtype=args.dtype,
        shard_size=args.shard_size,
        encoder={
            "file": encoder.file.name,
            "sha256": encoder.sha256,
            "config": dataclasses.asdict(encoder.tower.config),
        },
    )
    part, parts = part or (jax.process_index(), jax.process_count())
    began = time.perf_counter()
    folder = args.latents.expanduser()
    written = text_shards.encode_captions(
        folder,
        index,
        latents.source,
        encoder,
        batch_size=args.batch_size,
        part=part,
        parts=parts,
    )
    results = {"latents": str(folder)}
    encoding_flags.report(args.json, folder, index, written, began, results)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "--latents",
        metavar="DIR",
        type=Path,
        required=True,
        help="written by experiments.encode_latents",
    )
    parser.add_argument("--encoder", metavar="DIR", required=True, help="folder of a CLIP")
    parser.add_argument(
        "--caption_decoder",
        metavar="PATH",
        help="UniDiffuser's, whose prefix encoder reduces the features (77×64, 10 kB per caption)",
    )
    encoding_flags.add_flags(
        parser, stored="features", shard_size=512, batch_size=64, rows="captions"
    )
    return parser.parse(argv)


if __name__ == "__main__":
    cli.run(main)
