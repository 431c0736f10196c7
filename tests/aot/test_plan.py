"""Sharding plans equal the real shardings, from shapes alone."""

import json

import jax
import pytest

import uvit_jax
from experiments import train
from experiments.cli import read_config
from tests.helpers.running import ROOT, TINY
from uvit_jax.aot.sharding_plan import plan_run
from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.state import abstract_state, init_state


def run(**overrides):
    return parse_run(read_config(str(ROOT / TINY), overrides))


def test_bytes_equal_those_of_a_state_on_one_device():
    config = run()
    optimizer, _ = make_optimizer(config.optimizer, config.train)
    model, mesh = uvit_jax.build(config.model), make_mesh(MeshConfig(), jax.devices()[:1])
    state, state_shardings = init_state(model, optimizer, jax.random.key(0), mesh)
    groups = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    totals = plan_run(config, 1).totals()
    for name, tree in groups.items():
        held = sum(a.nbytes for a in jax.tree.leaves(tree))
        assert totals[name] == (held, held)
    shapes, planned = abstract_state(model, optimizer, mesh)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, shapes)
    assert state_shardings == planned and all(jax.tree.leaves(same))


def test_bytes_on_a_mesh_equal_those_of_the_shards():
    config = run(**{"mesh.data": 2, "mesh.fsdp": 4, "mesh.tensor": 2})
    plan = plan_run(config)
    assert plan.mesh == {"data": 2, "fsdp": 4, "context": 1, "tensor": 2}
    by_path = {a.path: a for a in plan.groups["params"]}
    assert by_path["backbone/mid_block/mlp/fc1/kernel"].bytes == 32 * 128 * 4 / 8
    assert by_path["backbone/norm/bias"].bytes == 32 * 4
    for per_device, total in plan.totals().values():
        assert total / 8 < per_device < total


def test_a_plan_for_more_devices_than_this_machine_has(tmp_path, capsys):
    args = [f"--config={ROOT / TINY}", "--config.train.batch_size=4096", f"--workdir={tmp_path}/w"]
    json_file = tmp_path / "plan.json"
    assert train.main([*args, "--config.mesh.fsdp=16", "--plan=4096", f"--json={json_file}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4096 devices: data 256 × fsdp 16 × context 1 × tensor 1"
    (kernel,) = [line.split() for line in lines if line.startswith("backbone/mid_block/mlp/fc1/k")]
    assert kernel[1:] == ["(32,", "128)", "fsdp", "tensor", "1.00", "KiB"]
    plan = json.loads(json_file.read_text())
    assert plan["mesh"]["data"] == 256
    assert plan["totals"]["params"]["bytes_per_device"] < plan["totals"]["params"]["bytes"]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        ({"mesh.tensor": 4}, 8, "tensor=4 .*num_heads=2"),
        ({"mesh.fsdp": 3}, 8, r"config\.mesh.*fsdp=3.*8 devices"),
        ({}, 32, "batch_size=16 .*data×fsdp = 32"),
        (
            {"mesh.context": 4, "model.backbone.attention": "ulysses"},
            4,
            "'ulysses'.*context=4.*'ring'",
        ),
        ({}, -1, "at least one device, got -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_error(overrides, devices, message):
    with pytest.raises(UvitError, match=message):
        plan_run(run(**overrides), devices)
