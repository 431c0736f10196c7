"""Least-squares fusion: exact where it can be, and otherwise the least-squares solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.subjects.fusion import fuse, input_moments, moments_of
from tests.models.test_lora import close, noise, setup
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.linear import Tapped
from uvit_jax.models.linear import product as matmul
from uvit_jax.models.lora import Adapter, LoraConfig, WordVectors

LAYER = "backbone/mid_block/mlp/fc1"
rng = np.random.default_rng(0)


def adapter(seed, inputs=12, outputs=5, rank=2):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(1, inputs, rank)), rng.normal(size=(1, rank, outputs))
    return {LAYER: Adapter(a=a.astype(np.float32), b=b.astype(np.float32))}


def product(adapters):
    return np.asarray(adapters[LAYER].a[0], np.float64) @ adapters[LAYER].b[0]


def test_orthogonal_inputs_recover_every_adapter():
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    adapters, inputs = [adapter(i) for i in range(3)], []
    for i in range(3):
        inputs.append(rng.normal(size=(50, 4)) @ basis[4 * i : 4 * i + 4])
    fused = fuse(adapters, [{LAYER: x.T @ x} for x in inputs], ridge=1e-9)
    assert fused[LAYER].rank == 6
    for own, x in zip(adapters, inputs, strict=True):
        np.testing.assert_allclose(x @ product(fused), x @ product(own), atol=1e-4)
        # The sum also answers the others' questions.
        assert np.abs(x @ sum(map(product, adapters)) - x @ product(own)).max() > 1


def test_one_adapter_is_itself_whatever_the_ridge():
    x = rng.normal(size=(5, 12))  # fewer rows than inputs: singular without the ridge
    for ridge in (1e-6, 1.0):
        fused = fuse([adapter(0)], [{LAYER: x.T @ x}], scales=[0.5], ridge=ridge)
        np.testing.assert_allclose(product(fused), 0.5 * product(adapter(0)), atol=1e-5)


def test_it_is_the_least_squares_solution():
    """Against numpy's own solver on the rows themselves, with full-rank inputs that overlap."""
    adapters, inputs = [adapter(0), adapter(1)], [rng.normal(size=(40, 12)) for _ in range(2)]
    fused = fuse(adapters, [{LAYER: x.T @ x} for x in inputs], ridge=1e-10)
    targets = [x @ product(each) for x, each in zip(inputs, adapters, strict=True)]
    best = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets))[0]
    np.testing.assert_allclose(product(fused), best, atol=1e-5)


def test_the_gradient_of_a_tap_is_the_moment_of_what_went_in():
    """In a scan over layers, against the inputs written out; the outputs stay as they are."""
    w_LII = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    x_BNI = jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)

    def network(kernels):
        def body(x, kernel):
            return jnp.tanh(matmul(x, kernel, 1)), None

        return jax.lax.scan(body, x_BNI, kernels)[0]

    zeros = jnp.zeros((3, 4, 4))
    assert np.array_equal(network(Tapped(w_LII, zeros)), network(w_LII))
    found = jax.grad(lambda m: network(Tapped(w_LII, m)).sum())(zeros)
    x = np.asarray(x_BNI).reshape(-1, 4)
    for w, moment in zip(np.asarray(w_LII), found, strict=True):
        np.testing.assert_allclose(moment, x.T @ x, atol=1e-5)
        x = np.tanh(x @ w)


def test_moments_of_a_network():
    """The same with an adapter attached and merged, and they add up over examples and rounds."""
    model, params, inputs, times, _ = setup("uvit")
    adapters = noise(lora.init(jax.random.key(0), params, LoraConfig(rank=2)), 3)
    find = jax.jit(lambda p, i, t: moments_of(model, p, list(adapters), i, t))
    attached = find(lora.attach(params, adapters), inputs, times)
    merged = find(lora.merge(params, adapters), inputs, times)
    close(attached, merged, rtol=1e-3, atol=1e-3)
    assert attached["backbone/in_blocks/mlp/fc2"].shape == (1, 64, 64)
    assert attached[LAYER].shape == (16, 16)
    first, rest = (
        jax.tree.map(lambda a, part=part: a[part], (inputs, times))
        for part in (slice(0, 1), slice(1, 3))
    )
    parts = [find(lora.merge(params, adapters), *given) for given in (first, rest)]
    close(jax.tree.map(jnp.add, *parts), merged, rtol=1e-3, atol=1e-3)
    examples = {"image": inputs["image"], "label": np.arange(3)}
    drawn = input_moments(
        model, ObjectiveConfig(), params, [LAYER], examples, jax.random.key(0), rounds=2
    )[LAYER]
    assert drawn.shape == (16, 16) and np.linalg.eigvalsh(drawn).min() > -1e-2


def test_what_cannot_be_fused():
    with pytest.raises(UvitError, match="ridge must be positive"):
        fuse([adapter(0)], [{LAYER: np.eye(12)}], ridge=0)
    with pytest.raises(UvitError, match="of the same layers"):
        fuse([adapter(0)], [{}])


def test_words_of_several_subjects_add_up():
    path = "embed/segments/text/described/table"
    words = [
        {path: WordVectors(np.eye(8, 4)[:, :4] * (np.arange(8) == i)[:, None])} for i in (0, 1)
    ]
    fused = fuse(words, [{}, {}])
    np.testing.assert_array_equal(fused[path].delta, sum(each[path].delta for each in words))
    both = [word | adapter(i) for i, word in enumerate(words)]
    assert set(fuse(both, [{LAYER: np.eye(12)}] * 2)) == {path, LAYER}
    with pytest.raises(UvitError, match="of the same layers"):
        fuse([both[0], adapter(1)], [{LAYER: np.eye(12)}] * 2)
