"""The persistent compilation cache of all commands: a program is compiled once, not at every start.

It lies in a folder of the user's own, `~/.cache/uvit_jax/xla` (or below `$XDG_CACHE_HOME`).
`UVIT_JAX_CACHE` names another one, or is `off`. On a pod, name one that all hosts see: process 0
writes, and all read. Whoever sets JAX's own `JAX_COMPILATION_CACHE_DIR` decides instead.

What is in the cache is run as it is, so nobody else may be able to write there.
"""

import logging
import os
import stat
from pathlib import Path

from uvit_jax.errors import UvitError

logger = logging.getLogger(__name__)

VARIABLE = "UVIT_JAX_CACHE"


def enable() -> None:
    """Points JAX, which is not imported yet, to the cache's folder, through the environment.

    Raises:
      UvitError: if the folder is not a private one, or one that was named cannot be made.
    """
    folder = chosen()
    if folder is None:
        return
    try:
        check(folder)
    except OSError as error:
        if os.environ.get(VARIABLE):
            raise UvitError(f"{VARIABLE}: {error}; name another folder, or 'off'") from None
        # A home that cannot be written is no reason not to run.
        logger.warning("programs are compiled anew at every start: %s (see %s)", error, VARIABLE)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def chosen() -> Path | None:
    """The folder that the environment asks for; None if JAX's own variable is set, or for `off`.

    Raises:
      UvitError: if it asks for what is no folder.
    """
    named = os.environ.get(VARIABLE, "")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or named == "off":
        return None
    if "://" in named:
        raise UvitError(
            f"{VARIABLE}={named} is no folder; for a bucket that only you can write to, set "
            "JAX_COMPILATION_CACHE_DIR"
        )
    if named:
        return Path(named).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "uvit_jax" / "xla"


def check(folder: Path) -> None:
    """Makes the folder, for its owner alone, if it is not there.

    Raises:
      UvitError: if another user owns it or may write to it. OSError: if it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    remedy = f"name a folder of your own with {VARIABLE}, or {VARIABLE}=off"
    if status.st_uid != os.geteuid():
        raise UvitError(
            f"the compilation cache {folder} belongs to another user, whose programs would be run; "
            f"{remedy}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UvitError(
            f"the compilation cache {folder} can be written by others, whose programs would be "
            f"run; chmod 700 it, or {remedy}"
        )
