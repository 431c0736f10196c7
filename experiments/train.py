"""Trains the model of a config, or resumes its training.

    python -m experiments.train --config=configs/quickstart.py
    python -m experiments.train --config=configs/uvit_l.py --workdir=/data/uvit_l

Running the command again resumes from the newest checkpoint. Ctrl-C, SIGTERM and SIGHUP
save one first.
`--plan` prints how the run's state would be sharded over the mesh, without needing its devices.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import cli
from uvit_jax import interrupts

if TYPE_CHECKING:
    from uvit_jax.training.run_config import RunConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 128 + the signal that stopped it."""
    args = _parse(argv)
    run = _run_config(args)
    if args.plan is not None:
        from uvit_jax.aot.sharding_plan import plan_run

        plan = plan_run(run, args.plan)
        print(plan)
        cli.write_json(args.json, plan.as_json())
        return 0

    from uvit_jax.parallel import distributed

    distributed.initialize(args.distributed, args.distributed_timeout)

    import jax

    from uvit_jax.training.clock import shares
    from uvit_jax.training.loop import train

    workdir = args.workdir or f"workdirs/{cli.config_name(args.config)}"
    summary = train(run, workdir)
    if jax.process_index() == 0:  # after `train`, which sets up malloc before JAX has threads
        cli.write_json(args.json, {"workdir": workdir, **dataclasses.asdict(summary)})
        if summary.stopped:
            print(f"stopped and saved at step {summary.step}; the same command resumes it")
        else:
            print(
                f"{summary.step} steps, loss {summary.loss:.4f}, {summary.seconds:.0f} s "
                f"({shares(summary.seconds_by_place)})"
            )
            print(f"samples: {summary.samples}")
    return interrupts.stop_status() if summary.stopped else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run directory; default workdirs/<name of the config>"
    )
    parser.add_argument(
        "--distributed",
        metavar="SPEC",
        default="",
        help="several processes as one: 'auto' on TPU pods and SLURM, or ADDRESS:PORT,COUNT,INDEX",
    )
    parser.add_argument(
        "--distributed_timeout",
        metavar="SECONDS",
        type=int,
        default=300,
        help="within which all processes must join (default: %(default)s)",
    )
    parser.add_argument(
        "--plan",
        metavar="DEVICES",
        type=int,
        nargs="?",
        const=0,
        help="print each parameter's sharding and bytes on so many devices, and exit; default: as "
        "many as config.mesh multiplies to, or this machine's",
    )
    return parser.parse(argv)


def _run_config(args: argparse.Namespace) -> "RunConfig":
    """The run of `--config`; UvitError for the config of an ablation or a comparison."""
    from uvit_jax.errors import UvitError
    from uvit_jax.training.run_config import parse_run

    config = cli.read_config(args.config, args.overrides)
    for key, command in (("groups", "ablate"), ("networks", "compare")):
        if key in config:
            raise UvitError(
                f"{args.config} describes several runs; use "
                f"python -m experiments.{command} --config={shlex.quote(args.config)}"
            )
    return parse_run(config)


if __name__ == "__main__":
    cli.run(main)
