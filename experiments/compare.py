"""Compares references in one sequence with fine-tuning on subject consistency.

    python -m experiments.compare --config=configs/subjects.py
    python -m experiments.compare --config=configs/subjects.py --quick
    python -m experiments.compare --config=configs/subjects.py --arms=unified,dit_lora
    python -m experiments.compare --config=configs/subjects.py --networks=shipped

It trains, samples and scores, and writes results.csv.gz (every score), manifest.json (their
provenance), tables.md and report.html (tables, paired differences with intervals, plots, costs,
samples) to the workdir. Rerunning the command resumes a stopped run; Ctrl-C, SIGTERM and
SIGHUP save first.
--networks takes finished networks from a folder instead of training them: files
`NETWORK_sSEED.safetensors` of experiments.export_checkpoint; or `shipped`, those of this package.
Methods whose network has no file are left out.
--report only scores and reports existing samples; without their networks, it writes report.html
from results.csv.gz and manifest.json.
"""

from collections.abc import Sequence

from experiments import cli
from uvit_jax import interrupts
from uvit_jax.paths import local_path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 128 + the signal that stopped it."""
    parser = cli.Parser(
        __doc__,
        keys="experiments.subjects.study_config.CompareConfig",
        example="--config.validation=8, --config.networks.dit_text.train.steps=100",
    )
    parser.add_argument(
        "--arms", default="", help="the methods to run, comma-separated; default all"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test of about 10 minutes")
    parser.add_argument(
        "--networks", metavar="DIR", help="a folder of finished networks, or `shipped`"
    )
    parser.add_argument("--report", action="store_true", help="only report, train nothing")
    parser.add_argument("--workdir", metavar="DIR", help="default workdirs/<name of the config>")
    args = parser.parse(argv)

    from experiments.subjects.study_config import parse_compare

    spec = args.config
    if args.quick:
        if ":" in spec:
            raise cli.UvitError("--quick needs a --config without an argument")
        spec += ":quick"
    config = parse_compare(cli.read_config(spec, args.overrides))
    workdir = local_path(args.workdir or f"workdirs/{cli.config_name(spec)}")

    from experiments.subjects.report import RESULTS, write, write_from_results
    from experiments.subjects.study import Comparison
    from uvit_jax.parallel import cpu
    from uvit_jax.shipped import shipped_networks

    of_results = (workdir / RESULTS).exists() and not (
        args.networks
        or any((workdir / "networks").glob("*.safetensors"))
        or any("load" in given for given in config.networks.values())
    )
    only = [name.strip() for name in args.arms.split(",") if name.strip()]
    files = f"{RESULTS}, manifest.json, tables.md, report.html"
    if args.report and not (of_results or (workdir / "compare.json").exists()):
        raise cli.UvitError(
            f"{workdir} has no results to report: neither compare.json nor {RESULTS}"
        )
    if args.report and of_results:  # of networks that are elsewhere
        summary, files = write_from_results(workdir), "report.html, without samples"
    else:
        cpu.keep_freed_memory()
        networks = None
        if args.networks == "shipped":
            known = shipped_networks.manifest()
            networks = {
                network: shipped_networks.file_of(name)
                for network, name in config.shipped.items()
                if name in known
            }
        elif args.networks:
            networks = {f.stem: f for f in local_path(args.networks).glob("*.safetensors")}
        comparison = Comparison(config, workdir, only, networks)
        summary = write(comparison.space) if args.report else comparison()
    if summary is None:
        return interrupts.stop_status()
    cli.write_json(args.json, {"workdir": str(workdir), **summary})
    print(f"{workdir}: {files}")
    return 0


if __name__ == "__main__":
    cli.run(main)
