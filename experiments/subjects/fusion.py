"""Least-squares fusion of several subjects' adapters into one.

    moments = [input_moments(model, diffusion, attach(params, a), a, examples, …) for a in adapters]
    fused = fuse(adapters, moments)

A weighted sum (`lora.combined`) applies every adapter to the inputs of every subject. Here, as in
Mix-of-Show's gradient fusion (Gu et al. 2023, eq. 4) with RegMean's closed form (Jin et al. 2023),
each layer's update D minimises Σᵢ ‖Xᵢ Dᵢ − Xᵢ D‖², where Xᵢ are the layer's inputs with adapter i
on subject i's examples. Only their second moments Gᵢ = XᵢᵀXᵢ are needed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.linear import Tapped
from uvit_jax.models.lora import Adapter, Adapters, WordVectors
from uvit_jax.models.model import Model, Params
from uvit_jax.training.loss import corrupt, network_inputs

Moments = Mapping[str, np.ndarray]
"""XᵀX (…, I, I) of a layer's inputs by its path, with the layer axis of its kernel."""


def moments_of(
    model: Model,
    params: Params,
    paths: Sequence[str],
    inputs: Mapping[str, jax.Array],
    times: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """The second moments of the inputs of layers in one forward pass. Pure.

    Args:
      params: of `model.apply`, adapters attached or not.
      paths: of layers of the backbone. inputs, times: see `Model.apply`.

    Returns:
      XᵀX by path, float32 (…, I, I), where X has a row for every token of the batch.
    """
    matrices = lora.matrices(model.abstract_params)
    zeros = {
        path: jnp.zeros((*matrices[path].lead, *(matrices[path].inputs,) * 2)) for path in paths
    }

    def output(moments: dict[str, jax.Array]) -> jax.Array:
        tapped = lora.replaced(params, {p: lambda w, m=m: Tapped(w, m) for p, m in moments.items()})
        outputs = model.apply(tapped, inputs, times)
        return sum(value.sum() for value in outputs.values())

    return jax.grad(output)(zeros)


def input_moments(
    model: Model,
    diffusion: ObjectiveConfig,
    params: Params,
    paths: Sequence[str],
    examples: Mapping[str, np.ndarray],
    key: jax.Array,
    *,
    rounds: int = 16,
) -> Moments:
    """The summed moments of layers' inputs on examples that are noised as in training.

    Args:
      params: with the subject's adapter attached or merged.
      examples: by segment, leaves (m, …). rounds: passes over the examples, each with new noise.
    """
    once = _round(model, diffusion, tuple(paths))
    total = None
    for i in range(rounds):
        found = once(params, dict(examples), jax.random.fold_in(key, i))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return jax.device_get(total)


@functools.lru_cache(maxsize=8)
def _round(model: Model, diffusion: ObjectiveConfig, paths: tuple[str, ...]) -> Callable[..., Any]:
    """The moments of one pass over noised examples, compiled once for all subjects."""

    @jax.jit
    def once(params, examples, key):
        conditions, corrupted = corrupt(key, model, examples, diffusion)
        return moments_of(model, params, paths, *network_inputs(model, conditions, corrupted))

    return once


def fuse(
    adapters: Sequence[Adapters],
    moments: Sequence[Moments],
    *,
    scales: Sequence[float] | None = None,
    ridge: float = 1e-4,
) -> Adapters:
    """The least-squares fusion of adapters, in float64, as one adapter of the sum of their ranks.

    Noise of variance λ on every layer's inputs makes the problem well posed:
    D = (Σᵢ Gᵢ + nλ)⁻¹ Σᵢ (Gᵢ + λ) aᵢ bᵢ, which is [a′₁ a′₂ …] [b₁; b₂; …] with
    a′ᵢ = (Σⱼ Gⱼ + nλ)⁻¹ (Gᵢ + λ) aᵢ. One adapter alone is unchanged; without data, D is the mean.

    Args:
      adapters: of the same layers. moments: of the inputs of these layers, one per adapter.
      scales: of the adapters; None for 1.
      ridge: λ in units of the mean eigenvalue of Σ Gᵢ.

    Raises:
      UvitError: if adapters or moments are not of the same layers, or ridge is not positive.
    """
    if ridge <= 0:
        raise UvitError(f"ridge must be positive, got {ridge}")
    words = {path for path, one in adapters[0].items() if isinstance(one, WordVectors)}
    paths = set(adapters[0]) - words
    if any(set(each) != paths | words for each in adapters) or any(paths - set(m) for m in moments):
        raise UvitError("adapters and moments must be of the same layers")
    scales = [1.0] * len(adapters) if scales is None else scales
    fused: Adapters = {}
    for path in words:  # each subject has its own
        fused[path] = WordVectors(np.sum([np.asarray(a[path].delta) for a in adapters], axis=0))
    for path in (path for path in adapters[0] if path in paths):
        grams = [np.asarray(m[path], np.float64) for m in moments]  # (…, I, I)
        total = sum(grams)
        size = total.shape[-1]
        noise = ridge * np.trace(total, axis1=-2, axis2=-1)[..., None, None] / size * np.eye(size)
        pairs = [each[path] for each in adapters]
        numerators = [
            (gram + noise)[..., None, :, :] @ np.asarray(pair.a, np.float64)
            for gram, pair in zip(grams, pairs, strict=True)
        ]
        regularised = (total + len(pairs) * noise)[..., None, :, :]
        a = np.linalg.solve(regularised, np.concatenate(numerators, axis=-1))
        b = [np.asarray(pair.b) * scale for pair, scale in zip(pairs, scales, strict=True)]
        fused[path] = Adapter(a=a.astype(np.float32), b=np.concatenate(b, axis=-2))
    return fused
