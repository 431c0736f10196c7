"""JAX's persistent compilation cache, which all commands use, so that restarts do not recompile.

It is in `~/.cache/uvit_jax/xla` (or in `$XDG_CACHE_HOME/uvit_jax/xla`). The environment variable
`UVIT_JAX_CACHE` sets another folder, or is `off`. On a pod, set one that all hosts share: process 0
writes, all read. JAX's own variable `JAX_COMPILATION_CACHE_DIR` takes precedence.

JAX executes cached programs unchecked, so the folder must not be writable by other users.
"""

import logging
import os
import stat
from pathlib import Path

from uvit_jax.errors import UvitError

logger = logging.getLogger(__name__)

VARIABLE = "UVIT_JAX_CACHE"


def enable() -> None:
    """Sets JAX_COMPILATION_CACHE_DIR; call it before JAX is imported.

    Raises:
      UvitError: if others can write to the folder, or UVIT_JAX_CACHE names one that cannot be
        created.
    """
    folder = chosen()
    if folder is None:
        return
    try:
        check(folder)
    except OSError as error:
        if os.environ.get(VARIABLE):
            raise UvitError(f"{VARIABLE}: {error}; set it to another folder, or to off") from None
        # The default folder is optional, for instance with a read-only home.
        logger.warning("no compilation cache: %s; set %s to another folder", error, VARIABLE)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def chosen() -> Path | None:
    """The cache's folder by the environment; None if it is `off` or JAX's own variable is set.

    Raises:
      UvitError: if UVIT_JAX_CACHE is a URL.
    """
    value = os.environ.get(VARIABLE, "")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or value == "off":
        return None
    if "://" in value:
        raise UvitError(
            f"{VARIABLE}={value} is not a folder; for a bucket that only you can write to, set "
            "JAX_COMPILATION_CACHE_DIR"
        )
    if value:
        return Path(value).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "uvit_jax" / "xla"


def check(folder: Path) -> None:
    """Creates the folder with mode 700 if it does not exist.

    Raises:
      UvitError: if another user owns it or can write to it. OSError: if it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    remedy = f"set {VARIABLE} to a folder of your own, or to off"
    if status.st_uid != os.geteuid():
        raise UvitError(
            f"the compilation cache {folder} belongs to another user, whose programs JAX would "
            f"execute; {remedy}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UvitError(
            f"the compilation cache {folder} is writable by others, whose programs JAX would "
            f"execute; chmod 700 it, or {remedy}"
        )
