"""Every parameter's gradient on every kind of mesh, since losses can agree where these differ."""

import json
import subprocess
import sys

import pytest

from tests.helpers.running import ROOT, environment

PROGRAM = """
import json, sys, jax, numpy as np, uvit_jax
from uvit_jax.models.presets.uvit import preset
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.sharding import path_string, shardings
sizes = [
    dict(data=1, fsdp=4, tensor=2), dict(data=2, context=2, tensor=2),
    dict(data=2, fsdp=2, context=2), dict(data=2, context=4),  # which does not divide 18 tokens
]
config = preset("S", (16, 16, 3), patch_size=4, num_classes=3, width=32, depth=2, num_heads=2)
config["sequence"] = ("time", "image", "label")
model = uvit_jax.build(config)
params = model.init(jax.random.key(0))
x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
def loss(params, x):
    inputs = {"image": x, "label": np.arange(8) % 3}
    out = model.apply(params, inputs, {"image": np.linspace(0, 999, 8)})["image"]
    return ((out - x) ** 2).mean()
exact = jax.jit(jax.grad(loss))(params, x)
worst = {}
for size in sizes:
    mesh = make_mesh(MeshConfig(**size))
    with jax.set_mesh(mesh):
        param_shardings = shardings(params, mesh)
        rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
        jitted = jax.jit(
            jax.grad(loss), in_shardings=(param_shardings, rows), out_shardings=param_shardings)
        grads = jitted(params, x)
    errors = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / (np.abs(a).max() + 1e-12)), exact, grads)
    flat = {path_string(p): e for p, e in jax.tree_util.tree_leaves_with_path(errors)}
    worst[str(size)] = max((e, p) for p, e in flat.items())
print(json.dumps(worst))
"""


@pytest.fixture(scope="module")
def worst():
    command = [sys.executable, "-c", PROGRAM]
    env = environment(8) | {"PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.check_output(command, env=env, text=True, cwd=ROOT))


def test_gradients_equal_those_of_one_device(worst):
    assert len(worst) == 4
    for mesh, (error, path) in worst.items():
        assert error < 1e-4, (mesh, path, error)
