"""Compares one sequence with fine-tuning on subject consistency: trains, asks, judges, reports.

    python -m experiments.compare --config=configs/subjects.py
    python -m experiments.compare --config=configs/subjects.py --quick
    python -m experiments.compare --config=configs/subjects.py --arms=unified,dit_lora

The workdir gets results.csv (every number), manifest.json (how they were made), tables.md and
report.html (one page: tables, paired differences with intervals, plots, costs, pictures). The same
command again goes on where it was stopped; SIGTERM and Ctrl-C save first. --report judges and
writes what there is, and trains nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 143 if it was asked to stop before the end."""
    parser = cli.Parser(
        __doc__,
        keys="experiments.subjects.study_config.CompareConfig",
        example="--config.validation=8, --config.networks.dit_text.train.steps=100",
    )
    parser.add_argument("--arms", default="", help="which, with commas; default all")
    parser.add_argument("--quick", action="store_true", help="a smoke test of some 15 minutes")
    parser.add_argument("--report", action="store_true", help="only judge and write what there is")
    parser.add_argument("--workdir", metavar="DIR", help="default workdirs/<name of the config>")
    args = parser.parse(argv)

    from experiments.subjects.study_config import parse_compare

    spec = args.config
    if args.quick:
        if ":" in spec:
            raise cli.UvitError("--quick takes a config without an argument")
        spec += ":quick"
    config = parse_compare(cli.read_config(spec, args.overrides))
    workdir = Path(args.workdir or f"workdirs/{cli.config_name(spec)}").expanduser()

    from experiments.subjects.study import Comparison
    from experiments.subjects.writing import write
    from uvit_jax.parallel import cpu

    only = [name.strip() for name in args.arms.split(",") if name.strip()]
    if args.report and not (workdir / "compare.json").exists():
        raise cli.UvitError(f"{workdir} holds no comparison (no compare.json) to report on")
    cpu.keep_freed_memory()
    comparison = Comparison(config, workdir, only)
    found = write(comparison.space) if args.report else comparison()
    if found is None:
        return 143
    cli.write_json(args.json, {"workdir": str(workdir), **found})
    print(f"{workdir}: results.csv, manifest.json, tables.md, report.html")
    return 0


if __name__ == "__main__":
    cli.run(main)
