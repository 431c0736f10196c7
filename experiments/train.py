"""Trains the model of a config, or goes on training it.

    python -m experiments.train --config=configs/quickstart.py
    python -m experiments.train --config=configs/uvit_l.py --workdir=/data/uvit_l

The same command again goes on from the newest checkpoint. SIGTERM and Ctrl-C save one first.
`--plan` only shows how the run's state would be spread over the mesh, also over one that is not
here.
"""

import dataclasses
import json
from collections.abc import Sequence

from experiments import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 143 if it was asked to stop before the end."""
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run's folder; default workdirs/<name of the config>"
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
        help="until which all processes must have come (default: %(default)s)",
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
    args = parser.parse(argv)

    from uvit_jax.errors import UvitError
    from uvit_jax.parallel import distributed
    from uvit_jax.training.run_config import parse_run

    config = cli.read_config(args.config, args.overrides)
    if "groups" in config:
        raise UvitError(
            f"{args.config} is of many runs; python -m experiments.ablate --config={args.config}"
        )
    if "networks" in config:
        raise UvitError(
            f"{args.config} is of a comparison; python -m experiments.compare "
            f"--config={args.config}"
        )
    run = parse_run(config)
    if args.plan is not None:
        from uvit_jax.aot.sharding_plan import plan_run

        plan = plan_run(run, args.plan)
        print(plan)
        cli.write_json(args.json, plan.as_json())
        return 0
    distributed.initialize(args.distributed, args.distributed_timeout)

    import jax

    from uvit_jax.config import to_dict
    from uvit_jax.training.clock import shares
    from uvit_jax.training.loop import train

    workdir = args.workdir or f"workdirs/{cli.config_name(args.config)}"
    raw = json.loads(json.dumps(to_dict(run)))
    if jax.process_index() == 0:
        print(f"{workdir}: checkpoints, metrics, and pictures in samples/", flush=True)
    summary = train(run, raw, workdir)
    if jax.process_index() == 0:
        cli.write_json(args.json, {"workdir": workdir, **dataclasses.asdict(summary)})
        if summary.stopped:
            print(f"stopped at step {summary.step}, saved; the same command goes on from there")
        else:
            where = shares(summary.seconds_by_place)
            print(
                f"{summary.step} steps, loss {summary.loss:.4f}, {summary.seconds:.0f} s ({where})"
            )
            print(f"samples: {summary.samples}")
    return 143 if summary.stopped else 0


if __name__ == "__main__":
    cli.run(main)
