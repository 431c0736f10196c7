"""Times deterministic DDIM sampling, ours and PyTorch's.

    python -m benchmarks.sample
    python -m benchmarks.sample --steps=10 --json=sample.json

Both run a U-ViT-S/2 of the same weights in float32. Ours is the jitted sampler of
`experiments.sample`, PyTorch's a plain loop in `inference_mode`. The largest difference between the
predictions of the two networks for one input is printed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import pairs
from experiments import cli


def ours(shape: pairs.Shape, params, steps: int, **backbone) -> Callable[[], np.ndarray]:
    """A function that samples a batch of images (B, height, width, C)."""
    import jax
    import jax.numpy as jnp

    from uvit_jax.diffusion.objective import ObjectiveConfig
    from uvit_jax.diffusion.schedule import ScheduleConfig
    from uvit_jax.diffusion.solvers.solve import SamplerConfig
    from uvit_jax.models.model import build
    from uvit_jax.sampling.sampler import SampleConfig, make_sampler

    diffusion = ObjectiveConfig(schedule=ScheduleConfig(name="vp_linear"), prediction="eps")
    config = SampleConfig(sampler=SamplerConfig(name="ddim", steps=steps))
    model = build(shape.ours(**backbone))
    sampler = jax.jit(make_sampler(model, diffusion, config, batch_size=shape.batch_size))
    params, key = jax.tree.map(jnp.asarray, params), jax.random.key(pairs.SEED)
    return lambda: np.asarray(sampler(params, key, {})["image"])


def theirs(shape: pairs.Shape, module, steps: int) -> Callable[[], np.ndarray]:
    """A function that samples a batch of images (B, height, width, C)."""
    import torch

    noise_shape = (shape.batch_size, shape.channels, shape.size, shape.size)
    t = torch.linspace(1, 0, steps + 1)
    alpha = torch.exp(-0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1)
    sigma = (1 - alpha**2).clamp_min(0).sqrt()

    @torch.inference_mode()
    def sampler() -> np.ndarray:
        x = torch.randn(noise_shape)
        for i in range(steps):
            eps = module(x, (1000 * t[i]).expand(shape.batch_size))
            x = alpha[i + 1] * (x - sigma[i] * eps) / alpha[i] + sigma[i + 1] * eps
        return x.permute(0, 2, 3, 1).numpy()

    return sampler


def difference(shape: pairs.Shape, module, params, **backbone) -> float:
    """The largest difference between the predictions for one input."""
    import jax
    import torch

    from uvit_jax.models.model import build

    rng = np.random.default_rng(pairs.SEED)
    x = rng.normal(size=(2, shape.size, shape.size, shape.channels)).astype(np.float32)
    t = np.array([3.0, 700.0], np.float32)
    model = build(shape.ours(**backbone))
    actual = jax.jit(model.apply)(params, {"image": x}, {"image": t})["image"]
    with torch.inference_mode():
        expected = module(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t))
    return float(np.abs(np.asarray(actual) - expected.permute(0, 2, 3, 1).numpy()).max())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = pairs.parser(__doc__)
    parser.add_argument("--steps", type=int, default=3, help="network evaluations per batch")
    args = parser.parse(argv)
    pairs.set_threads(args.threads)
    shape = pairs.shape(args)
    module = shape.theirs().eval()
    params = pairs.converted(module, shape.num_heads)
    backbone = pairs.backbone(args)
    error = difference(shape, module, params, **backbone)
    print(f"largest difference between the two networks' predictions: {error:.1e}")
    taken = pairs.measure(
        ours(shape, params, args.steps, **backbone),
        theirs(shape, module, args.steps),
        args.pairs,
    )
    pairs.report(args, f"{args.steps} steps of sampling", taken, difference=error)
    return 0


if __name__ == "__main__":
    cli.run(main)
