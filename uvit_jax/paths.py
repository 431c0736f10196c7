"""Local paths. Object stores and other remote file systems are not supported."""

import os
import re
from pathlib import Path

from uvit_jax.errors import UvitError

# A drive letter of Windows is no scheme. `Path` turns `gs://` into `gs:/`.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | os.PathLike) -> Path:
    """A path with `~` expanded.

    Raises:
      UvitError: if it is a URL, such as `gs://bucket/run`, which would become the folder `gs:`.
    """
    text = os.fspath(path)
    if scheme := _SCHEME.match(text):
        raise UvitError(
            f"{text}: {scheme[0]}/ paths are not supported; copy the files to a local or mounted "
            "folder and give its path"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UvitError(f"{text}: there is no such user; write the folder in full") from None
