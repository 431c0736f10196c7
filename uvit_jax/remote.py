"""Files elsewhere: `gs://bucket/…` to read and write, `hf://owner/name` to load and push.

Google Cloud Storage is accessed through etils' paths (with gcsfs, the extra `gcs`) and, for the
arrays of checkpoints, by Orbax and TensorStore; the Hugging Face Hub through huggingface_hub (the
extra `hub`). Both find their credentials themselves; none is ever read or printed here.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path, scheme_of

MODEL_FILE = "model.safetensors"
"""The file of a model of our own form in a repository of the Hub."""
_REPOSITORY = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")


def is_gs(path: str | os.PathLike) -> bool:
    """Whether a path is of Google Cloud Storage."""
    return scheme_of(path) == "gs"


def any_path(path: str | os.PathLike) -> Any:
    """A local path as `paths.local_path` returns it, or `gs://bucket/…` as a path of etils, which
    has the methods of `pathlib.Path`.

    Raises:
      UvitError: for other schemes, or without a bucket.
    """
    if not is_gs(path):
        return local_path(path)
    name = re.sub(r"^gs:/+", "", os.fspath(path), flags=re.IGNORECASE).strip("/")
    if not name:
        raise UvitError(f"{os.fspath(path)} has no bucket; give gs://BUCKET/FOLDER")
    from etils import epath

    return epath.Path(f"gs://{name}")


@contextlib.contextmanager
def gs_errors(name: str) -> Iterator[None]:
    """Raises errors of the libraries for `gs://` as a UvitError of one line; no other."""
    try:
        yield
    except (UvitError, KeyboardInterrupt):
        raise
    except ImportError as error:
        raise UvitError(
            f"{name} needs gcsfs ({_line(error)}): pip install 'uvit-jax[gcs]'"
        ) from None
    except Exception as error:  # of gcsfs, aiohttp, google.auth: many types
        raise UvitError(
            f"{name} cannot be accessed ({_line(error)}); check its name and your credentials "
            "(gcloud auth application-default login)"
        ) from None


def fetched(path: str | os.PathLike) -> Path:
    """A local path to the same files: of `gs://` and `hf://` a copy in the cache, whose parts are
    downloaded if they are missing or have another size or time.

    The cache is `$UVIT_JAX_DATA_CACHE`, by default `~/.cache/uvit_jax/gs`; for the Hub, its own.

    Raises:
      UvitError: if there is nothing at `path`, or it cannot be downloaded.
    """
    scheme = scheme_of(path)
    if scheme == "hf":
        return _from_hub(os.fspath(path))
    return _from_gs(any_path(path)) if scheme == "gs" else local_path(path)


def _from_gs(source: Any) -> Path:
    name = os.fspath(source)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("UVIT_JAX_DATA_CACHE") or f"{home}/uvit_jax/gs").expanduser()
    target = cache / name.removeprefix("gs://")
    with gs_errors(name):
        if source.is_dir():
            files = _files(source)
        elif source.exists():
            files = [source]
        else:
            raise UvitError(f"{name} does not exist")
        for file in files:
            copy_file(file, cache / os.fspath(file).removeprefix("gs://"))
    return target


def copy_file(source: Any, target: Any) -> None:
    """Copies a file between `gs://` and a local folder, unless there is one of the same size and
    time at a local target; a local file appears whole or not at all."""
    if isinstance(target, Path):
        theirs = source.stat()
        if target.exists():
            ours = target.stat()
            if (ours.st_size, int(ours.st_mtime)) == (theirs.length, int(theirs.mtime)):
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            partial = Path(file.name)
        try:
            _copy(source, partial)
            os.utime(partial, (theirs.mtime, theirs.mtime))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    else:
        _copy(source, target)


def move_folder(source: Any, target: Any) -> None:
    """Moves a folder, local or in `gs://`."""
    if not is_gs(source):
        shutil.move(source, target)
        return
    for file in _files(source):
        _copy(file, target / os.fspath(file).removeprefix(os.fspath(source)).lstrip("/"))
    source.rmtree()


def _files(source: Any) -> list[Any]:
    """The files below a folder in `gs://`."""
    files = []
    for folder, _, names in source.walk():  # with gcsfs, without the scheme
        root = any_path("gs://" + re.sub(r"^gs:/+", "", os.fspath(folder)))
        files += [root / name for name in names]
    return files


def _copy(source: Any, target: Any) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        while block := old.read(1 << 22):
            new.write(block)


def _from_hub(path: str) -> Path:
    """The model file of a repository, or a folder with its weights and settings."""
    match = _REPOSITORY.fullmatch(path)
    if not match:
        raise UvitError(f"{path}: give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    hub = _hub(path)
    options = dict(repo_id=match[1], revision=match[2], endpoint=os.environ.get("HF_ENDPOINT"))
    with _hub_errors(hub, path):
        try:
            return Path(hub.hf_hub_download(filename=MODEL_FILE, **options))
        except hub.errors.EntryNotFoundError:  # of another program, or adapters
            folders = ("", "transformer/", "unet/")
            names = ("*.json", "*.safetensors", "diffusion_pytorch_model*.bin")
            patterns = [folder + name for folder in folders for name in names]
            return Path(hub.snapshot_download(allow_patterns=patterns, **options))


def push(repository: str, files: Mapping[str, Path], *, message: str, private: bool = False) -> str:
    """Commits files to a model repository of the Hub, which is created if it does not exist.

    Args:
      repository: OWNER/NAME. files: local files by their names there.
      private: of a new repository.

    Returns:
      The repository's address.

    Raises:
      UvitError: if the name is impossible, or the Hub refuses it; nothing is committed then.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UvitError(f"--push_to_hub={repository}: give OWNER/NAME")
    hub = _hub(f"--push_to_hub={repository}")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with _hub_errors(hub, f"hf://{repository}"):
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file))
            for name, file in files.items()
        ]
        api.create_commit(repository, operations, commit_message=message)
    return f"hf://{repository}"


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UvitError(f"{what} needs huggingface_hub: pip install 'uvit-jax[hub]'") from None
    return huggingface_hub


@contextlib.contextmanager
def _hub_errors(hub: Any, name: str) -> Iterator[None]:
    """Raises errors of the Hub in one line, without the token."""
    errors = hub.errors
    remedies = (
        (
            errors.GatedRepoError,
            "accept its conditions on its page, and log in with `hf auth login`",
        ),
        (errors.RevisionNotFoundError, "check the revision after @"),
        (errors.RepositoryNotFoundError, "check its name, and log in (`hf auth login`) if private"),
        (errors.LocalEntryNotFoundError, "check the connection"),
        (errors.EntryNotFoundError, "it has no such file"),
    )
    try:
        yield
    except (UvitError, KeyboardInterrupt):
        raise
    except Exception as error:  # of huggingface_hub and its HTTP library: many types
        remedy = next((text for kind, text in remedies if isinstance(error, kind)), "")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) and not remedy:
            remedy = "log in with `hf auth login`, with a token that may write"
        reason = f"status {status}" if status else _line(error)
        token = hub.get_token()
        if token:
            reason = reason.replace(token, "…")
        problem = f"{name} cannot be accessed ({reason})"
        raise UvitError(f"{problem}; {remedy or 'try again later'}") from None


def _line(error: BaseException) -> str:
    """The first line of an error without queries of URLs, which may carry signatures."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return re.sub(r"\?[^\s'\")]*", "?…", text)
