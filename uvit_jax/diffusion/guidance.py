"""Guidance and generation modes as a weighted sum of branches.

A branch is one evaluation of a network, with its own conditions and its own times of the segments
that are not generated. Classifier-free guidance (Ho & Salimans 2022) with scale s is

    [Branch(1 + s, predict, inputs), Branch(-s, predict, inputs | nulls)]

Weights sum to 1, so that the sum means the same for eps, x0, v, velocity and score. Scale 0 is the
conditional model, as in U-ViT and UniDiffuser; the scales that DiT, Imagen and Stable Diffusion
publish are 1 + s.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvit_jax.diffusion.schedule import Schedule
from uvit_jax.errors import UvitError

Arrays = Mapping[str, jax.Array]
Predict = Callable[[Arrays, Arrays], Arrays]
"""A network: (inputs by segment, network times (B,) by key) → predictions by segment."""


class Branch(NamedTuple):
    """One evaluation of a network.

    Attributes:
      weight: a number, an array () or (B,), or one of them by generated segment, 0 for those that
        are left out.
      predict: the network. Branches with the same `predict` are evaluated as one batch.
      inputs: all inputs but the generated segments, leaves (B, …) or (1, …). A generated segment
        among them replaces the sampler's state in this branch.
      times: t in [0, 1] of the keys that are not generated, and of those whose segments are
        replaced: 0 for given data, 1 for pure noise. `guided` takes the inputs to be at these
        times; `make_sampler` noises data to them.
    """

    weight: float | jax.Array | Mapping[str, float | jax.Array]
    predict: Predict
    inputs: Arrays
    times: Mapping[str, float] = {}


def guided(
    branches: Sequence[Branch],
    *,
    schedule: Schedule,
    time_keys: Sequence[str],
    interval: tuple[float, float] = (0.0, 1.0),
    channels: Mapping[str, int] | None = None,
) -> Callable[[Arrays, jax.Array], Arrays]:
    """A function `(x, network_time (B,)) → Σ weight · prediction`, as `process.denoiser` takes it.

    Args:
      branches: the first is the conditional one. Others whose weight is the
        Python number 0 are not evaluated.
      time_keys: the keys of the generated segments, whose time is the sampler's where a branch has
        no other.
      interval: the t in which guidance acts; outside, the result is the first branch's prediction,
        at the same cost (Kynkäänniemi et al. 2024).
      channels: by segment, the number of guided channels; the others are those of the first branch.
        DiT's original sampler guides 3 of 4. Variances of a learned range must stay unguided.

    Raises:
      UvitError: if there is no branch, weights do not sum to 1 (unchecked for arrays), the interval
        or the channels are impossible; when called, if inputs do not fit the batch.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UvitError(f"interval must be ordered and lie in [0, 1], got {interval}")
    if any(count < 1 for count in (channels or {}).values()):
        raise UvitError(f"channels must be at least 1, got {channels}")
    if not branches:
        raise UvitError("guidance needs at least one branch")
    used = [branches[0], *(b for b in branches[1:] if not _is_zero(b.weight))]
    by_segment = any(isinstance(b.weight, Mapping) for b in used)

    def weights_of(name: str = "") -> list[Any]:
        """The branches' weights, of one segment if they differ."""
        weights = [b.weight for b in used]
        weights = [w.get(name, 0) if isinstance(w, Mapping) else w for w in weights]
        if all(isinstance(w, numbers.Real) for w in weights) and abs(sum(weights) - 1) > 1e-6:
            of = f" of segment {name!r}" if name else ""
            raise UvitError(f"the weights of branches{of} must sum to 1, got {weights}")
        return weights

    common = None if by_segment else weights_of()

    def predict(x: Arrays, network_time_B: jax.Array) -> Arrays:
        times = [_network_times(b, time_keys, network_time_B, schedule) for b in used]
        first, *others = _evaluate(used, x, times)
        if unknown := (channels or {}).keys() - first.keys():
            raise UvitError(f"channels: {min(unknown)!r} is not generated")
        active_B = 1.0
        if (low, high) != (0.0, 1.0):
            start, end = (float(schedule.network_time(t)) for t in (low, high))
            slack = 1e-6 * max(end, 1.0)  # of float32
            inside = (network_time_B >= start - slack) & (network_time_B <= end + slack)
            active_B = jnp.where(inside, 1.0, 0.0)

        def combined(name: str) -> jax.Array:
            result = first[name]
            weights = weights_of(name) if common is None else common
            for weight, other in zip(weights[1:], others, strict=True):
                if by_segment and _is_zero(weight):
                    continue
                weight_B = jnp.broadcast_to(weight * active_B, network_time_B.shape)
                scale = weight_B.reshape((-1,) + (1,) * (result.ndim - 1))
                if name in (channels or {}):
                    scale = scale * (jnp.arange(result.shape[-1]) < channels[name])
                # Weights sum to 1: relative to the first branch, which may be the only one.
                result = result + scale * (other[name] - first[name])
            return result

        return {name: combined(name) for name in first}

    return predict


def _is_zero(weight: Any) -> bool:
    if isinstance(weight, Mapping):
        return all(map(_is_zero, weight.values()))
    return isinstance(weight, int | float) and weight == 0


def _network_times(
    branch: Branch, time_keys: Sequence[str], network_time_B: jax.Array, schedule: Schedule
) -> dict[str, jax.Array]:
    return dict.fromkeys(time_keys, network_time_B) | {
        key: jnp.full_like(network_time_B, float(schedule.network_time(t)))
        for key, t in branch.times.items()
    }


def _evaluate(
    branches: Sequence[Branch], x: Arrays, times: Sequence[Arrays]
) -> list[dict[str, jax.Array]]:
    """Each branch's predictions of the segments in x; branches of one network as one batch.

    The K branches of an example are adjacent, (B, K, …) flattened, so that a batch sharded over
    devices needs no communication.
    """
    outputs: list[Any] = [None] * len(branches)
    for network in dict.fromkeys(b.predict for b in branches):
        group = [i for i, b in enumerate(branches) if b.predict is network]
        B, K = next(iter(x.values())).shape[0], len(group)
        names = {frozenset(branches[i].inputs) - frozenset(x) for i in group}
        if len(names) != 1:
            raise UvitError(
                f"branches of one network need the same inputs, got {[sorted(n) for n in names]}"
            )

        def interleaved(arrays: Sequence[jax.Array], B: int = B, K: int = K) -> jax.Array:
            for a in arrays:
                if a.ndim == 0 or a.shape[0] not in (1, B):
                    raise UvitError(f"a condition of shape {a.shape} does not fit a batch of {B}")
            rows = [jnp.broadcast_to(a, (B, *a.shape[1:])) for a in arrays]
            return jnp.stack(rows, axis=1).reshape(B * K, *rows[0].shape[1:])

        if len({frozenset(times[i]) for i in group}) != 1:
            raise UvitError(
                "branches of one network need the same time keys, got "
                f"{[sorted(times[i]) for i in group]}"
            )
        inputs = {n: interleaved([branches[i].inputs[n] for i in group]) for n in names.pop()}
        for name, value in x.items():
            replaced = any(name in branches[i].inputs for i in group)
            rows = [branches[i].inputs.get(name, value) for i in group] if replaced else ()
            inputs[name] = interleaved(rows) if replaced else jnp.repeat(value, K, axis=0)
        both = {key: interleaved([times[i][key] for i in group]) for key in times[group[0]]}
        predicted = network(inputs, both)
        for k, i in enumerate(group):
            outputs[i] = {
                name: predicted[name].reshape(B, K, *predicted[name].shape[1:])[:, k]
                for name in x
                if name in predicted
            }
    return outputs
