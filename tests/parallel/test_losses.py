"""20 steps of the tiny model have the same losses on every mesh, on eight devices of one process.

It has 18 tokens, which a context axis of 4 does not divide.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.running import ROOT, environment

PROGRAM = r"""
import json, re, jax, numpy as np, uvit_jax
from experiments.cli import read_config
from tests.helpers.running import TINY
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.parallel.sharding import BATCH
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.state import init_state
from uvit_jax.training.step import make_step
meshes = {
    "one": dict(data=1), "data": dict(data=8), "fsdp": dict(data=1, fsdp=8),
    "tensor": dict(data=2, fsdp=2, tensor=2),
    "xla": dict(data=2, context=4), "ring": dict(data=2, context=4),
    "ulysses": dict(data=2, context=4),
}
rng = np.random.default_rng(0)
batches = [dict(image=rng.uniform(-1, 1, (16, 16, 16, 3)).astype(np.float32),
                label=rng.integers(0, 128, 16)) for _ in range(20)]
results = {}
for name, sizes in meshes.items():
    overrides = {"model.backbone.num_heads": 4} | {f"mesh.{a}": n for a, n in sizes.items()}
    overrides["model.backbone.attention"] = name if name in ("ring", "ulysses") else "xla"
    run = parse_run(read_config(TINY, overrides))
    mesh = make_mesh(run.mesh, jax.devices()[: int(np.prod(list(sizes.values())))])
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    model = uvit_jax.build(run.model)
    with jax.set_mesh(mesh):
        state, state_shardings = init_state(model, optimizer, jax.random.key(0), mesh)
        largest = max(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state.params))
        program = jax.jit(
            make_step(model, run, optimizer, rate),
            in_shardings=(state_shardings, jax.NamedSharding(mesh, BATCH)),
            out_shardings=(state_shardings, None),
        ).lower(state, batches[0]).compile()
        losses = []
        for batch in batches:
            batch = jax.device_put(batch, jax.NamedSharding(mesh, BATCH))
            state, metrics = program(state, batch)
            losses.append(float(metrics["loss"]))
    # Shapes of MLP activations on a device: (examples, tokens, hidden units).
    hidden = set(re.findall(r"f32\[(\d+,\d+,128)\]", program.as_text()))
    results[name] = dict(losses=losses, largest=largest, hidden=sorted(hidden))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, "-c", PROGRAM]
    env = environment(8) | {"PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.check_output(command, env=env, text=True, cwd=ROOT))


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor", "xla", "ring", "ulysses"])
def test_losses_equal_those_of_one_device(results, name):
    np.testing.assert_allclose(results[name]["losses"], results["one"]["losses"], rtol=1e-5)


def test_parameters_are_initialised_sharded(results):
    assert results["fsdp"]["largest"] * 8 <= results["one"]["largest"]


@pytest.mark.parametrize("name", ["xla", "ring", "ulysses"])
def test_tokens_that_the_context_axis_does_not_divide_are_sharded(results, name):
    """16 examples on 2 devices, 18 tokens on 4: 5 per device, the last with 3 and padding."""
    assert "8,5,128" in results[name]["hidden"], results[name]
    assert "8,18,128" not in results[name]["hidden"], results[name]
