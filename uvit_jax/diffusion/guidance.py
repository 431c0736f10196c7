"""Classifier-free guidance (Ho & Salimans 2022), all conditions in one enlarged batch.

The convention is that of U-ViT and UniDiffuser: `conditional + scale * (conditional -
unconditional)`, so that scale 0 is the plain conditional model. The scale that DiT, Imagen and
Stable Diffusion publish is 1 + ours. The combination acts on whatever the network predicts: its
weights sum to one, so that it means the same for eps, x0, v, velocity and score.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from uvit_jax.diffusion.schedule_base import Schedule
from uvit_jax.errors import UvitError

Tree = Any
Predict = Callable[[Tree, jax.Array, Tree], Tree]


def guided(
    predict: Predict,
    conditions: Tree,
    null_conditions: Tree,
    scale: float,
    *,
    schedule: Schedule | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | Mapping[str, int] | None = None,
) -> Callable[[Tree, jax.Array], Tree]:
    """A guided network function `(x, network_time) -> outputs`, as `process.denoiser` takes it.

    Args:
      predict: `predict(x, network_time, conditions)`, x a pytree with leaves (B, ...), network_time
        (B,), conditions a pytree with leaves (B, ...); one call with 2 B examples is made.
      conditions: leaves (B, ...).
      null_conditions: of the same structure, leaves (B, ...) or (1, ...).
      scale: of the convention above. A Python 0 costs nothing: the batch is not doubled.
      schedule: needed for `interval`, to translate t into what the network is told.
      interval: the t between which guidance acts; outside, the scale is 0, at the same cost
        (Kynkäänniemi et al. 2024).
      channels: if given, only the first so many entries of the last axis are guided and the others
        are the conditional ones; for everything, or by segment, those not named being guided
        whole. DiT's original sampler guides 3 of 4.

    Raises:
      UvitError: for an interval without a schedule or out of order, or, when called, conditions
        that do not fit the batch.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UvitError(f"interval must be ordered and lie in [0, 1], got {interval}")
    limited = (low, high) != (0.0, 1.0)
    if limited and schedule is None:
        raise UvitError("a guidance interval in t needs the schedule")
    counts = channels.values() if isinstance(channels, Mapping) else (channels,)
    if any(count is not None and count < 1 for count in counts):
        raise UvitError(f"channels must be at least 1, got {channels}")
    if isinstance(scale, int | float) and scale == 0:
        return lambda x, network_time: predict(x, network_time, conditions)

    def outputs(x: Tree, network_time: jax.Array) -> Tree:
        conditional, unconditional = evaluate(
            predict, x, network_time, [conditions, null_conditions]
        )
        scale_B = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), network_time.shape)
        if limited:
            first, last = (float(schedule.network_time(t)) for t in (low, high))
            slack = 1e-6 * max(last, 1.0)  # of float32
            inside = (network_time >= first - slack) & (network_time <= last + slack)
            scale_B = jnp.where(inside, scale_B, 0.0)

        def combine(c, u, first=None):
            weight = scale_B.reshape((-1,) + (1,) * (c.ndim - 1))
            if first is not None:
                weight = weight * (jnp.arange(c.shape[-1]) < first)
            return c + weight * (c - u)

        if isinstance(channels, Mapping):
            return {
                name: combine(c, unconditional[name], channels.get(name))
                for name, c in conditional.items()
            }
        return jax.tree.map(partial(combine, first=channels), conditional, unconditional)

    return outputs


def evaluate(
    predict: Predict, x: Tree, network_time: jax.Array, alternatives: Sequence[Tree]
) -> list[Tree]:
    """The outputs at one state under each of K sets of conditions, by one call with K B examples.

    The alternatives of an example lie side by side, (B, K, ...) flattened, so that a batch sharded
    over devices stays where it is.

    Args:
      predict: as in `guided`.
      x: a pytree with leaves (B, ...).
      network_time: (B,).
      alternatives: K pytrees of one structure, leaves (B, ...) or (1, ...).

    Raises:
      UvitError: if the alternatives differ in structure, or their leaves do not fit the batch.
    """
    batch, count = network_time.shape[0], len(alternatives)
    structures = {jax.tree.structure(a) for a in alternatives}
    if len(structures) != 1:
        raise UvitError(f"conditions and null conditions differ in structure: {structures}")

    def beside(*leaves):
        for leaf in leaves:
            if leaf.ndim == 0 or leaf.shape[0] not in (1, batch):
                raise UvitError(
                    f"a condition of shape {leaf.shape} does not fit a batch of {batch}"
                )
        leaves = [jnp.broadcast_to(leaf, (batch, *leaf.shape[1:])) for leaf in leaves]
        return jnp.stack(leaves, axis=1).reshape(batch * count, *leaves[0].shape[1:])

    tiled_x, tiled_time = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, count, axis=0), (x, network_time)
    )
    outputs = predict(tiled_x, tiled_time, jax.tree.map(beside, *alternatives))
    if isinstance(x, Mapping) and isinstance(outputs, Mapping):
        outputs = {name: outputs[name] for name in x if name in outputs}
    return [
        jax.tree.map(lambda o: o.reshape(batch, count, *o.shape[1:])[:, k], outputs)  # noqa: B023
        for k in range(count)
    ]
