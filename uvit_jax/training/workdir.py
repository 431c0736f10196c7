"""A run's folder: `config.json`, `vocabulary.json`, `checkpoints/`, `metrics.jsonl`, `samples/`.

Opening a folder that belongs to another run, or to no run, changes nothing in it and raises.

Of a workdir in `gs://`, config, vocabulary and checkpoints are read and written there. What is
appended to, or written by libraries that know local files only, is in a temporary folder `outputs`
until `upload`.
"""

import atexit
import contextlib
import fcntl
import functools
import itertools
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from uvit_jax.config import to_dict
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.io import read_json, write_text
from uvit_jax.remote import any_path, copy_file, gs_errors, is_gs
from uvit_jax.training.run_config import RunConfig, changed_keys, parse_run


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config as JSON, with defaults for keys that are newer than the run.

    An invalid config is returned unchanged.
    """
    try:
        return to_dict(parse_run(config))
    except UvitError:
        return config


class Workdir:
    """The files of a run at `path`."""

    def __init__(self, path: str | os.PathLike):
        self.path = any_path(path)
        self.remote = is_gs(path)
        self.source = os.fspath(self.path)
        self.config = self.path / "config.json"
        self.vocabulary = self.path / "vocabulary.json"
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None
        self._uploaded: dict[Path, tuple[int, int]] = {}
        if self.remote:
            with gs_errors(self.source), contextlib.suppress(FileNotFoundError):
                self.path.stat()  # raises without credentials, `exists` does not

    @functools.cached_property
    def outputs(self) -> Path:
        """The local folder of all but config, vocabulary and checkpoints."""
        if not self.remote:
            return self.path
        parent = tempfile.mkdtemp(prefix="uvit_jax_")
        atexit.register(shutil.rmtree, parent, ignore_errors=True)
        folder = Path(parent) / self.path.name  # which names the run in Weights & Biases
        folder.mkdir()
        with gs_errors(self.source):
            for name in ("metrics.jsonl", "evaluation.jsonl", "wandb_id.txt"):
                if (self.path / name).exists():
                    copy_file(self.path / name, folder / name)
        self._uploaded = _versions(folder)
        return folder

    @property
    def metrics(self) -> Path:
        """The file of logged metrics."""
        return self.outputs / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The folder of samples."""
        return self.outputs / "samples"

    @property
    def profile(self) -> Path:
        """The folder of traces."""
        return self.outputs / "profile"

    def address(self, file: Path) -> str:
        """Where a file of `outputs` is after `upload`."""
        return os.fspath(self.path / file.relative_to(self.outputs).as_posix())

    def upload(self) -> None:
        """Copies what has changed in `outputs` to a workdir in `gs://`; of others does nothing.

        Raises:
          UvitError: if it cannot be written.
        """
        if not self.remote or "outputs" not in self.__dict__:
            return
        versions = _versions(self.outputs)
        with gs_errors(self.source):
            for file, version in versions.items():
                if self._uploaded.get(file) != version:
                    copy_file(file, self.path / file.relative_to(self.outputs).as_posix())
                    self._uploaded[file] = version

    @property
    def steps(self) -> list[int]:
        """The steps of its checkpoints, ascending."""
        with gs_errors(self.source) if self.remote else contextlib.nullcontext():
            names = [p.name for p in self.checkpoints.glob("*")]
        return sorted(int(name) for name in names if name.isdigit())

    def close(self) -> None:
        """Uploads, and releases the lock of `create`, if any."""
        self.upload()
        if self._lock is not None:
            self._lock.close()

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises UvitError if the folder is not this run's, or not a new one."""
        if self.path.exists() and not self.path.is_dir():
            raise UvitError(f"workdir {self.path} is a file; give a folder")
        if not self.config.exists():
            # A run that was killed before it wrote its config left some of these.
            own = {"samples", "lock", "vocabulary.json", "vocabulary.json.partial"}
            own.add("config.json.partial")
            if self.steps:
                raise UvitError(f"{self.config} is missing{self._restore()}")
            if self.path.exists() and any(p.name not in own for p in self.path.iterdir()):
                raise UvitError(
                    f"workdir {self.path} is not empty and has no run (no config.json); "
                    "give a new folder with --workdir"
                )
            return
        old = self.read_config()
        changed = changed_keys(filled(old), json.loads(json.dumps(config)))
        train = old["train"] if isinstance(old.get("train"), dict) else {}
        if (
            config["optimizer"]["schedule"] == "cosine"
            and train.get("steps") != config["train"]["steps"]
        ):
            changed.append("train.steps (the cosine schedule depends on it)")
        if changed:
            remedy = "" if self.steps else " (this one has no checkpoint yet)"
            raise UvitError(
                f"workdir {self.path} belongs to a run of another config; it differs in "
                f"{', '.join(changed)}. Nothing was changed; give another --workdir{remedy}"
            )

    def read_config(self) -> dict[str, Any]:
        """The config of the run in this folder; UvitError if there is none or it is damaged."""
        if not self.path.exists():
            raise UvitError(f"the workdir {self.path} does not exist")
        if not self.config.is_file():
            if self.steps:
                raise UvitError(f"{self.config} is missing{self._restore()}")
            raise UvitError(
                f"{self.path} is not a workdir: it has no config.json; give the --workdir of "
                "experiments.train"
            )
        config = read_json(self.config, remedy=self._restore())
        if "model" not in config:
            raise UvitError(f"{self.config} is damaged (it has no model){self._restore()}")
        return config

    def read_run(self) -> RunConfig:
        """The parsed config; UvitError as `read_config`, or if this version refuses a value."""
        config = self.read_config()
        try:
            return parse_run(config)
        except UvitError as error:
            raise UvitError(f"{error}; the value is in {self.config}: correct it there") from None

    def read_vocabulary(self) -> Vocabulary:
        """The vocabulary of the run in this folder; UvitError if there is none or it is damaged."""
        try:
            return Vocabulary.from_json(self.vocabulary.read_bytes().decode())
        except (OSError, ValueError) as error:
            missing = not self.vocabulary.exists()
            problem = "missing" if missing else f"damaged ({error})"
            remedy = (
                ""
                if missing
                else f"delete it with {shlex.join(['rm', str(self.vocabulary)])}, and "
            )
            raise UvitError(
                f"{self.vocabulary} is {problem}; config.json and the checkpoints are intact; "
                f"{remedy}rerun the run's experiments.train command with --workdir="
                f"{shlex.quote(str(self.path))}, which writes it anew from the data and resumes"
            ) from None

    def _restore(self) -> str:
        """How a lost config.json is restored."""
        return (
            f"; the checkpoints of steps {', '.join(map(str, self.steps))} are not affected; to "
            "restore it, start the run's experiments.train command with a new --workdir=NEW, stop "
            f"it, and run cp NEW/config.json {shlex.quote(str(self.path))}/"
            if self.steps
            else "; the folder has no checkpoint: delete it, or give a new --workdir"
        )

    def create(self, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        """Locks the folder and writes config and vocabulary. Call `check` first.

        Raises:
          UvitError: if another process trains in it, or the run so far had other classes or texts.
        """
        self.samples.mkdir(parents=True, exist_ok=True)
        if not self.remote:  # object stores have no locks
            self._lock = (self.path / "lock").open("w")  # held until this process ends
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UvitError(f"another process is training in {self.path}") from None
        text = vocabulary.to_json()
        resumed = self.config.exists() and self.vocabulary.exists()
        # The vocabulary of weights that were imported without their data is empty.
        known = (text, Vocabulary().to_json())
        if resumed and self.vocabulary.read_bytes().decode(errors="replace") not in known:
            self.read_vocabulary()  # raises if it is damaged
            raise UvitError(
                f"the classes or words of the data differ from those in {self.vocabulary}"
                f"{_first_difference(self.read_vocabulary(), vocabulary)}; if the data have "
                "changed, give another --workdir; if not, the file is damaged: delete it with "
                f"{shlex.join(['rm', str(self.vocabulary)])}, and run the same command to resume"
            )
        write_text(self.vocabulary, text)
        write_text(self.config, json.dumps(config, indent=2) + "\n")


def _versions(folder: Path) -> dict[Path, tuple[int, int]]:
    """The size and time of each file below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def _first_difference(stored: Vocabulary, new: Vocabulary) -> str:
    """The first class or word in which two vocabularies differ, in brackets."""
    words = [v.tokenizer.words if v.tokenizer else () for v in (stored, new)]
    for kind, pair in (("class", (stored.classes, new.classes)), ("word", words)):
        for number, (old, now) in enumerate(itertools.zip_longest(*pair)):
            if old != now:
                return f" ({kind} {number} is {old!r} there and {now!r} in the data)"
    return ""
