"""Muon moves the matrices of the blocks, and AdamW all else."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.running import ROOT, environment
from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.models.presets import dit
from uvit_jax.training.finetune import FinetuneConfig
from uvit_jax.training.optimizer import make_optimizer, matrices
from uvit_jax.training.run_config import OptimizerConfig, TrainConfig


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None or _named(x))
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in found}


def _named(x):
    return hasattr(x, "reduction_axis")


def small(**backbone):
    return build(
        dict(
            segments=dict(
                time=dict(kind="time", time="image"),
                image=dict(kind="patches", role="noisy", shape=(8, 8, 3), patch_size=4),
            ),
            sequence=("time", "image"),
            backbone=dict(width=32, depth=2, num_heads=2) | backbone,
        )
    )


def gradients_like(params):
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda p, k: jax.random.normal(k, p.shape), params, keys)


def update(params, gradients):
    """Muon's first, at a rate of 1."""
    config = OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
    optimizer, _ = make_optimizer(config, TrainConfig(steps=9, batch_size=1))
    return jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0]


@pytest.mark.parametrize("config", [OptimizerConfig, FinetuneConfig])
@pytest.mark.parametrize(
    "key, value",
    [
        ("eps", 1e-300),
        ("eps", 1e-46),
        ("eps", 0.0),
        ("b1", 0.9999999999),
        ("b2", 0.9999999999),
        ("b2", 1 - 2.0**-26),
        ("b2", float("nan")),
        ("learning_rate", 1e-60),
        ("learning_rate", float("inf")),
        ("weight_decay", 1e39),
        ("clip_norm", 1e-300),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused_by_key(config, key, value):
    with pytest.raises(UvitError, match=rf"\b{key}\b.*float32"):
        config(**{key: value})


def test_numbers_that_float32_can_hold_are_taken():
    for config in (OptimizerConfig, FinetuneConfig):
        config(eps=1e-30, b1=0.0, b2=0.9999999, weight_decay=0.0, clip_norm=1e-30)
    assert TrainConfig(steps=1, batch_size=1, ema_decay=0.9999999).ema_decay == 0.9999999
    with pytest.raises(UvitError, match=r"ema_decay.*float32"):
        TrainConfig(steps=1, batch_size=1, ema_decay=0.9999999999)


@pytest.fixture(scope="module")
def params():
    return small().init(jax.random.key(0))


def chosen(params):
    """The names of what Muon moves."""
    return {name for name, value in leaves(matrices(params)).items() if value is not None}


def test_matrices_are_those_of_the_blocks(params):
    shapes, found = leaves(params), leaves(matrices(params))
    assert found["backbone/mid_block/attention/qkv/kernel"] == (-4, (-2, -1))
    assert found["backbone/in_blocks/attention/out/kernel"] == ((-3, -2), -1)
    assert found["backbone/out_blocks/skip/kernel"] == (-2, -1)
    kernels = {k for k in shapes if k.startswith("backbone/") and k.endswith("/kernel")}
    assert chosen(params) == kernels


@pytest.mark.parametrize("conditioning", ["adaln_zero", "cross"])
def test_of_a_dit_adalns_modulations_are_left_to_adamw(conditioning):
    config = dit.preset("S", (8, 8, 3), patch_size=4, num_classes=3, conditioning=conditioning)
    config["backbone"] |= dict(width=32, depth=2, num_heads=2)
    params = jax.eval_shape(build(config).init, jax.random.key(0))
    layers = {"attention/qkv", "attention/out", "mlp/fc1", "mlp/fc2"}
    if conditioning == "cross":
        layers |= {"cross/q", "cross/kv", "cross/out"}
    found = chosen(params)
    assert {name.removesuffix("/kernel").split("/", 2)[2] for name in found} == layers
    assert all(name.startswith("backbone/") for name in found)


def test_a_model_without_such_matrices_is_refused():
    with pytest.raises(UvitError, match="finds no matrix of the blocks"):
        matrices({"backbone": {"mixer": {"kernel": np.zeros((2, 2))}}})


def test_the_updates_singular_values_are_alike(params):
    """Of every matrix, and for each layer of a stack by itself (Jordan 2024: 0.7 to 1.2)."""
    found = leaves(update(params, gradients_like(params)))
    stacks = {
        "backbone/in_blocks/mlp/fc1/kernel": lambda x: x,
        "backbone/in_blocks/attention/qkv/kernel": lambda x: x.transpose(0, 2, 1, 3, 4).reshape(
            -1, 32, 32
        ),
        "backbone/in_blocks/attention/out/kernel": lambda x: x.reshape(-1, 32, 32),
    }
    for name, as_matrices in stacks.items():
        values = np.linalg.svd(as_matrices(np.asarray(found[name])), compute_uv=False)
        assert values.max() / values.min() < 2.5, name
        rms = np.sqrt(np.mean(np.square(found[name])))
        assert rms == pytest.approx(0.2, rel=0.2)  # what AdamW's rates are made for
    # All else moves by AdamW, whose first step is the gradient's sign, of one size.
    table = np.abs(found["embed/segments/image/proj/kernel"])
    np.testing.assert_allclose(table, table[0, 0], rtol=1e-4)


def test_an_unknown_optimizer_raises():
    with pytest.raises(UvitError, match=r"name='moun'.*'muon'"):
        OptimizerConfig(name="moun")


def test_adamw_is_as_it_was(params):
    """Its state has the tree that checkpoints of earlier runs have."""
    optimizer, _ = make_optimizer(OptimizerConfig(), TrainConfig(steps=9, batch_size=1))
    names = set(leaves(jax.eval_shape(optimizer.init, params)))
    moments = {f"1/0/{moment}/{name}" for moment in ("mu", "nu") for name in leaves(params)}
    assert names == moments | {"1/0/count", "1/2/count"}


ON_A_MESH = """
import json, jax, numpy as np
from tests.training.test_optimizer import gradients_like, small, update
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.sharding import shardings

params = small().init(jax.random.key(0))
apart = {}
whole = update(params, gradients_like(params))
for name, sizes in {"fsdp": dict(fsdp=8), "tensor": dict(fsdp=2, tensor=2, data=2)}.items():
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(params, mesh))
        found = update(placed, gradients_like(placed))
        assert not placed["backbone"]["mid_block"]["mlp"]["fc1"]["kernel"].is_fully_replicated
        off = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), found, whole)
    apart[name] = float(max(jax.tree.leaves(off)))
print(json.dumps(apart))
"""


def test_the_update_is_the_same_on_a_mesh():
    command = [sys.executable, "-c", ON_A_MESH]
    env = environment(8) | {"PYTHONPATH": str(ROOT)}
    apart = json.loads(subprocess.check_output(command, env=env, text=True, cwd=ROOT))
    assert max(apart.values()) < 1e-4, apart  # of updates of RMS 0.2 and more
