"""libtpu where there are no TPUs: it must print nothing, and where there are, be left alone."""

import importlib.util
import os
import subprocess
import sys

import pytest

from uvit_jax.parallel import libtpu


@pytest.mark.parametrize("present", [True, False])
def test_the_environment_is_set_only_without_tpus(monkeypatch, present):
    monkeypatch.setattr(libtpu, "has_tpu", lambda: present)
    for name in libtpu.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    libtpu.quiet()
    assert all((name in os.environ) != present for name in libtpu.ENVIRONMENT)
    for name in libtpu.ENVIRONMENT:
        os.environ.pop(name, None)


def test_variables_of_the_user_remain(monkeypatch):
    monkeypatch.setattr(libtpu, "has_tpu", lambda: False)
    for name in libtpu.ENVIRONMENT:
        monkeypatch.setenv(name, "mine")
    libtpu.quiet()
    assert all(os.environ[name] == "mine" for name in libtpu.ENVIRONMENT)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or libtpu.has_tpu(),
    reason="needs libtpu, and no TPU",
)
def test_jax_prints_nothing():
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("JAX_PLATFORMS", *libtpu.ENVIRONMENT)
    }
    code = "from uvit_jax.parallel import libtpu; libtpu.quiet(); import jax; jax.devices()"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
