"""Tar files in the layout of webdataset and img2dataset: `data.name="webdataset"`.

    config.data = dict(name="webdataset", path="laion", image_size=256, text=True)

`config.path` is a tar file, or a folder whose tar files are read in the order of their names. Files
in a row whose names differ only after the first dot are one example: `000017.jpg`, `000017.txt`
(its caption), `000017.cls` (its class, a number), and `000017.json`, whose `caption` is used where
there is no `.txt`. Nothing is unpacked: the position of every file is read when the data are
opened, and an example is read from there, so that any order is possible.
"""

import json
import logging
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.folder import SUFFIXES, TEXT_SUFFIXES
from uvit_jax.data.sources.source import Source
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path

logger = logging.getLogger(__name__)

CLASS_SUFFIX, JSON_SUFFIX = ".cls", ".json"
MAX_BYTES = 2**30
"""Of one file in a tar; what its header says is not trusted beyond."""


class _Part(NamedTuple):
    """Where a file is in a tar."""

    offset: int
    size: int


class TarExample(NamedTuple):
    """An example: the tar, its key, and its files by their suffix."""

    tar: Path
    key: str
    parts: dict[str, _Part]

    @property
    def image(self) -> str:
        """The suffix of its image; empty if it has none."""
        return next((s for s in SUFFIXES if s in self.parts), "")


class TarSource(Source):
    """The examples of tar files that have an image.

    Raises:
      UvitError: if there are no tar files, one is damaged or compressed, there is no image, or an
        example lacks the caption or the class that the config asks for.
    """

    label_names = ("label",)

    def __init__(self, config: DataConfig):
        root = local_path(config.path)
        tars = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        if not tars:
            raise UvitError(f"the folder {root} has no files NAME.tar; give another path")
        with ThreadPoolExecutor(8) as pool:
            found = [e for examples in pool.map(_examples, tars) for e in examples]
        self.examples = [example for example in found if example.image]
        logger.info(
            "%s: %d images in %d tar files, %d entries without an image",
            root,
            len(self.examples),
            len(tars),
            len(found) - len(self.examples),
        )
        if not self.examples:
            raise UvitError(f"{root} has no images ({', '.join(SUFFIXES)}); give another path")
        self._text, self._labels = config.text, None
        with ThreadPoolExecutor(8) as pool:
            if config.labels:
                self._labels = list(pool.map(_label, self.examples))
                self.class_names = tuple(map(str, range(max(self._labels) + 1)))
            if config.text and not config.vocabulary:
                self.captions = list(pool.map(_caption, self.examples))
            if len(config.sizes) > 1:
                self.shapes = list(pool.map(_shape, self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict:
        example = self.examples[index]
        record = {"image": _read(example, example.image), "name": _name(example)}
        if self._labels is not None:
            record["label"] = self._labels[index]
        if self._text:
            known = self.captions
            record["captions"] = (_caption(example) if known is None else known[index],)
        return record


def _examples(tar: Path) -> list[TarExample]:
    """The examples of a tar file, in its order."""
    examples: list[TarExample] = []
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if not member.isreg() or not dot or not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if not examples or examples[-1].key != key:
                    examples.append(TarExample(tar, key, {}))
                part = _Part(member.offset_data, member.size)
                examples[-1].parts.setdefault(f".{suffix.lower()}", part)
    except (OSError, tarfile.TarError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UvitError(
            f"the tar file {tar} cannot be read ({reason}); it must exist, be complete and not be "
            "compressed: repair or remove it"
        ) from None
    return examples


def _name(example: TarExample, suffix: str = "") -> str:
    return f"{example.key}{suffix or example.image} in {example.tar}"


def _read(example: TarExample, suffix: str) -> bytes:
    offset, size = example.parts[suffix]
    try:
        if size > MAX_BYTES:
            raise UvitError(f"it has more than {MAX_BYTES} bytes")
        with example.tar.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise UvitError("the tar file is shorter than it was")
        return data
    except (OSError, UvitError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UvitError(
            f"cannot read {_name(example, suffix)} ({reason}); repair or remove the tar file"
        ) from None


def _label(example: TarExample) -> int:
    text = _read(example, CLASS_SUFFIX) if CLASS_SUFFIX in example.parts else b""
    if not text.strip().isdigit() or int(text) >= 2**20:
        raise UvitError(
            f"{_name(example)} has no class, a number in {example.key}{CLASS_SUFFIX}, and labels "
            "are on; set labels=''"
        )
    return int(text)


def _caption(example: TarExample) -> str:
    try:
        for suffix in TEXT_SUFFIXES:
            if suffix in example.parts:
                return _read(example, suffix).decode("utf-8-sig").strip()
        if JSON_SUFFIX in example.parts:
            caption = json.loads(_read(example, JSON_SUFFIX)).get("caption")
            if isinstance(caption, str):
                return caption
    except (ValueError, AttributeError, RecursionError) as error:
        raise UvitError(f"the caption of {_name(example)} cannot be read: {error}") from None
    raise UvitError(
        f"{_name(example)} has no caption ({example.key}.txt, or the key 'caption' of its .json), "
        "and text is on; set text=False"
    )


def _shape(example: TarExample) -> tuple[int, int]:
    return image_decoding.encoded_shape(_read(example, example.image), _name(example))
