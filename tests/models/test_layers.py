"""Normalised queries and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models.layers import Attention, BlockInputs, CrossAttention
from uvit_jax.models.model_config import BackboneConfig
from uvit_jax.models.presets.dit import preset as dit
from uvit_jax.models.presets.uvit import preset as uvit
from uvit_jax.parallel.mesh import AXES
from uvit_jax.parallel.sharding import path_string, spec

WIDTH, HEADS = 32, 2
NORMS = ("rms", "layer")


def attend(kind, norm, scale, dtype=jnp.float32):
    """What attention makes of some tokens when its queries and keys are `scale` times as large, and
    the largest gradient in its parameters."""
    config = BackboneConfig(width=WIDTH, depth=2, num_heads=HEADS, qk_norm=norm, init="xavier")
    module = kind(config, dtype=dtype, rngs=nnx.Rngs(0))
    if kind is Attention:
        kernel = module.qkv.kernel[...]
        module.qkv.kernel[...] = kernel.at[:, :2].multiply(scale)
        other = BlockInputs()
    else:
        module.q.kernel[...] *= scale
        module.kv.kernel[...] = module.kv.kernel[...].at[:, 0].multiply(scale)
        other = jax.random.normal(jax.random.key(2), (2, 3, WIDTH))
    x_BND = jax.random.normal(jax.random.key(1), (2, 7, WIDTH))
    graph, params = nnx.split(module)

    def run(params):
        out = nnx.merge(graph, params)(x_BND, other)
        return out[0] if kind is Attention else out  # its keys and values stand beside it

    grads = jax.grad(lambda p: (run(p) ** 2).sum())(params)
    return run(params), nnx.to_pure_dict(grads)


@pytest.mark.parametrize("kind", [Attention, CrossAttention])
def test_the_size_of_queries_and_keys_no_longer_matters(kind):
    for norm in NORMS:
        (a, grads), (b, _) = (attend(kind, norm, scale) for scale in (1.0, 100.0))
        np.testing.assert_allclose(a, b, atol=1e-4)
        for name in ("q", "k"):
            assert jnp.abs(grads["qk_norm"][name]["scale"]).max() > 1e-4
    (a, _), (b, _) = (attend(kind, "none", scale) for scale in (1.0, 100.0))
    assert jnp.abs(a - b).max() > 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bounded_by_the_root_of_the_head_size(norm, dtype):
    config = BackboneConfig(width=WIDTH, depth=2, num_heads=HEADS, qk_norm=norm)
    K = WIDTH // HEADS
    normalise = Attention(config, dtype=dtype, rngs=nnx.Rngs(0)).qk_norm
    for scale in (1.0, 100.0, 1e4):
        q, k = scale * jax.random.normal(jax.random.key(0), (2, 3, 9, HEADS, K))
        q, k = normalise(q.astype(dtype), k.astype(dtype))
        assert q.dtype == dtype
        logits = jnp.einsum("bnhk,bmhk->bhnm", q, k, preferred_element_type=jnp.float32) / K**0.5
        assert jnp.abs(logits).max() <= 1.01 * K**0.5
        # The bound is met by a query that equals its key, so it is no smaller.
        assert jnp.einsum("bnhk,bnhk->bnh", q, q).max() / K**0.5 > 0.98 * K**0.5


def test_off_is_the_model_as_it_was_and_on_adds_two_scales_a_block():
    small = dict(width=WIDTH, depth=4, num_heads=HEADS)

    def params(**options):
        config = uvit("S", (8, 8, 3), patch_size=2, num_classes=5, **small, **options)
        return uvit_jax.build(config).abstract_params

    off, on = params(), params(qk_norm="rms")
    assert "qk_norm" not in str(off)
    paths = {path_string(p): a for p, a in jax.tree_util.tree_leaves_with_path(on)}
    added = {path: a for path, a in paths.items() if "qk_norm" in path}
    assert sum(a.size for a in added.values()) == 5 * 2 * WIDTH // HEADS
    mesh = AbstractMesh((1, 2, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    for path, a in added.items():  # small, and whole on every device
        assert spec(path, a.shape, mesh) == P(*[None] * a.ndim), path
    assert len(paths) == len(jax.tree.leaves(off)) + len(added)


def test_a_model_with_cross_attention_and_its_name():
    config = dit("S", (8, 8, 4), patch_size=2, conditioning="cross", width=WIDTH, depth=2,
                 num_heads=HEADS, qk_norm="layer")  # fmt: skip
    model = uvit_jax.build(config)
    assert {"q", "k"} == set(model.abstract_params["backbone"]["blocks"]["cross"]["qk_norm"])
    config["backbone"]["qk_norm"] = "rsm"
    with pytest.raises(UvitError, match=r"model\.backbone\.qk_norm='rsm'.*'rms'"):
        uvit_jax.build(config)
