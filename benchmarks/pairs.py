"""Ours and PyTorch's U-ViT of one shape and with the same weights, timed in alternating pairs.

Wall seconds depend on what else the machine does meanwhile; a pair's two halves are neighbours in
time, so their ratio depends on it less. CPU seconds, summed over threads, are printed beside them.
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
    """A U-ViT's, and the batch's; the defaults are U-ViT-S/2 on CIFAR-10.

    Attributes:
      size: of a picture's side, in pixels.
      channels: of a picture.
      patch_size: a patch's side, in pixels.
      width: of a token.
      depth: blocks.
      num_heads: of attention.
      batch_size: examples a step, or pictures drawn at once.
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
        """PyTorch's module, with weights drawn from SEED."""
        import torch

        from tests.helpers.torch_uvit import UViT

        torch.manual_seed(SEED)
        return UViT(
            self.size, self.patch_size, self.channels, self.width, self.depth, self.num_heads
        )


def converted(module, num_heads: int):
    """Our parameters with the weights of PyTorch's module, by way of a checkpoint file."""
    import torch

    import uvit_jax

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nnet_ema.pth"
        torch.save(module.state_dict(), path)
        return uvit_jax.load(path, num_heads=num_heads)[1]


def parser(description: str) -> cli.Parser:
    """The flags that both benchmarks share: a field of `Shape` each, threads, pairs, backbone."""
    parser = cli.Parser(description, config=False)
    helps = cli.explained(Shape)
    for field in dataclasses.fields(Shape):
        parser.add_argument(
            f"--{field.name}", type=int, default=field.default, help=helps[field.name]
        )
    parser.add_argument("--threads", type=int, default=2, help="of both")
    parser.add_argument("--pairs", type=int, default=7, help="how many to measure")
    parser.add_argument("--attention", default="blocked", help="ours: see parallel/attention.py")
    parser.add_argument("--products", default="flat", help="ours: see models/kernels.py")
    parser.add_argument("--unroll", type=int, default=6, help="ours: blocks a turn of the scan")
    return parser


def backbone(args) -> dict[str, Any]:
    """The keys of our backbone that the flags set; by default those that are fast on CPUs."""
    return dict(attention=args.attention, products=args.products, unroll=args.unroll)


def shape(args) -> Shape:
    """The `Shape` that the flags describe."""
    return Shape(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Shape)})


def set_threads(count: int) -> None:
    """Gives PyTorch, and JAX's CPU backend by the cores that it may use, so many threads.

    Call it before JAX's first computation, which is when its pool of threads is made.

    Raises:
      UvitError: if there are fewer cores, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UvitError(
            "this times PyTorch beside ours, and it is not installed: pip install -e '.[test]'"
        ) from None

    from uvit_jax.parallel import cpu

    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise UvitError(f"--threads must lie between 1 and {len(cores)} cores, got {count}")
    os.sched_setaffinity(0, cores[:count])
    torch.set_num_threads(count)
    cpu.keep_freed_memory()  # as the trainer does; PyTorch's memory is kept, too


def measure(
    ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int
) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of each, `pairs` times, after one uncounted call of both.

    Which of the two goes first changes from pair to pair.
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
    """Medians of the seconds, and of the pairs' ratios theirs / ours with their least and most.

    A ratio above 1 says that ours is faster.
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
    """Prints the summary, and writes it with every measurement to `--json`."""
    rows = summary(taken)
    for clock, row in rows.items():
        print(
            f"{what}, {clock} seconds: ours {row['ours']:.3f}, PyTorch {row['theirs']:.3f}; "
            f"PyTorch / ours {row['ratio']:.2f} (median of {args.pairs} pairs, "
            f"{row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
        )
    settings = {key: value for key, value in vars(args).items() if key not in ("json", "overrides")}
    cli.write_json(args.json, {"settings": settings, "summary": rows, "seconds": taken, **more})
