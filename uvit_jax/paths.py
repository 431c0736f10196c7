"""Local paths, and the schemes of others; `remote.py` has those that are supported."""

import os
import re
from pathlib import Path

from uvit_jax.errors import UvitError

# A drive letter of Windows is no scheme. `Path` turns `gs://` into `gs:/`.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def scheme_of(path: str | os.PathLike) -> str:
    """The scheme of a URL in lower case, such as `gs`; "" for local paths."""
    match = _SCHEME.match(os.fspath(path))
    return match[0].partition(":")[0].lower() if match else ""


def local_path(path: str | os.PathLike) -> Path:
    """A path with `~` expanded.

    Raises:
      UvitError: if it is a URL, such as `gs://bucket/run`, which would become the folder `gs:`.
    """
    text = os.fspath(path)
    if scheme := _SCHEME.match(text):
        raise UvitError(
            f"{text}: {scheme[0]}/ paths are not supported here; copy the files to a local or "
            "mounted folder and give its path"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UvitError(f"{text}: there is no such user; write the folder in full") from None
