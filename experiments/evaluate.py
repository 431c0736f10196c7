"""Measures how good a trained model's samples are, or any pictures.

    python -m experiments.evaluate --workdir=workdirs/quickstart --count=1000
    python -m experiments.evaluate --workdir=DIR --count=50000 --reference=cifar10_train.npz \\
        --encoder=inception --weights=pt_inception-2015-12-05-6726825d.pth
    python -m experiments.evaluate --workdir=DIR --count=30000 --data=latents/coco256_val \\
        --reference=coco256_val.npz …
    python -m experiments.evaluate --images=FOLDER_OR_NPZ --reference=FOLDER_OR_NPZ

Samples are drawn with the labels or captions of the run's data, by the run's own sampler, steps and
guidance, unless flags say otherwise. A figure is called after its encoder: only Inception with the
official weights makes an FID. Published ones are of 50000 samples of uniform labels, or for COCO of
30000 captions of the validation set. The figures, with all that they depend on, are added to the
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
    # The cheap and the likely mistakes first: the reference before hours of sampling.
    encode = encoder(args.encoder, args.weights, mesh)
    samples, told = run.samples(mesh) if run and not args.images else _given(args, mesh)
    reference, reference_told = _reference(args, run, encode, mesh)
    features = image_metrics.encode(encode, samples, keep=args.features, seed=args.seed)
    figures = image_metrics.figures(encode, features, reference)

    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": figures,
        "encoder": {
            "name": encode.name,
            "version": encode.version,
            "weights_sha256": encode.weights_sha256,
            "official": encode.official,
        },
        "samples": {"count": samples.count, **told},
        "reference": {"count": reference.statistics.count, **reference_told},
        "compared": image_metrics.compared(features, reference),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if jax.process_index() == 0:
        if args.write_reference:
            frechet.write_statistics(args.write_reference, reference.statistics)
        if run:
            with (run.folder.path / "evaluation.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        cli.write_json(args.json, row)
        against = f"{reference_told['source']} ({reference.statistics.count or 'count unknown'})"
        print(f"{encode.title}: {samples.count} pictures of {samples.name} against {against}")
        for name, value in figures.items():
            print(f"{name} {value:.6g}")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__, config=False)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--workdir", metavar="DIR", help="of experiments.train")
    what.add_argument("--step", type=int, help="which checkpoint; default the newest")
    what.add_argument(
        "--raw", action="store_true", default=None, help="the raw parameters, not their average"
    )
    what.add_argument(
        "--images", metavar="PATH", help="instead of samples, a folder's or an npz's pictures"
    )
    what.add_argument("--image_size", type=int, default=0, help="resize a folder's pictures")
    what.add_argument("--count", type=int, help="how many; default 10000, or all of --images")
    how = parser.add_argument_group("against what, and by which encoder")
    how.add_argument(
        "--reference",
        metavar="PATH",
        default="data",
        help="'data' (the run's own, the default), an npz of statistics (mu, sigma) or of "
        "pictures, or a folder of pictures",
    )
    how.add_argument(
        "--data", metavar="PATH", help="instead of the run's own folder of pictures or latents"
    )
    how.add_argument("--split", help="of the run's data, for reference and conditions")
    how.add_argument("--encoder", default="efficientnet_lite0", help="or inception, …")
    how.add_argument("--weights", metavar="FILE", help="of the encoder")
    how.add_argument(
        "--features", type=int, default=10_000, help="compared for precision and recall"
    )
    how.add_argument(
        "--write_reference", metavar="FILE", help="keep the reference's statistics as an npz"
    )
    drawn = parser.add_argument_group("how samples are drawn")
    drawn.add_argument(
        "--labels",
        choices=("data", "uniform"),
        help="the data's (the default), or each class equally often, which needs no data",
    )
    sampling_flags.add_flags(drawn)
    sampling_flags.add_attention_flag(drawn)
    drawn.add_argument("--seed", type=int, default=0)
    drawn.add_argument("--fsdp", type=int, default=1, help="shard parameters over so many")
    drawn.add_argument("--distributed", metavar="SPEC", default="", help="as experiments.train")
    args = parser.parse(argv)

    from uvit_jax.errors import UvitError

    if not (args.workdir or args.images):
        raise UvitError("give --workdir=DIR to measure a run, or --images=PATH to measure pictures")
    if args.images:
        names = ("step", "raw", "labels", "sampler", "steps", "attention", *sampling_flags.FLAGS)
        given = [f"--{name}" for name in names if getattr(args, name) is not None]
        if given:
            raise UvitError(f"{given[0]} tells how to draw samples, and --images are drawn already")
        if args.reference == "data" and not args.workdir:
            raise UvitError("--images needs a --reference, or a --workdir whose data are it")
    if (args.data or args.split) and not args.workdir:
        raise UvitError("--data and --split are of a run's data; name it with --workdir")
    if args.count is not None and args.count < 2:
        raise UvitError(f"--count must be at least 2, got {args.count}")
    if args.features < 4:
        raise UvitError(f"--features must be at least 4, got {args.features}")
    if args.seed < 0:
        raise UvitError(f"--seed must not be negative, got {args.seed}")
    return args


def _given(args: argparse.Namespace, mesh: Any) -> tuple[Any, dict[str, Any]]:
    """The pictures of `--images`."""
    from uvit_jax.evaluation.image_sets import of_file

    found = of_file(
        Path(args.images).expanduser(),
        args.batch_size,
        mesh,
        image_size=args.image_size,
        count=args.count,
    )
    return found, {"source": args.images, "image_size": args.image_size}


def _reference(
    args: argparse.Namespace, run: sampling_flags.Run | None, encode: Any, mesh: Any
) -> tuple[Any, dict[str, Any]]:
    """The reference's features, and where they are from."""
    from uvit_jax.encoders.weights import npz_names, sha256
    from uvit_jax.errors import UvitError
    from uvit_jax.evaluation import image_metrics, image_sets
    from uvit_jax.evaluation.frechet import read_statistics

    told: dict[str, Any] = {"source": args.reference}
    path = Path(args.reference).expanduser()
    if args.reference == "data":
        if run.data.name == "latents":
            raise UvitError(
                f"the run's data are latents ({run.data.path}), which no encoder sees; give "
                "the pictures that they were made of, or their statistics, with --reference=PATH"
            )
        told["source"] = run.data_name
        found = image_sets.of_dataset(run.dataset(), args.batch_size, mesh, run.data_name)
    elif path.suffix == ".npz" and {"mu", "sigma"} <= npz_names(path):
        statistics = read_statistics(path)
        if statistics.mean.size != encode.size:
            raise UvitError(
                f"{path} are statistics of {statistics.mean.size} features, and {encode.name} has "
                f"{encode.size}; take the encoder that they were made with"
            )
        if statistics.encoder and statistics.encoder != encode.version:
            raise UvitError(
                f"{path} was made with the encoder {statistics.encoder}, not {encode.version}"
            )
        return image_metrics.Features(statistics), {**told, "sha256": sha256(path)}
    else:
        found = image_sets.of_file(path, args.batch_size, mesh, image_size=args.image_size)
        if path.is_file():
            told["sha256"] = sha256(path)
    return image_metrics.encode(encode, found, keep=args.features, seed=args.seed), told


if __name__ == "__main__":
    cli.run(main)
