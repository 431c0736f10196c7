"""Times sampling with and without the cache of reference keys and values, in pairs.

    python -m benchmarks.reference_cache
    python -m benchmarks.reference_cache --style=dit --subjects=1 --views=1 --guidance=0

The model has random parameters and the size of the comparison on totems: 32×32 images in patches of
4, width 192, depth 6. The order of a pair alternates, and the ratio is taken within it. The largest
difference between the samples of the two is printed.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import uvit_jax
from experiments import cli
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.diffusion.solvers.solve import SamplerConfig
from uvit_jax.models.presets import unified
from uvit_jax.sampling.sampler import SampleConfig, make_sampler

SHAPE = (32, 32, 3)
DIFFUSION = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"), prediction="velocity")


def setup(args) -> tuple[uvit_jax.Model, dict, dict[str, jax.Array]]:
    """A model, random parameters, and conditions for a batch in which no reference is absent."""
    model = uvit_jax.build(
        unified.preset(
            args.style,
            SHAPE,
            patch_size=4,
            subjects=args.subjects,
            views=args.views,
            visibility=args.visibility,
            text=dict(shape=(16,), vocab_size=512),
            width=args.width,
            depth=args.depth,
            num_heads=args.width // 32,
        )
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.05, p.dtype), model.abstract_params
    )
    conditions = {}
    for name, shape in model.layout.condition_shapes.items():
        size = (args.batch_size, *shape)
        if name == "text":
            conditions[name] = jnp.asarray(rng.integers(1, 512, size), jnp.int32)
        elif name == "refs_present":
            conditions[name] = jnp.ones(size, bool)
        else:
            conditions[name] = jnp.asarray(rng.uniform(-1, 1, size), jnp.float32)
    return model, params, conditions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("--style", choices=unified.STYLES, default="uvit", help="of the model")
    parser.add_argument(
        "--visibility",
        choices=unified.VISIBILITIES[1:],
        default="ref_joint",
        help="of references",
    )
    parser.add_argument("--subjects", type=int, default=3, help="with references")
    parser.add_argument("--views", type=int, default=2, help="references of each subject")
    parser.add_argument("--width", type=int, default=192, help="a multiple of 32")
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--batch_size", type=int, default=4, help="images sampled at once")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale for references and text")
    parser.add_argument("--pairs", type=int, default=5, help="number of measurements")
    args = parser.parse(argv)

    model, params, conditions = setup(args)
    sample = SampleConfig(
        sampler=SamplerConfig(name="dpm_solver_pp", method="multistep", order=2, steps=args.steps),
        guidance_scale=args.guidance,
        reference_guidance_scale=args.guidance,
    )
    samplers = {}
    for option in ("never", "always"):
        config = dataclasses.replace(sample, cache_references=option)
        samplers[option] = jax.jit(
            make_sampler(model, DIFFUSION, config, batch_size=args.batch_size)
        )

    def sample_images(option: str) -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        images = samplers[option](params, jax.random.key(0), conditions)["image"]
        images.block_until_ready()
        return np.asarray(images), time.perf_counter() - began

    images = {option: sample_images(option)[0] for option in samplers}  # compiles
    difference = np.abs(images["never"] - images["always"]).max() / np.abs(images["never"]).max()
    seconds: dict[str, list[float]] = {option: [] for option in samplers}
    for pair in range(args.pairs):
        for option in list(samplers)[:: 1 if pair % 2 else -1]:
            seconds[option].append(sample_images(option)[1])
    ratios = [a / b for a, b in zip(seconds["never"], seconds["always"], strict=True)]
    result = dict(
        vars(args),
        seconds={name: statistics.median(times) for name, times in seconds.items()},
        ratio=statistics.median(ratios),
        ratios=ratios,
        difference=float(difference),
    )
    result.pop("json", None)
    print(
        f"{model}\n{args.subjects} subjects × {args.views} views, {args.steps} steps, batch "
        f"{args.batch_size}, guidance {args.guidance:g}, on {jax.devices()[0].device_kind}"
    )
    for name, text in (("never", "without the cache"), ("always", "with the cache")):
        print(f"  {text}: {result['seconds'][name]:.2f} s")
    print(
        f"  ratio {result['ratio']:.2f}, from {min(ratios):.2f} to {max(ratios):.2f} in "
        f"{len(ratios)} pairs; the images differ by {difference:.1e} of the largest value"
    )
    cli.write_json(args.json, result)
    return 0


if __name__ == "__main__":
    cli.run(main)
