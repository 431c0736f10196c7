"""Imports weights into a workdir, which sample, evaluate and train use like any run's.

    python -m experiments.import_checkpoint --checkpoint=imagenet256_uvit_large.pth \\
        --workdir=workdirs/uvit_l
    python -m experiments.sample --workdir=workdirs/uvit_l --label=207

The weights are of an official U-ViT or DiT (.pth, .pt, .safetensors, or a training folder), of
diffusers' DiT (a folder or .safetensors), or our own export. Everything else comes from a config:
the one that --config names, or the one of configs/ with the same model. In the latter case the
model computes in float32, like the original; --config.model.dtype=bfloat16 is faster.

--subjects adds reference images to the model's sequence. It predicts as before until it is trained
further: their gates start closed.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import cli

if TYPE_CHECKING:
    from uvit_jax.training.run_config import RunConfig

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config_required=False)
    parser.add_argument("--checkpoint", metavar="PATH", required=True, help="a file or a folder")
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--step", type=int, help="of a training folder; default the newest")
    parser.add_argument(
        "--raw", action="store_true", help="the raw parameters instead of their EMA"
    )
    parser.add_argument("--num_heads", type=int, help="if not implied by shapes")
    parser.add_argument("--num_classes", type=int, help="without the null class")
    parser.add_argument("--image_size", type=int, help="side of the image in pixels or latents")
    parser.add_argument("--text_tokens", type=int, help="of a model of text features")
    parser.add_argument(
        "--subjects", type=int, default=0, help="add references of so many subjects to the model"
    )
    parser.add_argument("--views", type=int, default=1, help="of each of these subjects")
    args = parser.parse(argv)

    from uvit_jax.errors import UvitError
    from uvit_jax.training.importing import import_checkpoint
    from uvit_jax.training.run_config import parse_run

    if args.subjects < 0 or args.views < 1:
        raise UvitError(
            f"--subjects must be at least 0 and --views 1, got {args.subjects} and {args.views}"
        )
    dtype = None
    if args.config:
        configs = {args.config: parse_run(cli.read_config(args.config, args.overrides))}
    else:
        # The only key that does not depend on the config.
        if "model.dtype" in args.overrides:
            dtype = str(args.overrides.pop("model.dtype"))
        if args.overrides:
            raise UvitError("--config.KEY=VALUE changes a config; name it with --config=FILE")
        configs = known_configs()
    imported = import_checkpoint(
        args.checkpoint,
        args.workdir,
        configs,
        chosen=bool(args.config),
        step=args.step,
        raw=args.raw,
        dtype=dtype,
        subjects=args.subjects,
        views=args.views,
        num_heads=args.num_heads,
        num_classes=args.num_classes,
        image_size=args.image_size,
        text_tokens=args.text_tokens,
    )
    print(
        f"{imported.file}: {imported.model} ({imported.form} names), "
        f"{imported.parameters / 1e6:.2f}M parameters, {imported.tokens} tokens, "
        f"{imported.heads} heads"
    )
    if imported.note:
        print(imported.note)
    if imported.caution:
        print(imported.caution)
    print(
        f"{imported.workdir}: config {imported.config}, checkpoint 0, computes in {imported.dtype}"
    )
    cli.write_json(args.json, dataclasses.asdict(imported))
    return 0


def known_configs(folder: Path = Path("configs")) -> "dict[str, RunConfig]":
    """Every run that the configs of a folder describe, by the value that `--config` takes.

    A file with `NAMES` has one run for each of them. A run that equals another is listed once,
    under the first name. Files that are broken or describe no run are left out, with a warning.
    """
    from uvit_jax.errors import UvitError
    from uvit_jax.training.run_config import parse_run

    configs = {}
    for path in sorted(folder.glob("*.py")):
        try:
            get_config, names = cli.load_config_file(str(path))
            for arguments in [(name,) for name in names] or [()]:
                config = get_config(*arguments)
                # Ablations and comparisons describe many runs.
                if "groups" not in config and "networks" not in config:
                    run = parse_run(config)
                    if run not in configs.values():
                        configs[":".join((str(path), *arguments))] = run
        except UvitError as problem:
            logger.warning("%s is left out: %s", path, problem)
    return configs


if __name__ == "__main__":
    cli.run(main)
