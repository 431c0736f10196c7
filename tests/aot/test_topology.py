"""Topologies by name; unknown ones raise one line with a known example."""

import importlib.util

import pytest

from uvit_jax.aot.topology import devices_of
from uvit_jax.errors import UvitError


@pytest.mark.parametrize("name", ["v5e-8", "v9:2x2", "v5e:", "v5e", "v5e:4by4", "h100x8"])
def test_an_unknown_topology_raises_with_a_known_one(name):
    with pytest.raises(UvitError, match=rf"{name!r}.*such as v5e:4x4"):
        devices_of(name)


def test_gpus_fill_their_hosts():
    with pytest.raises(UvitError, match=r"'gpu:h10x8'.*did you mean 'h100'"):
        devices_of("gpu:h10x8")
    with pytest.raises(UvitError, match=r"12 GPUs .* 8"):
        devices_of("gpu:h100x12")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_raises_with_the_package_to_install():
    with pytest.raises(UvitError, match=r"pip install 'uvit-jax\[tpu\]'"):
        devices_of("v5e:2x2")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: jax[tpu]")
def test_a_slice_has_its_chips():
    devices, chip = devices_of("v5e:2x4")
    assert len(devices) == 8 and devices[0].platform == "tpu" and chip.name == "v5e"
    with pytest.raises(UvitError, match="'v5e:3x5'"):
        devices_of("v5e:3x5")
