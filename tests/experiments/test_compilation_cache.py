"""The compilation cache is used only in a private folder."""

import os

import pytest

from experiments import compilation_cache
from uvit_jax.errors import UvitError


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """No variables set, and an empty home folder."""
    for name in ("JAX_COMPILATION_CACHE_DIR", compilation_cache.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Makes monkeypatch undo what `enable` sets.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    return monkeypatch


def test_the_default_folder_is_private(environment, tmp_path):
    old = os.umask(0)
    try:
        compilation_cache.enable()
    finally:
        os.umask(old)
    folder = tmp_path / ".cache" / "uvit_jax" / "xla"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    compilation_cache.enable()  # again, now that it exists
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)


def test_it_can_be_moved_or_off_and_jaxs_own_variable_takes_precedence(environment, tmp_path):
    environment.setenv(compilation_cache.VARIABLE, str(tmp_path / "a" / "b"))
    assert compilation_cache.chosen() == tmp_path / "a" / "b"
    environment.setenv("JAX_COMPILATION_CACHE_DIR", "gs://mine")
    compilation_cache.enable()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "gs://mine"
    environment.delenv("JAX_COMPILATION_CACHE_DIR")
    environment.setenv(compilation_cache.VARIABLE, "off")
    compilation_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_raises(environment, tmp_path, mode):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    environment.setenv(compilation_cache.VARIABLE, str(folder))
    with pytest.raises(UvitError, match=r"shared .*chmod 700.*UVIT_JAX_CACHE"):
        compilation_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_folder_of_another_user_raises(environment, tmp_path):
    environment.setenv(compilation_cache.VARIABLE, str(tmp_path / "theirs"))
    environment.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UvitError, match=r"theirs .*another user.*UVIT_JAX_CACHE"):
        compilation_cache.enable()


def test_a_folder_that_cannot_be_created(environment, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    environment.setenv(compilation_cache.VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(UvitError, match=r"UVIT_JAX_CACHE: .*file.*off"):
        compilation_cache.enable()
    environment.delenv(compilation_cache.VARIABLE)
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.enable()  # the default folder is optional
    assert compilation_cache.VARIABLE in caplog.text
    environment.setenv(compilation_cache.VARIABLE, "gs://bucket/cache")
    with pytest.raises(UvitError, match=r"gs://bucket/cache .*JAX_COMPILATION_CACHE_DIR"):
        compilation_cache.enable()
