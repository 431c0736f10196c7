"""Attention by blocks of heads equals full attention, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.parallel.attention import blocked
from uvit_jax.parallel.attention.implementations import attention

B, N, M, H, K = 2, 13, 11, 3, 8


# Of six heads: one iteration; iterations of three; of four and two; more cores than heads.
@pytest.mark.parametrize(
    ("heads_per_iteration", "cores"), [(6, 2), (3, 2), (4, 3), (2, 16), (1, 1)]
)
@pytest.mark.parametrize("masked", [False, True, "present", "both"])
def test_outputs_and_gradients_equal_full_attention(
    masked, heads_per_iteration, cores, monkeypatch
):
    monkeypatch.setattr(blocked, "num_cores", lambda: cores)
    block = heads_per_iteration * N * M * 4 / cores
    monkeypatch.setattr(blocked, "BLOCK", block if cores > 1 else 8 * block)
    rng = np.random.default_rng(0)

    def array(tokens):
        return jnp.asarray(rng.normal(size=(B, tokens, H, K)), jnp.float32)

    # Large queries, so that some weights vanish and the softmax needs its maximum.
    q, k, v, w = 8 * array(N), array(M), array(M), array(N)
    mask = present = None
    if masked in ("present", "both"):  # an example lacks keys
        present = jnp.asarray(rng.random((B, M)) < 0.6).at[:, 0].set(True)
    if masked in (True, "both"):
        mask = rng.random((N, M)) < 0.5
        mask[:, 0] = True
        mask[0] = np.arange(M) == 0  # attends to one key only
        mask = jnp.asarray(mask)

    def run(implementation):
        def loss(q, k, v):
            masks = dict(mask_NM=mask, present_BM=present)
            out = attention(q, k, v, implementation=implementation, **masks)
            return (w * out).sum(), out

        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    for actual, expected in zip(run("blocked"), run("xla"), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_softmax_of_half_precision_is_float32():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, N, H, K)), jnp.bfloat16) for _ in range(3))
    actual = attention(q, k, v, implementation="blocked")
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(jnp.float32), exact, atol=0.03)
