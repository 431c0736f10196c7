"""Encodes the images of a folder of latents with CLIP's vision tower, once, for training on them.

    python -m experiments.encode_latents --data.name=coco_captions --data.image_size=512 \\
        --data.text=True --autoencoder=vae.safetensors --out=latents/coco512
    python -m experiments.encode_text --latents=latents/coco512 \\
        --encoder=clip-vit-large-patch14 --caption_decoder=caption_decoder.pth
    python -m experiments.encode_image_features --latents=latents/coco512 \\
        --encoder=clip-vit-base-patch32
    python -m experiments.train --config=configs/unidiffuser.py:v1-512

The images are read again from the data set that the latents were encoded from. Their features are
not normalised (ViT-B/32: 512 numbers), as UniDiffuser takes them, and are stored beside the
latents, also those of mirrored images if the latents have them.

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

    from uvit_jax.config import parse
    from uvit_jax.data import pipeline
    from uvit_jax.data.data_config import DataConfig
    from uvit_jax.data.image_feature_shards import ImageFeatureIndex, encode_image_features
    from uvit_jax.data.sources.latent_folders import check_one_size, images_of
    from uvit_jax.encoders.clip_weights import load_image_encoder
    from uvit_jax.parallel import distributed
    from uvit_jax.paths import local_path

    if args.batch_size < 1:
        raise UvitError(f"--batch_size must be at least 1, got {args.batch_size}")
    check_one_size(local_path(args.latents))
    latents = pipeline.dataset(DataConfig(name="latents", path=str(args.latents))).index
    if len(latents.shape) == 4:
        raise UvitError(f"the latents in {args.latents} are of clips, and the encoder is of images")
    source = {**latents.source, "data_dir": args.data_dir, "workers": args.workers}
    data = pipeline.dataset(parse(DataConfig, source, "the latents' source"))
    data = images_of(local_path(args.latents), data)
    distributed.initialize(args.distributed)

    import jax

    encode = load_image_encoder(args.encoder, dtype=args.precision)
    index = ImageFeatureIndex(
        size=encode.size,
        dtype=args.dtype,
        count=latents.count,
        shard_size=args.shard_size,
        mirrored=latents.mirrored,
        source=latents.source,
        encoder={
            "file": encode.file.name,
            "sha256": encode.sha256,
            "config": dataclasses.asdict(encode.tower.config),
        },
    )
    part, parts = part or (jax.process_index(), jax.process_count())
    began = time.perf_counter()
    folder = args.latents.expanduser()
    written = encode_image_features(
        folder,
        index,
        data,
        lambda images: encode(images, batch_size=args.batch_size),
        batch_size=args.batch_size,
        part=part,
        parts=parts,
        workers=args.workers,
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
    parser.add_argument(
        "--encoder", metavar="FILE", required=True, help="CLIP's vision tower, a file or a folder"
    )
    encoding_flags.add_flags(
        parser, stored="features", shard_size=4096, batch_size=64, rows="images"
    )
    parser.add_argument("--data_dir", metavar="DIR", default="", help="of prepared TFDS data sets")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    return parser.parse(argv)


if __name__ == "__main__":
    cli.run(main)
