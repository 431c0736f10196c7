"""TPU flash attention equals full attention, gradients too; the kernel runs as plain JAX here."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.running import ROOT, environment
from uvit_jax.errors import UvitError
from uvit_jax.parallel.attention.implementations import attention, check_platform
from uvit_jax.parallel.attention.splash import LARGEST_BLOCK, block_size, splash


def visible(N, M):
    """Each query attends to itself and a random half of the keys; one block is fully masked."""
    mask = (np.random.default_rng(0).random((N, M)) < 0.5) | np.eye(N, M, dtype=bool)
    mask[: N // 4, M // 2 :] = False
    return mask


def both(function, arrays, weights):
    """The value under random weights, and the gradients."""
    loss = jax.jit(jax.value_and_grad(lambda *qkv: (function(*qkv) * weights).sum(), (0, 1, 2)))
    return jax.tree.leaves(loss(*arrays))


@pytest.mark.parametrize(
    ("N", "M", "masked"), [(100, 100, False), (640, 640, True), (20, 130, False)]
)
def test_outputs_and_gradients_equal_full_attention(N, M, masked):
    shapes = [(1, N, 2, 24), (1, M, 2, 24), (1, M, 2, 24), (1, N, 2, 24)]
    *qkv, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
    mask = visible(N, M) if masked else None
    ours = both(lambda *a: splash(*a, mask, interpret=True), qkv, w)
    full = both(lambda *a: attention(*a, mask_NM=mask), qkv, w)
    for a, b in zip(ours, full, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


PROGRAM = """
import functools, json, jax, jax.numpy as jnp, numpy as np
from uvit_jax.parallel.attention.implementations import attention
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.attention import context
from uvit_jax.parallel.attention.splash import splash, splash_on_device
mask = np.tril(np.ones((9, 9), bool))
q, k, v, w = (jax.random.normal(jax.random.key(i), (4, 9, 2, 8)) for i in range(4))
def both(f):
    return jax.jit(jax.value_and_grad(lambda *a: (f(*a) * w).sum(), (0, 1, 2)))
full = both(lambda *a: attention(*a, mask_NM=mask))(q, k, v)
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
with jax.set_mesh(mesh):
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    q, k, v, w = jax.device_put((q, k, v, w), rows)
    ours = both(lambda *a: splash(*a, mask, interpret=True)).lower(q, k, v).compile()
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours(q, k, v), full)
    exchanged = functools.partial(
        context.ulysses, full=functools.partial(splash_on_device, interpret=True))
mesh = make_mesh(MeshConfig(data=4, context=2))
with jax.set_mesh(mesh):
    theirs = both(lambda *a: exchanged(*a, mask))(q, k, v)
    errors = errors, jax.tree.map(lambda a, b: float(np.abs(a - b).max()), theirs, full)
print(json.dumps([max(jax.tree.leaves(errors)), "all-gather" in ours.as_text()]))
"""


def test_each_device_computes_its_own_examples_and_heads():
    env = environment(8) | {"PYTHONPATH": str(ROOT)}
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], env=env, text=True, cwd=ROOT)
    error, gathers = json.loads(output.splitlines()[-1])
    assert error < 1e-5
    assert not gathers


def test_blocks_divide_the_padded_length():
    for length in (1, 128, 129, 257, 384, 1026, 4096, 75_840):
        padded, block = block_size(length)
        assert 0 <= padded - length < max(128, length / 50)
        assert padded % block == 0 and block % 128 == 0 and block <= LARGEST_BLOCK
    assert block_size(75_840) == (76_288, 512)


def test_half_precision_is_preserved_and_a_traced_mask_raises():
    q = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    shape = jax.eval_shape(lambda q: splash(q, q, q, interpret=True), q)
    assert (shape.shape, shape.dtype) == (q.shape, jnp.bfloat16)
    with pytest.raises(UvitError, match=r"NumPy array.*'xla'"):
        jax.eval_shape(lambda q, m: splash(q, q, q, m), q, jnp.ones((4, 4), bool))


@pytest.mark.parametrize(("name", "runs_on"), [("splash", "tpu"), ("cudnn", "gpu")])
def test_kernels_raise_on_other_platforms(name, runs_on):
    check_platform(name, runs_on)
    for platform in {"cpu", "gpu", "tpu"} - {runs_on}:
        with pytest.raises(UvitError, match=f"'{name}'.*not on {platform}.*'xla'"):
            check_platform(name, platform)
    check_platform("xla", "cpu")
