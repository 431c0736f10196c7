"""Draws pictures from a trained model and writes them as a grid and as arrays.

    python -m experiments.sample --workdir=workdirs/quickstart --prompt="grinning face, twemoji"
    python -m experiments.sample --workdir=workdirs/cifar10_uvit_s --count=64 --steps=50 --seed=1

The sampler, its steps and the guidance are the run's own unless flags say otherwise.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of experiments.train")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument("--raw", action="store_true", help="the raw parameters, not their average")
    parser.add_argument("--label", action="append", default=[], help="a class, by name or number")
    parser.add_argument("--prompt", action="append", default=[], help="a caption; may be repeated")
    parser.add_argument("--count", type=int, help="how many pictures")
    parser.add_argument("--batch_size", type=int, default=64, help="at once; default 64")
    parser.add_argument("--sampler", help="ddpm, ddim, dpm_solver, dpm_solver_pp, heun, …")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--guidance", type=float, help="s in cond + s (cond - uncond)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", metavar="FILE", help="the PNG; an .npz stands beside it; default in the workdir"
    )
    args = parser.parse(argv)

    import jax
    import numpy as np

    from uvit_jax import images, load
    from uvit_jax.errors import UvitError
    from uvit_jax.parallel.mesh import MeshConfig, make_mesh
    from uvit_jax.sampling import conditions_for, make_sampler
    from uvit_jax.training.config import parse_run
    from uvit_jax.training.workdir import Workdir

    folder = Workdir(args.workdir)
    run = parse_run(folder.read_config())
    vocabulary = folder.read_vocabulary()
    model, params = load(args.workdir, step=args.step, ema=not args.raw)

    changes: dict[str, Any] = {}
    sampler = run.sample.sampler
    if args.sampler and args.sampler != sampler.name:
        # The old sampler's other settings may mean nothing to the new one.
        sampler = type(sampler)(name=args.sampler, steps=sampler.steps)
    if args.steps is not None:
        sampler = dataclasses.replace(sampler, steps=args.steps)
    changes["sampler"] = sampler
    if args.guidance is not None:
        changes["guidance_scale"] = args.guidance
    if args.label or args.prompt:
        changes |= {"labels": tuple(args.label), "prompts": tuple(args.prompt)}
        changes["count"] = max(len(args.label), len(args.prompt))
    if args.count is not None:
        changes["count"] = args.count
    if not 0 <= args.seed < 2**32:
        raise UvitError(f"--seed must lie in [0, 2**32), got {args.seed}")
    if args.out and not args.out.endswith(".png"):
        raise UvitError(f"--out={args.out} must end in .png; the arrays stand beside it as .npz")
    if args.batch_size < 1:
        raise UvitError(f"--batch_size must be at least 1, got {args.batch_size}")
    config = dataclasses.replace(run.sample, **changes)

    conditions, captions = conditions_for(model, vocabulary, config)
    draw = jax.jit(make_sampler(model, run.diffusion, config))
    mesh = make_mesh(MeshConfig())
    params = jax.device_put(params)
    parts = []
    with jax.set_mesh(mesh):
        for start in range(0, config.count, args.batch_size):
            # The last batch is filled up, so that there is one shape to compile for.
            rows = np.arange(start, start + min(args.batch_size, config.count)) % config.count
            key = jax.random.fold_in(jax.random.key(args.seed), start)
            batch = {name: value[rows] for name, value in conditions.items()}
            parts.append(jax.device_get(draw(params, key, batch)))
    samples = {
        name: np.concatenate([part[name] for part in parts])[: config.count] for name in parts[0]
    }

    step = "" if args.step is None else f"_step{args.step}"
    out = Path(args.out or _free(folder.samples / f"sample{step}_seed{args.seed}.png"))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out.with_suffix(".npz"), **samples, **conditions)
    for name in (s.name for s in model.layout.noisy if s.modality == "image"):
        if samples[name].shape[-1] in (1, 3):
            images.save_png(images.grid(samples[name], captions=captions), out)
            print(out)
    print(out.with_suffix(".npz"))
    results = {"png": str(out), "npz": str(out.with_suffix(".npz")), "captions": captions}
    results |= {"sampler": dataclasses.asdict(sampler), "guidance_scale": config.guidance_scale}
    cli.write_json(args.json, {**results, "seed": args.seed, "count": config.count})
    return 0


def _free(path: Path) -> Path:
    """`path`, or the first of `path_2`, `path_3`, … where nothing stands yet."""
    candidate, number = path, 1
    while candidate.exists() or candidate.with_suffix(".npz").exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}_{number}")
    return candidate


if __name__ == "__main__":
    cli.run(main)
