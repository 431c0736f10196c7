"""Measures the quality of a trained model's samples, or of any images.

    python -m experiments.evaluate --workdir=workdirs/quickstart --count=1000
    python -m experiments.evaluate --workdir=DIR --count=50000 --reference=cifar10_train.npz \\
        --encoder=inception --weights=pt_inception-2015-12-05-6726825d.pth
    python -m experiments.evaluate --workdir=DIR --count=30000 --data=latents/coco256_val \\
        --reference=coco256_val.npz …
    python -m experiments.evaluate --images=FOLDER_OR_NPZ --reference=FOLDER_OR_NPZ

Samples have the labels or captions of the run's data, and the run's sampler, steps and guidance,
unless flags override them. Metrics are named after their encoder: only Inception with the official
weights yields an FID. Published FIDs are of 50000 samples with uniform labels, or for COCO of 30000
captions of the validation set. The metrics, with all settings they depend on, are appended to the
workdir's evaluation.jsonl.
"""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments import cli, sampling_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = _arguments(argv)

    from uvit_jax.parallel import distributed

    distributed.initialize(args.distributed)

    import jax

    from uvit_jax.encoders.image_encoder import encoder
    from uvit_jax.evaluation import frechet, image_metrics
    from uvit_jax.evaluation.image_sets import check_batch_size
    from uvit_jax.parallel.mesh import MeshConfig, make_mesh

    began = time.perf_counter()
    mesh = make_mesh(MeshConfig(fsdp=args.fsdp))
    check_batch_size(mesh, args.batch_size)
    run = sampling_flags.Run(args) if args.workdir else None
    # The reference precedes hours of sampling, so that errors in it appear at once.
    encode = encoder(args.encoder, args.weights, mesh)
    samples, samples_from = run.samples(mesh) if run and not args.images else _images(args, mesh)
    reference, reference_from = _reference(args, run, encode, mesh)
    features = image_metrics.encode(encode, samples, keep=args.features, seed=args.seed)
    metrics = image_metrics.metrics(encode, features, reference)

    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": metrics,
        "encoder": {
            "name": encode.name,
            "version": encode.version,
            "weights_sha256": encode.weights_sha256,
            "official": encode.official,
        },
        "samples": {"count": samples.count, **samples_from},
        "reference": {"count": reference.statistics.count, **reference_from},
        "compared": image_metrics.compared(features, reference),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if jax.process_index() == 0:
        if args.write_reference:
            frechet.write_statistics(args.write_reference, reference.statistics)
        if run:
            run.folder.outputs.mkdir(parents=True, exist_ok=True)
            with (run.folder.outputs / "evaluation.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            run.folder.upload()
        cli.write_json(args.json, row)
        against = f"{reference_from['source']} ({reference.statistics.count or 'count unknown'})"
        print(f"{encode.title}: {samples.count} images of {samples.name} against {against}")
        for name, value in metrics.items():
            print(f"{name} {value:.6g}")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, config=False)
    what = parser.add_argument_group("measured images")
    what.add_argument(
        "--workdir",
        metavar="DIR",
        help="of experiments.train; or shipped:NAME, or a file of experiments.export_checkpoint",
    )
    what.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    what.add_argument(
        "--raw", action="store_true", default=None, help="use the raw parameters, not their EMA"
    )
    what.add_argument(
        "--images", metavar="PATH", help="a folder or npz of images to measure instead of samples"
    )
    what.add_argument("--image_size", type=int, default=0, help="resize the images of a folder")
    what.add_argument(
        "--count", type=int, help="number of images; default 10000, or all of --images"
    )
    how = parser.add_argument_group("reference and encoder")
    how.add_argument(
        "--reference",
        metavar="PATH",
        default="data",
        help="'data' (the run's data, the default), an npz of statistics (mu, sigma) or of "
        "images, or a folder of images",
    )
    how.add_argument(
        "--data", metavar="PATH", help="replaces the run's folder of images or latents"
    )
    how.add_argument("--split", help="of the run's data, for reference and conditions")
    how.add_argument("--encoder", default="efficientnet_lite0", help="or inception, …")
    how.add_argument("--weights", metavar="FILE", help="of the encoder")
    how.add_argument(
        "--features",
        type=int,
        default=10_000,
        help="number of features for precision, recall and kernel distance",
    )
    how.add_argument(
        "--write_reference", metavar="FILE", help="write the statistics of the reference to an npz"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--labels",
        choices=("data", "uniform"),
        help="labels of the data (the default), or uniform over classes, which needs no data",
    )
    sampling_flags.add_size_flag(sampling)
    sampling_flags.add_flags(sampling)
    sampling_flags.add_attention_flag(sampling)
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument(
        "--fsdp", type=int, default=1, help="number of devices to shard parameters over"
    )
    sampling.add_argument("--distributed", metavar="SPEC", default="", help="as experiments.train")
    args = parser.parse(argv)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raises UvitError on flags that contradict each other or are out of range."""
    from uvit_jax.errors import UvitError

    if not (args.workdir or args.images):
        raise UvitError("pass --workdir=DIR to measure a run, or --images=PATH to measure images")
    if args.images:
        names = (
            "step",
            "raw",
            "labels",
            "sampler",
            "steps",
            "size",
            "attention",
            *sampling_flags.FLAGS,
        )
        given = [f"--{name}" for name in names if getattr(args, name) is not None]
        if given:
            raise UvitError(f"{given[0]} is a sampling flag, and --images are not sampled")
        if args.reference == "data" and not args.workdir:
            raise UvitError(
                "--images needs a --reference, or a --workdir whose data are the reference"
            )
    if (args.data or args.split) and not args.workdir:
        raise UvitError("--data and --split select a run's data; they need --workdir")
    if args.count is not None and args.count < 2:
        raise UvitError(f"--count must be at least 2, got {args.count}")
    if args.features < 4:
        raise UvitError(f"--features must be at least 4, got {args.features}")
    if args.seed < 0:
        raise UvitError(f"--seed must not be negative, got {args.seed}")


def _images(args: argparse.Namespace, mesh: Any) -> tuple[Any, dict[str, Any]]:
    """The images of `--images`, and their source."""
    from uvit_jax.evaluation.image_sets import of_file

    images = of_file(
        Path(args.images).expanduser(),
        args.batch_size,
        mesh,
        image_size=args.image_size,
        count=args.count,
    )
    return images, {"source": args.images, "image_size": args.image_size}


def _reference(
    args: argparse.Namespace, run: sampling_flags.Run | None, encode: Any, mesh: Any
) -> tuple[Any, dict[str, Any]]:
    """The features of the reference, and its source."""
    from uvit_jax.encoders.weights import npz_names, sha256
    from uvit_jax.errors import UvitError
    from uvit_jax.evaluation import image_metrics, image_sets
    from uvit_jax.evaluation.frechet import read_statistics

    source: dict[str, Any] = {"source": args.reference}
    path = Path(args.reference).expanduser()
    if args.reference == "data":
        if run.data.name == "latents":
            raise UvitError(
                f"the run's data are latents ({run.data.path}), which encoders cannot take; pass "
                "their images, or statistics of these, with --reference=PATH"
            )
        source["source"] = run.data_name
        images = image_sets.of_dataset(run.dataset(), args.batch_size, mesh, run.data_name)
    elif path.suffix == ".npz" and {"mu", "sigma"} <= npz_names(path):
        statistics = read_statistics(path)
        if statistics.mean.size != encode.size:
            raise UvitError(
                f"{path} has statistics of {statistics.mean.size} features, and {encode.name} has "
                f"{encode.size}; use the encoder of the statistics"
            )
        if statistics.encoder and statistics.encoder != encode.version:
            raise UvitError(
                f"{path} has statistics of the encoder {statistics.encoder}, not {encode.version}"
            )
        return image_metrics.ImageFeatures(statistics), {**source, "sha256": sha256(path)}
    else:
        images = image_sets.of_file(path, args.batch_size, mesh, image_size=args.image_size)
        if path.is_file():
            source["sha256"] = sha256(path)
    return image_metrics.encode(encode, images, keep=args.features, seed=args.seed), source


if __name__ == "__main__":
    cli.run(main)
