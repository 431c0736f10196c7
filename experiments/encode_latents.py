"""Encodes the images or clips of a data set, once, for training on their latents.

    python -m experiments.encode_latents --data.name=imagenet2012 --data.image_size=256 \\
        --data.labels=label --autoencoder=vae.safetensors --mirror --out=latents/imagenet256
    python -m experiments.train --config=configs/uvit_l.py
    python -m experiments.encode_latents --data.name=clips --data.path=videos --data.frames=81 \\
        --data.image_size=256 --data.text=True --autoencoder=Wan2.1_VAE.pth --out=latents/videos

The autoencoder is Stable Diffusion's, with the tensor names of diffusers or CompVis, alone or in a
full checkpoint; or a causal video autoencoder (Wan's, or of experiments.train_autoencoder), which
encodes clips, from the start of each, and images as videos of one frame. Training samples new
latents from the stored moments at every step.

With several --data.sizes, the latents of each size are in a sub-folder of --out.

Rerunning the command resumes a stopped run. Several hosts share the work if each has its own
--part=0/4, 1/4, … and all the same folder, or with --distributed=auto on a TPU pod.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import cli, encoding_flags
from uvit_jax.config import parse, to_dict
from uvit_jax.data.data_config import WORLDS, DataConfig
from uvit_jax.errors import UvitError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _parse(argv)

    from uvit_jax.parallel import distributed

    distributed.initialize(args.distributed)

    import jax

    from uvit_jax.autoencoders.image_autoencoder import FrameAutoencoder, load_image_autoencoder
    from uvit_jax.autoencoders.kl import SCALE
    from uvit_jax.autoencoders.kl_weights import resolve
    from uvit_jax.data import pipeline
    from uvit_jax.data.latent_shards import LatentIndex, encode_images
    from uvit_jax.data.sources.latent_folders import size_folder

    autoencoder, params = load_image_autoencoder(
        args.autoencoder, num_groups=args.num_groups, dtype=args.precision
    )
    video = isinstance(autoencoder, FrameAutoencoder)
    file, settings = _video_file(args.autoencoder) if video else resolve(args.autoencoder)
    data = pipeline.dataset(args.data)
    if args.data.frames:
        if not video:
            raise UvitError(
                f"{file} is not a video autoencoder, which --data.name={args.data.name} needs"
            )
        autoencoder = autoencoder.video
    scale = args.scale if args.scale is not None else settings.get("scaling_factor")
    described = dataclasses.asdict(autoencoder.config).items()
    common = dict(
        shard_size=args.shard_size,
        mirrored=args.mirror,
        dtype=args.dtype,
        scale=SCALE if scale is None else scale,
        labels=bool(args.data.labels),
        captions=args.data.text,
        class_names=data.class_names,
        words=None if data.tokenizer is None else data.tokenizer.words,
        source=_source_keys(args.data),
        autoencoder={
            "file": file.name,
            "sha256": _sha256(file),
            # As folders of before the latents' mean and standard deviation have it.
            "config": {key: value for key, value in described if value != ()},
        },
    )
    parts = {args.out: data}
    if data.buckets is not None:
        parts = {size_folder(args.out, size): part for size, part in data.by_size().items()}
    indices = {}
    for out, part in parts.items():
        frames = (args.data.frames,) if args.data.frames else ()
        shape = autoencoder.latent_shape((*frames, *part.image_shape))
        index = dict(common, shape=shape, count=len(part))
        indices[out] = parse(LatentIndex, index, "encode_latents")
    encode = _encoder(autoencoder, params, args.batch_size)
    number, count = args.part or (jax.process_index(), jax.process_count())
    for out, index in indices.items():
        began = time.perf_counter()
        written = encode_images(
            out,
            index,
            parts[out],
            encode,
            batch_size=args.batch_size,
            part=number,
            parts=count,
            workers=args.data.workers,
        )
        results = {"out": str(args.out), "count": len(data)}
        encoding_flags.report(args.json, out, index, written, began, results)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "--autoencoder", metavar="FILE", required=True, help="its weights, or a folder of diffusers"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for the latents")
    parser.add_argument("--mirror", action="store_true", help="encode mirrored images too")
    parser.add_argument(
        "--scale", type=float, help="factor for samples; default that of the folder, or 0.18215"
    )
    parser.add_argument("--num_groups", type=int, help="of the GroupNorms; default as published")
    encoding_flags.add_flags(
        parser, stored="moments", shard_size=4096, batch_size=32, rows="images"
    )
    group = parser.add_argument_group(
        "the images", "the fields of uvit_jax.data.data_config.DataConfig"
    )
    fields, help_texts = dataclasses.fields(DataConfig), cli.explained(DataConfig)
    for field in fields:
        text = help_texts[field.name].replace("%", "%%")
        options = dict(metavar="VALUE", type=cli.literal, default=field.default, help=text)
        group.add_argument(f"--data.{field.name}", **options)
    args = parser.parse(argv)
    given = {field.name: getattr(args, f"data.{field.name}") for field in fields}
    args.data = parse(DataConfig, given, "data")
    if args.data.name == "latents":
        raise UvitError(
            "--data.name=latents: these are encoded already; give the data set of their images"
        )
    if args.data.autoencoder:
        raise UvitError(
            "--data.autoencoder encodes while a model is trained; give --autoencoder=FILE alone"
        )
    if args.data.name in (*WORLDS, "totem_videos"):
        raise UvitError(
            f"--data.name={args.data.name}: data with reference images or a camera are encoded "
            "while a model is trained; set config.data.autoencoder of the run"
        )
    if args.data.first_frames or args.data.last_frames:
        raise UvitError("clips are encoded whole: set first_frames in the config of the run")
    if args.data.flip:
        raise UvitError("--data.flip mirrors at random; use --mirror, which stores both latents")
    args.part = part_of(args.part) if args.part else None
    return args


def _video_file(path: str) -> tuple[Path, dict]:
    """The file of a video autoencoder's weights, and the settings of its latents, which it has
    normalised itself."""
    from uvit_jax.paths import local_path

    file = local_path(path)
    file = file / "diffusion_pytorch_model.safetensors" if file.is_dir() else file
    return file, {"scaling_factor": 1.0}


def part_of(text: str) -> tuple[int, int]:
    """(I, N) of the value I/N of --part; UvitError if it has another form."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UvitError(f"--part={text!r} must be I/N with 0 <= I < N, such as 0/4")
    return int(index), int(count)


def _encoder(autoencoder, params, batch_size: int):
    """The compiled encoder, with each batch sharded over this host's devices."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = jax.local_devices()
    if batch_size < 1 or batch_size % len(devices):
        raise UvitError(f"--batch_size={batch_size} is not a multiple of {len(devices)} devices")
    mesh = Mesh(np.array(devices), ("data",))
    sharded, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    encode = jax.jit(autoencoder.encode, in_shardings=(replicated, sharded), out_shardings=sharded)
    params = jax.device_put(params, replicated)
    return lambda images: jax.device_get(encode(params, images))


def _source_keys(config: DataConfig) -> dict:
    """The keys of a data config that are not at their defaults, without those that do not affect
    its images, labels and texts."""
    defaults, values = to_dict(DataConfig()), to_dict(config)
    free = ("data_dir", "workers", "processes")
    return {k: v for k, v in values.items() if k == "name" or (v != defaults[k] and k not in free)}


def _sha256(file: Path) -> str:
    import hashlib

    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    cli.run(main)
