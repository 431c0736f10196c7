"""Compiles a config's training step ahead of time, without the hardware, and reports its memory,
communication and lower bounds on its time.

    python -m experiments.compile --config=configs/uvit_l.py --topology=v5e:4x4
    python -m experiments.compile --config=configs/uvit_l.py --topology=v5e:4x4 \\
        --config.model.backbone.attention=splash --json=uvit_l.json
    python -m experiments.compile --config=configs/dit.py:XL/2-256 --topology=gpu:h100x8 \\
        --what=sample

Topologies are TPU slices by their shape in chips (v4, v5e, v5p, v6e; v5e:16x16 has 256) and GPUs by
their number (gpu:a100x8, gpu:h100x16). The compilers need no such hardware: `pip install
"uvit-jax[tpu]"` for TPUs, `"uvit-jax[cuda]"` for GPUs. Compiling takes a few minutes on two cores.

Nothing is run. Memory and collectives are the compiler's; times are lower bounds from the chip's
peak rates, not measurements. If the program does not fit, up to `--suggest=N` config changes are
compiled, and the first that fits is printed. The exit status is 0 if the program fits, else 1.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import cli

if TYPE_CHECKING:
    from uvit_jax.aot.compile_run import CompileReport


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5e:4x4")
    parser.add_argument("--what", choices=("step", "sample"), default="step", help="the program")
    parser.add_argument(
        "--suggest",
        type=int,
        default=4,
        metavar="N",
        help="number of config changes to try if the program does not fit",
    )
    args = parser.parse(argv)

    import jax

    from uvit_jax.aot.compile_run import compile_run
    from uvit_jax.aot.fitting import nearest_fit
    from uvit_jax.training.run_config import parse_run

    jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are not used
    # JAX cannot load programs for absent devices from its cache.
    jax.config.update("jax_enable_compilation_cache", False)
    run = parse_run(cli.read_config(args.config, args.overrides))
    report = compile_run(run, args.topology, args.what)
    print(describe(report))
    results = {"config": args.config, "overrides": args.overrides, **dataclasses.asdict(report)}
    results["suggestion"] = None
    if not report.fits and args.suggest > 0:
        tried: list[CompileReport] = []

        def fits(changed) -> bool:
            tried.append(compile_run(changed, args.topology, args.what))
            return tried[-1].fits

        changes = nearest_fit(run, report.chips, fits, what=args.what, tries=args.suggest)
        if changes is None:
            print(f"does not fit with any of {len(tried)} config changes; use more chips")
        else:
            flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
            print(f"it fits ({gib(tried[-1].memory_bytes)} per chip) with {flags}")
            results["suggestion"] = {"changes": changes, **dataclasses.asdict(tried[-1])}
    cli.write_json(args.json, results)
    return 0 if report.fits else 1


def describe(report: "CompileReport") -> str:
    """A report as text."""
    sizes = " × ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "1"
    memory = gib(report.memory_bytes) if report.memory_bytes else "an unknown amount"
    lines = [
        f"{report.what} for {report.topology}: {report.chips} chips, mesh {sizes}, batch "
        f"{report.batch_size}, attention {report.attention}, remat {report.remat}"
        + (f", {report.accumulate} microbatches" if report.accumulate > 1 else ""),
        f"  {'fits' if report.fits else 'DOES NOT FIT'}: {memory} of "
        f"{gib(report.chip_memory_bytes)} per chip; compiled in {report.compile_seconds:.0f} s",
    ]
    if report.bound is None:
        return "\n".join(lines)
    lines.append("  bytes sent per chip and run:")
    for role, kinds in report.moved.items():
        for kind, size in kinds.items():
            same = [c for c in report.collectives if (c.role, c.kind) == (role, kind)]
            times = sum(c.count for c in same)
            lines.append(f"    {role:<12} {kind:<19} {times:>6} × {megabytes(size):>12} in total")
    lines.append(
        f"    activations all-gathered or permuted: {megabytes(report.gathered_activations)}"
    )
    if report.kernels.get("tpu_custom_call"):
        lines.append(f"  TPU kernels (tpu_custom_call): {report.kernels['tpu_custom_call']}")
    bound, rate = report.bound, report.bound.images_per_second
    noun = "images" if report.what == "step" else "samples"
    lines += [
        f"  per chip: {report.model_flops / 1e12:.2f} TFLOPs of the model, "
        f"{report.program_flops / 1e12:.2f} with recomputation; "
        f"{report.traffic_bytes / 1e9:.1f} GB of memory traffic, "
        f"{report.intensity:.0f} FLOPs per byte",
        f"  roofline bound, not a measurement: at least {1e3 * bound.seconds:.1f} ms, at most "
        f"{rate:,.{0 if rate >= 10 else 2}f} {noun}/s, limited by {bound.limit} (compute "
        f"{1e3 * bound.compute:.1f}, memory {1e3 * bound.memory:.1f}, links "
        f"{1e3 * bound.links:.1f} ms)",
    ]
    return "\n".join(lines)


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.2f} GiB"


def megabytes(size: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{size / 1e6:,.2f} MB"


if __name__ == "__main__":
    cli.run(main)
