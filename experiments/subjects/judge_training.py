"""Trains a judge of totems.

Training batches hold training identities and near misses, which differ from them in one factor;
never an identity of validation or test, any two of which differ in three factors.
"""

import concurrent.futures
import time

import numpy as np

GROUPS, SCENES, EMPTY = 32, 12, 12  # 4 crops per group: two identities, two views each
SCALE, MARGIN = 16.0, 0.2


def batch_of(seed: int, step: int) -> dict[str, np.ndarray]:
    """A training batch: `image` (B, 32, 32, 3), and the labels (B,) of each head, -1 for no label.
    The first 4 * GROUPS rows are view 1 of every identity, then view 2."""
    from experiments.subjects import judge_crops
    from uvit_jax.data.sources.worlds import backgrounds, factors, random_scenes, scenes

    rng = np.random.default_rng([seed, step])
    train = factors.identities()["train"]
    base = train[rng.choice(len(train), GROUPS, replace=False)]
    weights = np.array([1.5 if name in ("front", "back") else 1.0 for name in factors.NAMES])
    changed = rng.choice(factors.NAMES, GROUPS, p=weights / weights.sum())
    miss = [judge_crops.near_miss(rng, one, f) for one, f in zip(base, changed, strict=True)]
    identity = np.tile(np.concatenate([base, miss]), (2, 1))
    yaw = np.stack([judge_crops.yaws(rng, factor, 4) for factor in changed], axis=1).reshape(-1)
    image, ground = judge_crops.totem_crops(rng, identity, yaw)
    examples = [
        scenes.render(
            random_scenes.draw("totems", "train", i, subjects=3, views=1, anywhere=True), 32
        )
        for i in rng.integers(2**31, size=SCENES)
    ]
    empty = judge_crops.empty_crops(rng, EMPTY)
    image = np.concatenate([image, np.stack([e.image for e in examples]), empty])
    image += rng.normal(size=image.shape) * rng.uniform(0, 0.08, (len(image), 1, 1, 1))
    counts = len(identity), SCENES, EMPTY
    visible = np.where(factors.visible(yaw), identity, -1)

    def column(*values) -> np.ndarray:
        parts = [np.broadcast_to(v, c) for v, c in zip(values, counts, strict=True)]
        return np.concatenate(parts).astype(np.int32)

    batch = {name: column(visible[:, i], -1, -1) for i, name in enumerate(factors.NAMES)}
    at = [backgrounds.NAMES.index(e.facts.background) for e in examples]
    batch |= {"background": column(ground, at, -1), "present": column(1, -1, 0)}
    return batch | {"image": image.astype(np.float32)}


def train(seed: int, steps: int, on_step=None):
    """Trains a judge; prints the loss every 50 steps.

    Args:
      on_step: called every 100 steps with the current network.

    Returns:
      The `TotemJudgeNetwork` with averaged weights, and the mean loss of the last 2 % of steps.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from experiments.subjects.totem_judge import HEADS, TotemJudgeNetwork

    graph, params = nnx.split(TotemJudgeNetwork(rngs=nnx.Rngs(seed)))
    rate = optax.warmup_cosine_decay_schedule(0, 1.5e-3, min(100, steps // 10 + 1), steps + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))

    def loss_of(params, batch):
        outputs = nnx.merge(graph, params)(batch["image"])
        first, second = jnp.split(outputs["embedding"][: 4 * GROUPS], 2)
        logits = SCALE * (first @ second.T - MARGIN * jnp.eye(len(first)))
        identity_loss = (
            -jnp.diag(jax.nn.log_softmax(logits) + jax.nn.log_softmax(logits, axis=0)).mean() / 2
        )
        head_loss = 0.0
        for head in HEADS:
            known = batch[head] >= 0
            losses = optax.softmax_cross_entropy_with_integer_labels(
                outputs[head], jnp.maximum(batch[head], 0)
            )
            head_loss += jnp.sum(losses * known) / jnp.maximum(known.sum(), 1)
        return identity_loss + 0.3 * head_loss

    @jax.jit
    def step_of(params, mean, state, decay, batch):
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: decay * m + (1 - decay) * p, mean, params)
        return params, mean, state, loss

    mean = params  # averaged weights embed better than the last ones
    state, losses, began = optimizer.init(params), [], time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(batch_of, seed, 0)
        for step in range(steps):
            batch = upcoming.result()
            upcoming = pool.submit(batch_of, seed, step + 1)
            decay = min(0.98, (1 + step) / (10 + step))
            params, mean, state, loss = step_of(params, mean, state, decay, batch)
            losses.append(float(loss))
            if on_step is not None and step % 100 == 99:
                on_step(nnx.merge(graph, mean))
            if step % 50 == 0 or step == steps - 1:
                spent = time.perf_counter() - began
                print(f"step {step}: loss {np.mean(losses[-50:]):.3f}, {spent:.0f} s", flush=True)
    return nnx.merge(graph, mean), float(np.mean(losses[-max(steps // 50, 1) :]))
