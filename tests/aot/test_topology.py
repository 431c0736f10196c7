"""Names of machines: what there is, and one clear line for what there is not."""

import importlib.util

import pytest

from uvit_jax.aot.topology import devices_of
from uvit_jax.errors import UvitError


@pytest.mark.parametrize("name", ["v5e-8", "v9:2x2", "v5e:", "v5e", "v5e:4by4", "h100x8"])
def test_an_unknown_topology_is_named_with_one_that_is_known(name):
    with pytest.raises(UvitError, match=rf"unknown topology {name!r}.*such as v5e:4x4"):
        devices_of(name)


def test_gpus_come_in_whole_hosts():
    with pytest.raises(UvitError, match=r"unknown topology 'gpu:h10x8'.*did you mean 'h100'"):
        devices_of("gpu:h10x8")
    with pytest.raises(UvitError, match="12 GPUs do not fill hosts of 8"):
        devices_of("gpu:h100x12")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_its_compiler_a_topology_says_how_to_get_it():
    with pytest.raises(UvitError, match=r"not installed; pip install 'uvit-jax\[tpu\]'"):
        devices_of("v5e:2x2")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: jax[tpu]")
def test_a_slice_has_its_chips():
    devices, chip = devices_of("v5e:2x4")
    assert len(devices) == 8 and devices[0].platform == "tpu" and chip.name == "v5e"
    with pytest.raises(UvitError, match="there is no topology 'v5e:3x5'"):
        devices_of("v5e:3x5")
