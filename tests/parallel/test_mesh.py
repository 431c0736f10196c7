"""Meshes over real and abstract devices."""

import dataclasses
import itertools

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.parallel.mesh import AXES, MeshConfig, abstract_mesh, check_tensor, make_mesh
from uvit_jax.parallel.rows import local_rows


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a `jax.Device` that a mesh reads."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    slice_index: int = 0
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def hosts(count, devices):
    """The devices of CPU or GPU hosts, shuffled."""
    ordered = [Device(i, i // devices) for i in range(count * devices)]
    return ordered[::2] + ordered[1::2]


def slices(count):
    """Slices v5e:4x4 of 16 chips, 4 on each of 4 hosts."""
    return [
        Device(
            id=100 * s + 4 * y + x,
            process_index=4 * s + 2 * (y // 2) + x // 2,
            platform="tpu",
            device_kind="TPU v5 lite",
            slice_index=s,
            coords=(x, y, 0),
        )
        for s, y, x in itertools.product(range(count), range(4), range(4))
    ]


def test_minus_one_is_all_remaining_devices():
    assert MeshConfig().sizes(8) == (8, 1, 1, 1)
    assert MeshConfig(data=2, fsdp=-1).sizes(8) == (2, 4, 1, 1)
    for config in (MeshConfig(fsdp=3), MeshConfig(data=4), MeshConfig(fsdp=-1), MeshConfig(data=0)):
        with pytest.raises(UvitError, match=r"config\.mesh.*data="):
            config.sizes(8)


@pytest.mark.parametrize("config", [dict(fsdp=16), dict(fsdp=4, context=2, tensor=2), dict()])
def test_only_the_data_axis_crosses_slices(config):
    mesh = make_mesh(MeshConfig(**config), slices(4))
    assert mesh.devices.size == 64
    index = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    assert (index == index[:, :1, :1, :1]).all()
    # Each slice is contiguous along data, so that a ring crosses each border once.
    assert (np.diff(index[:, 0, 0, 0]) != 0).sum() == 3


def test_data_must_be_a_multiple_of_the_number_of_slices():
    with pytest.raises(UvitError, match=r"config\.mesh\.data=2 .*4 slices.* 4"):
        make_mesh(MeshConfig(data=2, fsdp=32), slices(4))


def test_devices_of_a_host_are_along_the_inner_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), hosts(2, 4))
    process = np.vectorize(lambda d: d.process_index)(mesh.devices)
    assert (process == np.arange(2)[:, None, None, None]).all()


def test_processes_load_the_rows_of_their_devices():
    rows = lambda mesh, count: [local_rows(mesh, 8, p) for p in range(count)]  # noqa: E731
    apart = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), hosts(2, 4))
    assert rows(apart, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    # Context crosses the two hosts of each half: they load the same rows.
    shared = make_mesh(MeshConfig(data=2, context=4), hosts(4, 2))
    assert rows(shared, 4) == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2
    # On a torus, a host's devices need not be neighbours along the batch.
    torus = make_mesh(MeshConfig(data=2, fsdp=4, tensor=2), slices(1))
    by_process = rows(torus, 4)
    assert sorted({row for own in by_process for row in own}) == list(range(8))
    for process, own in enumerate(by_process):
        held = {
            i
            for i, devices in enumerate(torus.devices.reshape(8, 2))
            if any(d.process_index == process for d in devices)
        }
        assert own == sorted(held)


def test_tensor_must_divide_heads_and_hidden_units():
    mesh = abstract_mesh(MeshConfig(tensor=4), 8)
    assert dict(mesh.shape) == dict(zip(AXES, (2, 1, 1, 4), strict=True))
    check_tensor(mesh, num_heads=8, mlp_width=64)
    with pytest.raises(UvitError, match=r"tensor=4 .*num_heads=6.*tensor=3 or 6"):
        check_tensor(mesh, num_heads=6, mlp_width=96)
    with pytest.raises(UvitError, match=r"mlp_ratio × width=98.*tensor=2 or 7"):
        check_tensor(mesh, num_heads=28, mlp_width=98)
