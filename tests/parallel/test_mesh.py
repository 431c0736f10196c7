"""Meshes and the rules that place parameters on them."""

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.models.uvit import preset
from uvit_jax.parallel.mesh import AXES, MeshConfig
from uvit_jax.parallel.sharding import path_string, spec


def test_minus_one_is_the_rest():
    assert MeshConfig().sizes(8) == (8, 1, 1, 1)
    assert MeshConfig(data=2, fsdp=-1).sizes(8) == (2, 4, 1, 1)
    for config in (MeshConfig(fsdp=3), MeshConfig(data=4), MeshConfig(fsdp=-1), MeshConfig(data=0)):
        with pytest.raises(UvitError, match=r"config\.mesh \(data="):
            config.sizes(8)


def test_every_large_parameter_is_sharded_and_every_axis_divides():
    mesh = AbstractMesh((1, 4, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    model = uvit_jax.build(preset("L", (32, 32, 4), patch_size=2, num_classes=1000))
    for path, array in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        name = path_string(path)
        partition = spec(name, array.shape, mesh)
        parts = 1
        for axis, size in zip(partition, array.shape, strict=False):
            if axis is not None:
                assert size % mesh.shape[axis] == 0, name
                parts *= mesh.shape[axis]
        if array.size > 1e6:
            assert parts >= 4, (name, partition)


def test_a_rule_holds_with_and_without_the_layer_axis():
    mesh = AbstractMesh((1, 4, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    assert spec("mid_block/mlp/fc1/kernel", (64, 256), mesh) == P("fsdp", "tensor")
    assert spec("in_blocks/mlp/fc1/kernel", (6, 64, 256), mesh) == P(None, "fsdp", "tensor")
    # An axis that does not divide stays whole, and only that one.
    assert spec("mlp/fc1/kernel", (66, 256), mesh) == P(None, "tensor")
    # Optimizer state carries the parameter's path, and so its place.
    assert spec("opt_state/1/0/mu/backbone/mid_block/mlp/fc1/kernel", (64, 256), mesh) == P(
        "fsdp", "tensor"
    )
