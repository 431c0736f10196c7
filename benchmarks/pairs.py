"""Times our U-ViT and PyTorch's, of the same shape and weights, in alternating pairs.

Other processes affect wall times; the two halves of a pair are adjacent in time, which makes their
ratio more robust. CPU times, summed over threads, are printed too.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import cli
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import uvit

SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a U-ViT and its batch; the defaults are U-ViT-S/2 on CIFAR-10.

    Attributes:
      size: side of an image, in pixels.
      channels: of an image.
      patch_size: side of a patch, in pixels.
      width: of a token.
      depth: number of blocks.
      num_heads: of attention.
      batch_size: examples per step, or images sampled at once.
    """

    size: int = 32
    channels: int = 3
    patch_size: int = 2
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    batch_size: int = 8

    def ours(self, **backbone: Any) -> dict[str, Any]:
        """The model's config."""
        return uvit.preset(
            "S",
            (self.size, self.size, self.channels),
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            **backbone,
        )

    def theirs(self):
        """PyTorch's module, with random weights."""
        import torch

        from tests.helpers.torch_uvit import UViT

        torch.manual_seed(SEED)
        return UViT(
            self.size, self.patch_size, self.channels, self.width, self.depth, self.num_heads
        )


def converted(module, num_heads: int):
    """The weights of PyTorch's module as our parameters, converted through a checkpoint file."""
    import torch

    import uvit_jax

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nnet_ema.pth"
        torch.save(module.state_dict(), path)
        return uvit_jax.load(path, num_heads=num_heads)[1]


def parser(description: str) -> cli.Parser:
    """The flags of both benchmarks: the fields of `Shape`, threads, pairs, backbone options."""
    parser = cli.Parser(description, config=False)
    helps = cli.explained(Shape)
    for field in dataclasses.fields(Shape):
        parser.add_argument(
            f"--{field.name}", type=int, default=field.default, help=helps[field.name]
        )
    parser.add_argument("--threads", type=int, default=2, help="for ours and PyTorch")
    parser.add_argument("--pairs", type=int, default=7, help="number of measurements")
    parser.add_argument("--attention", default="blocked", help="ours, see parallel/attention/")
    parser.add_argument("--products", default="flat", help="ours, see models/linear.py")
    parser.add_argument("--unroll", type=int, default=6, help="ours, blocks per scan iteration")
    return parser


def backbone(args) -> dict[str, Any]:
    """The backbone options of the flags; the defaults are fast on CPUs."""
    return dict(attention=args.attention, products=args.products, unroll=args.unroll)


def shape(args) -> Shape:
    """The `Shape` of the flags."""
    return Shape(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Shape)})


def set_threads(count: int) -> None:
    """Limits PyTorch, and JAX's CPU backend through the process' cores, to `count` threads.

    Call it before JAX's first computation, which creates its thread pool.

    Raises:
      UvitError: if there are fewer cores, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UvitError("the benchmark needs PyTorch: pip install -e '.[test]'") from None

    from uvit_jax.parallel import cpu

    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise UvitError(f"--threads must lie between 1 and {len(cores)} cores, got {count}")
    os.sched_setaffinity(0, cores[:count])
    torch.set_num_threads(count)
    cpu.keep_freed_memory()  # as in training; it affects PyTorch too


def measure(
    ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int
) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of both, `pairs` times, after a warm-up call.

    The order within the pairs alternates.
    """
    if pairs < 1:
        raise UvitError(f"--pairs must be at least 1, got {pairs}")
    sides = {"ours": ours, "theirs": theirs}
    taken = {name: {"wall": [], "cpu": []} for name in sides}
    for run in sides.values():
        run()
    for pair in range(pairs):
        for name in sorted(sides, reverse=bool(pair % 2)):
            cpu, wall = time.process_time(), time.perf_counter()
            sides[name]()
            taken[name]["wall"].append(time.perf_counter() - wall)
            taken[name]["cpu"].append(time.process_time() - cpu)
    return taken


def summary(taken: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians of the seconds; median, minimum and maximum of the pairs' ratios theirs / ours.

    Above 1, ours is faster.
    """
    rows = {}
    for clock in ("wall", "cpu"):
        ours, theirs = taken["ours"][clock], taken["theirs"][clock]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        rows[clock] = {
            "ours": statistics.median(ours),
            "theirs": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
    return rows


def report(args, what: str, taken: dict[str, dict[str, list[float]]], **more: Any) -> None:
    """Prints the summary, and writes it with all measurements to `--json`."""
    rows = summary(taken)
    for clock, row in rows.items():
        print(
            f"{what}, {clock} seconds: ours {row['ours']:.3f}, PyTorch {row['theirs']:.3f}; "
            f"PyTorch / ours {row['ratio']:.2f} (median of {args.pairs} pairs, "
            f"{row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
        )
    settings = {key: value for key, value in vars(args).items() if key not in ("json", "overrides")}
    cli.write_json(args.json, {"settings": settings, "summary": rows, "seconds": taken, **more})
