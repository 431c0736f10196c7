"""Adapters: nothing at first, the same merged and attached, and the base never touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models import lora
from uvit_jax.models.linear import product
from uvit_jax.models.lora import Adapter, LoraConfig
from uvit_jax.models.presets import dit, uvit
from uvit_jax.parallel.mesh import AXES
from uvit_jax.parallel.sharding import path_string, spec

SIZE = dict(patch_size=4, num_classes=4, width=16, num_heads=2)
BACKBONES = {
    "uvit": uvit.preset("S", (8, 8, 3), depth=2, **SIZE),
    "dit": dit.preset("S", (8, 8, 3), depth=1, **SIZE),
    "dit, cross": dit.preset("S", (8, 8, 3), depth=1, conditioning="cross", **SIZE),
    "loop, remat": dit.preset("S", (8, 8, 3), depth=1, scan=False, remat="full", **SIZE),
}


def noise(tree, seed, size=0.1):
    """A tree of random numbers of the same shapes."""
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        treedef, [jnp.asarray(rng.normal(0, size, a.shape), jnp.float32) for a in leaves]
    )


def close(a, b, **tolerance):
    """All arrays of two trees are."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@functools.cache
def setup(name):
    """(model, random parameters of which none is zero, inputs, times, the jitted network)."""
    model = uvit_jax.build(BACKBONES[name])
    params = noise(model.abstract_params, 0)
    rng = np.random.default_rng(1)
    inputs = {"image": rng.normal(size=(3, 8, 8, 3)).astype(np.float32), "label": np.arange(3)}
    times = {"image": np.asarray([0.1, 0.5, 0.9], np.float32)}
    return model, params, inputs, times, jax.jit(lambda p: model.apply(p, inputs, times)["image"])


@pytest.mark.parametrize("name", BACKBONES)
def test_initial_adapters_change_nothing_and_attached_equals_merged(name):
    _, params, _, _, apply = setup(name)
    untouched = jax.tree.map(np.array, params)
    more = {"uvit": (r"backbone/.*skip$",), "dit": (r"backbone/.*modulation/linear$",)}
    targets = (*lora.TARGETS, *more.get(name, ()))
    adapters = lora.init(jax.random.key(0), params, LoraConfig(rank=3, targets=targets))
    base = apply(params)
    # Exactly nothing, bit for bit.
    assert np.array_equal(base, apply(lora.attach(params, adapters)))
    assert np.array_equal(base, apply(lora.merge(params, adapters)))
    adapters = noise(adapters, 2, 0.3)
    changed = apply(lora.attach(params, adapters, 0.7))
    np.testing.assert_allclose(changed, apply(lora.merge(params, adapters, 0.7)), atol=1e-5)
    assert np.abs(changed - base).max() > 0.01
    jax.tree.map(np.testing.assert_array_equal, params, untouched)


def test_an_attached_kernel_is_the_formula():
    """(x W + x a b) of queries, keys and values, written out by hand."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(6, 3, 2, 4)), rng.normal(size=(5, 6))
    a, b = rng.normal(size=(3, 6, 2)), rng.normal(size=(3, 2, 8))
    params = {"backbone": {"attention": {"qkv": {"kernel": jnp.asarray(w, jnp.float32)}}}}
    pair = Adapter(a=jnp.asarray(a, jnp.float32), b=jnp.asarray(b, jnp.float32))
    adapters = {"backbone/attention/qkv": pair}
    merged = lora.merge(params, adapters, 0.5)["backbone"]["attention"]["qkv"]["kernel"]
    attached = lora.attach(params, adapters, 0.5)["backbone"]["attention"]["qkv"]["kernel"]
    got = product(jnp.asarray(x, jnp.float32), attached, 1)
    for part in range(3):
        expected = x @ w[:, part].reshape(6, 8) + 0.5 * (x @ a[part]) @ b[part]
        np.testing.assert_allclose(got[:, part].reshape(5, 8), expected, atol=1e-5)
        whole = w[:, part].reshape(6, 8) + 0.5 * a[part] @ b[part]
        np.testing.assert_allclose(merged[:, part].reshape(6, 8), whole, atol=1e-5)


def test_only_adapters_have_gradients_and_they_are_those_of_the_merged():
    model, params, inputs, times, _ = setup("dit")
    adapters = noise(lora.init(jax.random.key(0), params, LoraConfig(rank=2)), 3)

    def loss(adapters, way):
        return jnp.square(model.apply(way(params, adapters), inputs, times)["image"]).mean()

    ours, theirs = (
        jax.jit(jax.grad(loss), static_argnums=1)(adapters, w) for w in (lora.attach, lora.merge)
    )
    close(ours, theirs, atol=1e-5, rtol=1e-3)

    # The backward pass makes no gradient of a kernel: it has no product of that shape.
    def macs(way):
        text = str(jax.make_jaxpr(jax.grad(lambda a: loss(a, way)))(adapters))
        return text.count("f32[16,64] = dot_general")

    assert macs(lora.attach) < macs(lora.merge)


def test_targets_are_regexes_of_layers():
    _, params, *_ = setup("uvit")
    config = LoraConfig(rank=2, targets=(r"mid_block/attention/out$", r"out_blocks/.*fc1$"))
    adapters = lora.init(jax.random.key(0), params, config)
    assert {k: (v.a.shape, v.b.shape) for k, v in adapters.items()} == {
        "backbone/mid_block/attention/out": ((1, 16, 2), (1, 2, 16)),
        "backbone/out_blocks/mlp/fc1": ((1, 1, 16, 2), (1, 1, 2, 64)),
    }
    default = lora.init(jax.random.key(0), params, LoraConfig())
    assert len(default) == 12 and default["backbone/in_blocks/attention/qkv"].a.shape[-3] == 3
    # What a layer begins with depends on its name, not on which others there are.
    alone = lora.init(jax.random.key(0), params, LoraConfig(targets=(r"mid_block/mlp/fc1$",)))
    assert np.array_equal(
        alone["backbone/mid_block/mlp/fc1"].a, default["backbone/mid_block/mlp/fc1"].a
    )


def test_a_weighted_sum_of_adapters_is_one_adapter():
    _, params, _, _, apply = setup("dit")
    first = noise(lora.init(jax.random.key(0), params, LoraConfig(rank=2)), 4)
    config = LoraConfig(rank=3, targets=(r"blocks/.*fc1$",))
    second = noise(lora.init(jax.random.key(0), params, config), 5)
    both = lora.combined([first, second], [0.5, -2.0])
    assert (both["backbone/blocks/mlp/fc1"].rank, both["backbone/blocks/mlp/fc2"].rank) == (5, 2)
    one_by_one = lora.merge(lora.merge(params, first, 0.5), second, -2.0)
    np.testing.assert_allclose(apply(lora.attach(params, both)), apply(one_by_one), atol=1e-5)


def test_factors_are_sharded_as_their_kernel_is():
    mesh = AbstractMesh((1, 4, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    config = uvit.preset("L", (32, 32, 4), patch_size=2, num_classes=10)
    model = uvit_jax.build(config)
    shapes = jax.eval_shape(
        lambda: lora.init(jax.random.key(0), model.abstract_params, LoraConfig())
    )
    found = {
        path_string(path): spec(path_string(path), leaf.shape, mesh)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    whole = (None, None)  # layers, parts
    assert found["backbone/in_blocks/attention/qkv/a"] == P(*whole, "fsdp", None)
    assert found["backbone/in_blocks/attention/qkv/b"] == P(*whole, None, "tensor")
    assert found["backbone/in_blocks/attention/out/a"] == P(*whole, "tensor", None)
    assert found["backbone/in_blocks/mlp/fc2/b"] == P(*whole, None, "fsdp")
    assert found["backbone/mid_block/mlp/fc1/b"] == P(None, None, "tensor")
    assert all(any(axis for axis in partition) for partition in found.values())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(rank=0), "rank must be at least 1"),
        (dict(alpha=-1.0), "alpha must be positive"),
        (dict(targets=("(",)), "is not a regex"),
    ],
)
def test_impossible_configs(options, message):
    with pytest.raises(UvitError, match=message):
        LoraConfig(**options)


def test_mismatched_adapters_raise():
    _, params, *_ = setup("uvit")
    _, others, *_ = setup("dit")
    with pytest.raises(UvitError, match=r"'attn' matches no layer; the layers are .*mid_block"):
        lora.init(jax.random.key(0), params, LoraConfig(targets=("attn",)))
    with pytest.raises(UvitError, match="remove it from the targets"):
        lora.init(jax.random.key(0), params, LoraConfig(targets=(r"heads.*conv",)))
    with pytest.raises(UvitError, match=r"backbone/blocks/.*, which the model lacks"):
        lora.merge(params, lora.init(jax.random.key(0), others, LoraConfig()))
    embedding = lora.init(jax.random.key(0), params, LoraConfig(targets=("embed/.*proj",)))
    lora.merge(params, embedding)
    with pytest.raises(UvitError, match="use merge"):
        lora.attach(params, embedding)
    wide = noise(lora.init(jax.random.key(0), params, LoraConfig()), 0)
    wide = {path: Adapter(a=pair.a[..., 1:, :], b=pair.b) for path, pair in wide.items()}
    with pytest.raises(UvitError, match="of another model"):
        lora.attach(params, wide)
