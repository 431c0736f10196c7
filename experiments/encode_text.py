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

from experiments import cli
from experiments.encode_latents import part_of
from uvit_jax.errors import UvitError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _parse(argv)
    part = part_of(args.part) if args.part else None

    from uvit_jax.data import text_shards
    from uvit_jax.data.data_config import DataConfig
    from uvit_jax.data.pipeline import dataset
    from uvit_jax.encoders.caption_weights import ReducedTextEncoder
    from uvit_jax.encoders.clip_weights import load_text_encoder
    from uvit_jax.parallel import distributed

    if args.batch_size < 1:
        raise UvitError(f"--batch_size must be at least 1, got {args.batch_size}")
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
    seconds = time.perf_counter() - began
    finished = (folder / index.index_name).is_file()
    results = {"latents": str(folder), "shards": index.num_shards, "written": written}
    cli.write_json(args.json, {**results, "seconds": seconds, "finished": finished})
    rest = "" if finished else "; other parts are missing"
    print(f"{folder}: wrote {written} of {index.num_shards} shards in {seconds:.0f} s{rest}")
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
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of the stored features"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the computation"
    )
    parser.add_argument("--shard_size", type=int, default=512, help="examples per shard")
    parser.add_argument("--batch_size", type=int, default=64, help="captions per batch and host")
    parser.add_argument("--part", metavar="I/N", help="encode only the I-th of N equal parts")
    parser.add_argument(
        "--distributed", metavar="SPEC", default="", help="as for experiments.train; sets --part"
    )
    return parser.parse(argv)


if __name__ == "__main__":
    cli.run(main)
