"""The sharding rules of parameters."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

import uvit_jax
from uvit_jax.models.presets.dit import preset as dit
from uvit_jax.models.presets.uvit import preset
from uvit_jax.parallel.mesh import MeshConfig, abstract_mesh
from uvit_jax.parallel.sharding import path_string, spec

MESH = abstract_mesh(MeshConfig(fsdp=4, tensor=2), 8)


UVIT = preset("L", (32, 32, 4), patch_size=2, num_classes=1000)
CROSS = dit("L", (32, 32, 4), patch_size=2, num_classes=1000, conditioning="cross")


@pytest.mark.parametrize("config", [UVIT, CROSS], ids=["uvit", "dit_cross"])
def test_every_large_parameter_is_sharded_and_every_axis_divides(config):
    model = uvit_jax.build(config)
    for path, array in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        name = path_string(path)
        partition = spec(name, array.shape, MESH)
        parts = 1
        for axis, size in zip(partition, array.shape, strict=False):
            if axis is not None:
                assert size % MESH.shape[axis] == 0, name
                parts *= MESH.shape[axis]
        if array.size > 1e6:
            assert parts >= 4, (name, partition)


def test_a_rule_applies_with_and_without_the_layer_axis():
    assert spec("mid_block/mlp/fc1/kernel", (64, 256), MESH) == P("fsdp", "tensor")
    assert spec("in_blocks/mlp/fc1/kernel", (6, 64, 256), MESH) == P(None, "fsdp", "tensor")
    # Optimizer state contains the parameter's path, and so has its sharding.
    assert spec("opt_state/1/0/mu/backbone/mid_block/mlp/fc1/kernel", (64, 256), MESH) == P(
        "fsdp", "tensor"
    )


def test_fsdp_shards_another_dimension_if_it_does_not_divide_its_own():
    wide = abstract_mesh(MeshConfig(fsdp=64), 64)
    assert spec("heads/image/proj/kernel", (1024, 16), wide) == P("fsdp", None)
    assert spec("mlp/fc1/kernel", (1152 + 32, 4608), wide) == P(None, "fsdp")
    # Never the layer axis, nor a dimension that another axis splits.
    assert spec("in_blocks/skip/kernel", (64, 30, 30), wide) == P(None, None, None)
    assert spec("mlp/fc1/kernel", (66, 256), MESH) == P(None, "tensor")
