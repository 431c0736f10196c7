"""Ablations: trains variants that differ in one thing each, with several seeds, and compares them.

    python -m experiments.ablate --config=configs/ablations.py --group=long_skip,time
    python -m experiments.ablate --config=configs/ablations.py --seeds=5 --workdir=/data/ablations

The workdir gets results.csv (all measurements), results.json, table.md (means and paired
differences with 95 % intervals over seeds), curves.png and samples/. Rerunning the command resumes
a stopped ablation; Ctrl-C, SIGTERM and SIGHUP save first. The config is that of a run, with
`groups` of variants.
"""

from collections.abc import Sequence

from experiments import cli
from uvit_jax import interrupts
from uvit_jax.paths import local_path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 128 + the signal that stopped it."""
    parser = cli.Parser(
        __doc__,
        keys="experiments.ablation.variants.AblationConfig",
        example="--config.seeds=1, --config.train.steps=960",
    )
    parser.add_argument("--group", default="", help="groups to run, comma-separated; default all")
    parser.add_argument("--seeds", type=int, help="number of seeds; default config.seeds")
    parser.add_argument("--workdir", metavar="DIR", help="default workdirs/<name of the config>")
    parser.add_argument("--distributed", metavar="SPEC", default="", help="as in experiments.train")
    args = parser.parse(argv)

    from experiments.ablation.variants import make_plan
    from uvit_jax.parallel import distributed

    groups = [name.strip() for name in args.group.split(",") if name.strip()]
    config = cli.read_config(args.config, args.overrides)
    distributed.initialize(args.distributed)
    workdir = local_path(args.workdir or f"workdirs/{cli.config_name(args.config)}")

    import jax

    from experiments.ablation.runs import run

    plan = make_plan(config, groups=groups, seeds=args.seeds)
    results = run(plan, workdir)
    if results is None:
        return interrupts.stop_status()
    if jax.process_index() == 0:
        cli.write_json(args.json, {"workdir": str(workdir), **results})
        print((workdir / "table.md").read_text())
        print(f"{workdir}: results.csv, results.json, table.md, curves.png, samples/")
    return 0


if __name__ == "__main__":
    cli.run(main)
