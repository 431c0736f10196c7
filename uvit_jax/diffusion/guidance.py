"""Classifier-free guidance (Ho & Salimans 2022), all conditions in one enlarged batch.

`guided` knows one null; `guided_by_levels` takes conditions away one after the other, each step
with a scale of its own, as for references and text.

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

from uvit_jax.diffusion.schedule import Schedule
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
    levels = [(predict, conditions), (predict, null_conditions)]
    return guided_by_levels(
        levels, [scale], schedule=schedule, interval=interval, channels=channels
    )


def used(scales: Sequence[float]) -> list[bool]:
    """Which of K + 1 levels take part under K scales: not those that only Python zeros ask for."""
    needed = [not (isinstance(scale, int | float) and scale == 0) for scale in scales]
    pairs = zip([*needed, False], [False, *needed], strict=True)
    return [k == 0 or before or after for k, (before, after) in enumerate(pairs)]


def guided_by_levels(
    levels: Sequence[tuple[Predict, Tree]],
    scales: Sequence[float],
    *,
    schedule: Schedule | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | Mapping[str, int] | None = None,
) -> Callable[[Tree, jax.Array], Tree]:
    """A guided network function where conditions are taken away in steps.

    With o_k the output at level k, it is o_0 + sum_k scale_k (o_k - o_(k+1)). For references and
    text, levels (all, references, nothing), that is Brooks et al. 2023 (InstructPix2Pix, eq. 3)

        v_0 + s_r (v_ref - v_0) + s_t (v_ref,text - v_ref)

    with s_t = 1 + scales[0] and s_r = 1 + scales[1], in the convention above.

    Args:
      levels: K + 1 pairs of a `predict` and its conditions, from all conditions to none. Those with
        the same `predict` are one call with an enlarged batch; another `predict` is a call of its
        own, for a level that takes less work.
      scales: K, of the convention above; a level that only Python zeros ask for is not evaluated.
      schedule, interval, channels: as in `guided`.

    Raises:
      UvitError: as `guided`.
    """
    if len(levels) != len(scales) + 1:
        raise UvitError(f"{len(scales)} scales go with {len(scales) + 1} levels, got {len(levels)}")
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UvitError(f"interval must be ordered and lie in [0, 1], got {interval}")
    limited = (low, high) != (0.0, 1.0)
    if limited and schedule is None:
        raise UvitError("a guidance interval in t needs the schedule")
    counts = channels.values() if isinstance(channels, Mapping) else (channels,)
    if any(count is not None and count < 1 for count in counts):
        raise UvitError(f"channels must be at least 1, got {channels}")
    wanted = [k for k, use in enumerate(used(scales)) if use]
    if len(wanted) == 1:
        predict, conditions = levels[0]
        return lambda x, network_time: predict(x, network_time, conditions)

    def outputs(x: Tree, network_time: jax.Array) -> Tree:
        found: dict[int, Tree] = {}
        for predict in dict.fromkeys(levels[k][0] for k in wanted):
            together = [k for k in wanted if levels[k][0] is predict]
            alternatives = [levels[k][1] for k in together]
            results = evaluate(predict, x, network_time, alternatives)
            found.update(zip(together, results, strict=True))
        weights_B = {}
        for k, scale in enumerate(scales):
            if k in found and k + 1 in found:
                weights_B[k] = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), network_time.shape)
        if limited:
            first, last = (float(schedule.network_time(t)) for t in (low, high))
            slack = 1e-6 * max(last, 1.0)  # of float32
            inside = (network_time >= first - slack) & (network_time <= last + slack)
            weights_B = {k: jnp.where(inside, w_B, 0.0) for k, w_B in weights_B.items()}

        def combine(*leaves, first=None):
            by_level = dict(zip(found, leaves, strict=True))
            result = by_level[0]
            for k, weight_B in weights_B.items():
                weight = weight_B.reshape((-1,) + (1,) * (result.ndim - 1))
                if first is not None:
                    weight = weight * (jnp.arange(result.shape[-1]) < first)
                result = result + weight * (by_level[k] - by_level[k + 1])
            return result

        if isinstance(channels, Mapping):
            return {
                name: combine(*(tree[name] for tree in found.values()), first=channels.get(name))
                for name in found[0]
            }
        return jax.tree.map(partial(combine, first=channels), *found.values())

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
