"""Ring and Ulysses attention equal full attention, gradients too, for any mesh and length."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.running import ROOT, environment
from uvit_jax.parallel.attention.implementations import attention

PROGRAM = """
import json, jax, jax.numpy as jnp, numpy as np
from uvit_jax.parallel.attention.implementations import attention
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
H, K = 4, 8
meshes = [dict(data=2, context=4), dict(data=2, context=2, tensor=2)]
errors = {}
for B, N in ((4, 16), (3, 13)):  # the axes divide both, and neither
    rng = np.random.default_rng(N)
    q, k, v, w = (jnp.asarray(rng.normal(size=(B, N, H, K)), jnp.float32) for _ in range(4))
    # Token 0 attends to itself only, so that some parts of the ring have no visible key.
    mask = (rng.random((N, N)) < 0.5) | np.eye(N, dtype=bool)
    mask[0] = np.arange(N) == 0
    # Queries 0 to 1 and from 10 on see all, the others eight keys.
    whole, some = (slice(0, 2), slice(10, N)), (slice(2, 10),)
    groups = [(whole, (slice(0, N),)), (some, (slice(0, 3), slice(5, 10)))]
    for masked in (False, True, "windows"):
        mask_NN = jnp.asarray(mask) if masked is True else None
        windows = groups if masked == "windows" else None
        def run(q, k, v, implementation):
            return attention(q, k, v, mask_NM=mask_NN, windows=windows,
                             implementation=implementation)
        def loss(q, k, v, implementation):
            return (w * run(q, k, v, implementation)).sum()
        exact = run(q, k, v, "xla"), *jax.grad(loss, (0, 1, 2))(q, k, v, "xla")
        for size in meshes:
            with jax.set_mesh(make_mesh(MeshConfig(**size))):
                for name in ("ring", "ulysses")[masked == "windows":]:
                    both = jax.jit(lambda q, k, v: (
                        run(q, k, v, name), *jax.grad(loss, (0, 1, 2))(q, k, v, name)))
                    results = both(q, k, v)
                    text = jax.jit(run, static_argnums=3).lower(q, k, v, name).compile().as_text()
                    errors[f"{name} {size} N={N} masked={masked}"] = dict(
                        worst=max(float(jnp.abs(a - b).max()) for a, b in zip(exact, results)),
                        collectives=[op for op in
                            ("collective-permute", "all-to-all", "all-gather") if op in text])
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, "-c", PROGRAM]
    env = environment(8) | {"PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.check_output(command, env=env, text=True, cwd=ROOT))


def test_outputs_and_gradients_equal_full_attention(results):
    assert len(results) == 20
    for case, result in results.items():
        assert result["worst"] < 1e-5, (case, result)


def test_ring_permutes_and_ulysses_exchanges_all_to_all(results):
    for case, result in results.items():
        wanted = "collective-permute" if case.startswith("ring") else "all-to-all"
        assert wanted in result["collectives"], (case, result)


@pytest.mark.parametrize("name", ["ring", "ulysses"])
def test_without_a_mesh_they_equal_full_attention(name):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 2, 4)) for i in range(3))
    ours = attention(q, k, v, implementation=name)
    np.testing.assert_allclose(ours, attention(q, k, v), atol=1e-6)
    half = attention(*(a.astype(jnp.bfloat16) for a in (q, k, v)), implementation=name)
    assert half.dtype == jnp.bfloat16
