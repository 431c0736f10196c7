"""A stored run, wherever it is: a workdir, a weight file of our own form, or a network of the
package or the Hub.

run = open_run("shipped:totems")
config, vocabulary = run.read_run(), run.read_vocabulary()
model, params = uvit_jax.load(run.path)
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.interop.files import RUN_KEY, VOCABULARY_KEY, read_metadata
from uvit_jax.paths import local_path, scheme_of
from uvit_jax.remote import fetched, is_gs
from uvit_jax.shipped import shipped_networks
from uvit_jax.training.run_config import RunConfig, parse_run
from uvit_jax.training.workdir import Workdir


class RunFile:
    """A run stored in one safetensors file by `exporting.export`, read as a `Workdir` is.

    Args:
      path: the file. outputs: the folder for samples and evaluations, created when they are
        written.
      source: the name of the run for records; by default the path.

    Attributes:
      steps: what `uvit_jax.load` takes as `step`: one, without a number.

    Raises:
      UvitError: if there is no such file, or it has no run.
    """

    steps = (None,)

    def __init__(self, path: Path, outputs: Path, source: str = ""):
        self.path, self.outputs, self.source = path, outputs, source or str(path)
        self.samples = outputs / "samples"
        if not path.is_file():
            raise UvitError(f"{path} does not exist")
        self._metadata = read_metadata(path)
        if RUN_KEY not in self._metadata:
            raise UvitError(
                f"{path} has weights without the config of a run; import it with "
                f"experiments.import_checkpoint --checkpoint={path} --workdir=DIR"
            )

    def upload(self) -> None:
        """Does nothing: all outputs are local."""

    def read_run(self) -> RunConfig:
        """The config of the run; UvitError if it is damaged, or this version refuses a value."""
        return own_run(self._metadata, self.source)

    def read_vocabulary(self) -> Vocabulary:
        """The vocabulary of the run; UvitError if it is damaged."""
        return own_vocabulary(self._metadata, self.source) or Vocabulary()


def open_run(path: str | os.PathLike, *, raw: bool = False) -> Workdir | RunFile:
    """The run at a path.

    Args:
      path: a workdir, which may be in `gs://`; a `.safetensors` file of
        `experiments.export_checkpoint`, also in `gs://`; `hf://OWNER/NAME[@REVISION]`; or
        `shipped:NAME`.

      raw: whether the raw parameters are wanted, which only a workdir has.

    Raises:
      UvitError: if there is no such network, the file has no run, or its raw parameters are wanted.
        A workdir is read later.
    """
    run = _run_at(path)
    if raw and isinstance(run, RunFile):
        raise UvitError(f"{run.source} has one set of parameters; drop --raw")
    return run


def _run_at(path: str | os.PathLike) -> Workdir | RunFile:
    if (name := shipped_networks.shipped_name(path)) is not None:
        outputs = Path("workdirs") / f"shipped_{name}"
        return RunFile(shipped_networks.file_of(name), outputs, os.fspath(path))
    if scheme_of(path) == "hf":
        name = re.sub(r"\W+", "_", os.fspath(path))
        return RunFile(fetched(path), Path("workdirs") / name, os.fspath(path))
    if not os.fspath(path).endswith(".safetensors"):
        return Workdir(path)
    outputs = Path(Path(path).stem) if is_gs(path) else local_path(path).with_suffix("")
    return RunFile(fetched(path), outputs, os.fspath(path))


def own_run(metadata: Mapping[str, str], where: str) -> RunConfig:
    """The run's config in the metadata of a file of our own form.

    Raises:
      UvitError: if it is damaged, or this version refuses a value.
    """
    try:
        return parse_run(json.loads(metadata[RUN_KEY]))
    except (ValueError, TypeError, RecursionError) as error:  # a UvitError is a ValueError
        raise UvitError(f"{where}: the run's config in the metadata: {error}") from None


def own_vocabulary(metadata: Mapping[str, str], where: str) -> Vocabulary | None:
    """The vocabulary in the metadata of a file of our own form, or None if it has none.

    Raises:
      UvitError: if it is damaged.
    """
    if VOCABULARY_KEY not in metadata:
        return None
    try:
        return Vocabulary.from_json(metadata[VOCABULARY_KEY])
    except UvitError as error:
        raise UvitError(f"{where}: the vocabulary in the metadata: {error}") from None
