"""Prepares the embedded emoji for TFDS on first use, in seconds and without a download.

Any number of processes may do so at once: each prepares a private copy and renames it to the final
folder; the first one wins, and the others delete their copy.
"""

import contextlib
import io
import logging
import os
import tempfile
from pathlib import Path

from uvit_jax.errors import UvitError


def builder(data_dir: str = ""):
    """The prepared TFDS builder of the emoji.

    Args:
      data_dir: a local folder; "" is the default of TFDS (`TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`).

    Raises:
      UvitError: if the folder cannot be written, or contains a broken copy.
    """
    from uvit_jax.data.sources.emoji.emoji_dataset_builder import Builder

    if "://" in data_dir:
        raise UvitError(f"data_dir={data_dir!r} must be a folder on the local disk for emoji")
    data_dir = os.path.expanduser(data_dir)
    opened = Builder(data_dir=data_dir or None, file_format="array_record")
    if opened.is_prepared():
        return opened
    final = Path(opened.data_path)
    logging.info("preparing the embedded emoji in %s (once)", final)
    try:
        _prepare(Builder, final)
    except OSError as error:
        raise UvitError(
            f"cannot prepare the emoji in {final}: {error}; delete that folder, or set data_dir to "
            "a writable one"
        ) from error
    return Builder(data_dir=data_dir or None, file_format="array_record")


def _prepare(cls, final: Path) -> None:
    import tensorflow_datasets as tfds

    root = final.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    # On the same file system as `final`, so that the rename is one atomic step.
    with tempfile.TemporaryDirectory(prefix=".emoji-", dir=root) as private:
        copy = cls(data_dir=private, file_format="array_record")
        tfds.display_progress_bar(False)
        try:
            # TFDS announces a download, which there is not.
            with contextlib.redirect_stdout(io.StringIO()):
                copy.download_and_prepare()
        finally:
            tfds.display_progress_bar(True)
        final.parent.mkdir(exist_ok=True)
        try:
            os.rename(copy.data_path, final)
        except OSError:
            if not cls(data_dir=root, file_format="array_record").is_prepared():
                raise
