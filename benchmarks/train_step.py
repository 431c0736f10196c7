"""Times the train step, ours and PyTorch's: forward, backward, AdamW and EMA.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --pairs=11 --json=train_step.json

Both train a U-ViT-S/2 of the same weights in float32 on random images of the same shape. Ours is
the jitted step of `experiments.train`, with its noise and metrics; PyTorch's is a plain loop with
multi-tensor (`foreach`) AdamW and EMA.
"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import pairs
from experiments import cli

RATE, BETAS, DECAY, EMA = 2e-4, (0.99, 0.999), 0.03, 0.9999


def ours(shape: pairs.Shape, images: np.ndarray, params, **backbone) -> Callable[[], float]:
    """A function that takes one step and returns its loss."""
    import jax
    import jax.numpy as jnp

    from uvit_jax.models.model import build
    from uvit_jax.training.optimizer import make_optimizer
    from uvit_jax.training.run_config import parse_run
    from uvit_jax.training.state import TrainState
    from uvit_jax.training.step import make_step

    run = parse_run(
        dict(
            model=shape.ours(**backbone),
            data=dict(name="cifar10"),
            diffusion=dict(schedule=dict(name="vp_linear"), prediction="eps"),
            optimizer=dict(
                learning_rate=RATE, warmup_steps=0, b1=BETAS[0], b2=BETAS[1], weight_decay=DECAY
            ),
            train=dict(steps=1, batch_size=shape.batch_size, ema_decay=EMA, ema_warmup=False),
        )
    )
    optimizer, learning_rate = make_optimizer(run.optimizer, run.train)
    step = jax.jit(make_step(build(run.model), run, optimizer, learning_rate), donate_argnums=0)
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=jax.random.key(pairs.SEED),
    )
    batch = {"image": jnp.asarray(images)}

    def train_step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch))
        return float(metrics["loss"])

    return train_step


def theirs(module, images: np.ndarray, *, called=None, dtype=None) -> Callable[[], float]:
    """A function that takes one step and returns its loss; eps prediction on the VP-SDE.

    Args:
      called: the module, perhaps compiled. dtype: of autocast; None is float32.
    """
    import copy

    import torch

    average = copy.deepcopy(module).requires_grad_(False)
    averaged, parameters = list(average.parameters()), list(module.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, betas=BETAS, weight_decay=DECAY, foreach=True
    )
    device, network = parameters[0].device, called or module
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

    def train_step() -> float:
        t = torch.rand(len(images), device=device)
        alpha = torch.exp(-0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1)[:, None, None, None]
        noise = torch.randn_like(images)
        noised = alpha * images + (1 - alpha**2).sqrt() * noise
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = (network(noised, 1000 * t) - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - EMA)
        return loss.item()

    return train_step


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    args = pairs.parser(__doc__).parse(argv)
    pairs.set_threads(args.threads)
    shape = pairs.shape(args)
    module = shape.theirs()
    params = pairs.converted(module, shape.num_heads)
    images_shape = (shape.batch_size, shape.size, shape.size, shape.channels)
    images = np.random.default_rng(pairs.SEED).uniform(-1, 1, images_shape).astype(np.float32)
    our_step = ours(shape, images, params, **pairs.backbone(args))
    taken = pairs.measure(our_step, theirs(module, images), args.pairs)
    pairs.report(args, "train step", taken)
    return 0


if __name__ == "__main__":
    cli.run(main)
