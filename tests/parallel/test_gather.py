"""Explicit FSDP: parameters are all-gathered, gradients reduce-scattered, values unchanged."""

import json
import subprocess
import sys

from tests.helpers.running import ROOT, environment

PROGRAM = """
import json, jax, jax.numpy as jnp, numpy as np
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.sharding import gather_params, shardings
params = {"mlp": {"fc1": {"kernel": jax.random.normal(jax.random.key(0), (16, 32)),
                          "bias": jnp.ones(32)}}}
x = jax.random.normal(jax.random.key(1), (8, 16))
def loss(params, x):
    fc1 = gather_params(params, jnp.bfloat16)["mlp"]["fc1"]
    out = x @ fc1["kernel"].astype(jnp.bfloat16).astype(jnp.float32) + fc1["bias"]
    return (out ** 2).mean()
exact = jax.jit(jax.grad(loss))(params, x)  # without a mesh it does nothing
assert gather_params(params, jnp.bfloat16) is params
mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
with jax.set_mesh(mesh):
    param_shardings = shardings(params, mesh)
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    jitted = jax.jit(jax.grad(loss), in_shardings=(param_shardings, rows))
    grads = jitted.lower(params, x).compile()
    results = grads(params, x)
    layer = params | {"table": {"embedding": jnp.ones((8, 16))}}
    counts = [str(jax.make_jaxpr(f)(layer)).count("sharding_constraint") for f in (
        lambda p: gather_params(p, jnp.bfloat16),
        jax.grad(lambda p: sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(
            gather_params(p, jnp.bfloat16)))),
    )]
errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), exact, results)
kernel = results["mlp"]["fc1"]["kernel"]
print(json.dumps(dict(
    error=max(jax.tree.leaves(errors)), gathers="all-gather" in grads.as_text(),
    same_sharding=kernel.sharding.is_equivalent_to(param_shardings["mlp"]["fc1"]["kernel"], 2),
    dtype=str(kernel.dtype), constraints=counts)))
"""


def test_gradients_of_gathered_parameters_are_sharded_and_float32():
    env = environment(8) | {"PYTHONPATH": str(ROOT)}
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], env=env, text=True, cwd=ROOT)
    results = json.loads(output.splitlines()[-1])
    assert results["error"] < 1e-2  # a gradient that passed through bfloat16
    assert results["gathers"] and results["same_sharding"] and results["dtype"] == "float32"
    # Only the kernel is gathered, not the replicated bias nor the table. Its gradient is unsharded
    # before it is reduce-scattered.
    assert results["constraints"] == [1, 3]
