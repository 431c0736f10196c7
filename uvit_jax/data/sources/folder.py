"""A folder of PNG, JPEG or WebP images as a data source; its sub-folders are the classes."""

import collections
import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.source import Source
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LISTED = 20
"""How many broken images an error names; the others are logged."""
TEXT_SUFFIXES = (".txt", ".caption")
OTHER_IMAGES = (
    *(".gif", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff", ".jfif", ".jxl", ".jp2"),
    *(".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".psd"),
)
SYSTEM_FOLDERS = frozenset(  # casefolded
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@sharesnap"),
        *("#recycle", "#snapshot", "~snapshot", "network trash folder", "temporary items"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),
        *("__macosx", "__pycache__", "lost+found"),
    }
)


class FolderSource(Source):
    """The images below `config.path`, sorted by path.

    An image's class is its first sub-folder. Its caption is the text of the file of the same name
    with the suffix `.txt` or `.caption`, in any case, or else the name of its first sub-folder.
    Names are compared as Unicode NFC. Logs what was read, and what was skipped and why (`_scan`).

    Raises:
      UvitError: if the folder is missing or empty, an image cannot be opened, or one lacks the
        sub-folder or the caption that the config asks for.
    """

    label_names = ("label",)

    def __init__(self, config: DataConfig):
        self.root = local_path(config.path)
        if not self.root.is_dir():
            if self.root.exists():
                raise UvitError(f"{self.root} is a file; give the folder that contains it")
            raise UvitError(f"the folder {self.root} does not exist")
        self.files, self._texts, skipped = _scan(self.root)
        if not self.files:
            raise UvitError(
                f"the folder {self.root} contains no images ({', '.join(SUFFIXES)})"
                f"{_described(skipped)}"
            )
        self._check()
        self.native_shape = None
        if len(config.sizes) > 1:
            self.shapes = image_decoding.upright_shapes(self.root / f for f in self.files)
        elif not config.target_sizes:
            self.native_shape = image_decoding.common_shape(self.root / f for f in self.files)
        self._labels = None
        if config.labels:
            self._require(lambda f: len(f.parts) > 1, "is in no sub-folder, and labels are on")
            classes = [_nfc(f.parts[0]) for f in self.files]
            self.class_names = tuple(sorted(set(classes)))
            numbers = {name: i for i, name in enumerate(self.class_names)}
            self._labels = [numbers[name] for name in classes]
        if config.text:
            self._require(
                lambda f: stem(f) in self._texts or len(f.parts) > 1,
                "has neither a caption file (.txt or .caption) nor a sub-folder, and text is on",
            )
            texts = [self.caption(f) for f in self.files]
            self.captions = [
                _nfc(f.parts[0]) if text is None else text
                for f, text in zip(self.files, texts, strict=True)
            ]
            stems = {stem(f) for f in self.files}
            skipped["captions without an image"] = [
                file for stem, file in self._texts.items() if stem not in stems
            ]
        folders = {f.parts[0] for f in self.files if len(f.parts) > 1}
        own = sum(stem(f) in self._texts for f in self.files)
        captions = f", {own} with a caption file" if config.text else ""
        logger.info(
            "%s: %d images in %d sub-folders%s%s",
            self.root,
            len(self.files),
            len(folders),
            captions,
            _described(skipped),
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        file = self.root / self.files[index]
        record = {"image": image_decoding.read_file(file), "name": str(file)}
        if self._labels is not None:
            record["label"] = self._labels[index]
        if self.captions is not None:
            record["captions"] = (self.captions[index],)
        return record

    def _check(self) -> None:
        """Opens every file and verifies headers, and for PNG every checksum."""
        if broken := image_decoding.problems(self.root / file for file in self.files):
            for text in broken[LISTED:]:
                logger.warning("%s", text)
            more = f" and {len(broken) - LISTED} more, logged" if len(broken) > LISTED else ""
            raise UvitError(
                f"{len(broken)} of {len(self.files)} images cannot be opened: "
                f"{', '.join(broken[:LISTED])}{more}; replace or remove what is broken"
            )

    def _require(self, condition: Callable[[Path], bool], problem: str) -> None:
        missing = [f for f in self.files if not condition(f)]
        if missing:
            raise UvitError(
                f"{self.root / missing[0]} {problem} ({len(missing)} of {len(self.files)} images)"
            )

    def caption(self, file: Path) -> str | None:
        """The text beside one of `files`, or None if there is none.

        Raises:
          UvitError: if it cannot be read as UTF-8.
        """
        if stem(file) not in self._texts:
            return None
        return read_caption(self.root / self._texts[stem(file)])


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden, or one that a NAS, Windows, macOS or a file system creates."""
    return name.casefold() in SYSTEM_FOLDERS or name.startswith(".")


Skipped = dict[str, list[Path]]
"""Paths that were not read, by the reason."""


def _scan(root: Path) -> tuple[list[Path], dict[Path, Path], Skipped]:
    """Lists a folder.

    Links to folders are followed after all that is no link, and each folder is read once, however
    many links lead to it; so cycles end.

    Returns:
      The images, sorted; the caption files by their paths without suffix; what was skipped. All
      paths are relative to `root`.
    """
    files, texts, skipped = [], [], collections.defaultdict(list)
    folders, links, seen = [Path()], [], set()
    while folders or links:
        links.sort()
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped["links to folders read already"].append(folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(root / folder))
        except OSError:
            skipped["folders that cannot be read"].append(folder)
            continue
        for entry in entries:
            path = folder / entry.name
            suffix = path.suffix.lower()
            if entry.name.startswith("."):
                skipped["hidden"].append(path)
            elif (root / path).is_dir():
                if is_system_folder(entry.name):
                    skipped["system folders"].append(path)
                else:
                    (links if entry.is_symlink() else folders).append(path)
            elif suffix in SUFFIXES:
                files.append(path)
            elif suffix in TEXT_SUFFIXES and (root / path).is_file():
                texts.append(path)
            else:
                skipped[f"{suffix or 'other'} files"].append(path)
    by_stem, skipped["second captions"] = captions_by_stem(texts)
    return sorted(files), by_stem, skipped


def captions_by_stem(texts: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Caption files by what `stem` gives for the file that they describe, and those that are second
    to others: `.txt` precedes `.TXT`, and both `.caption`."""
    by_stem: dict[Path, Path] = {}
    second = []
    for text in sorted(
        texts, key=lambda t: (TEXT_SUFFIXES.index(t.suffix.lower()), t.suffix.lower() != t.suffix)
    ):
        if by_stem.setdefault(stem(text), text) != text:
            second.append(text)
    return by_stem, second


def read_caption(file: Path) -> str:
    """The text of a caption file, as Unicode NFC; UvitError if it cannot be read as UTF-8."""
    try:
        return _nfc(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UvitError(f"cannot read the caption {file}: {error}; save it as UTF-8") from error


def _described(skipped: Skipped) -> str:
    """What was skipped, as the end of a sentence: by reason the number and an example."""
    parts = [
        f"{len(paths)} {reason} ({min(paths)}{', …' if len(paths) > 1 else ''})"
        for reason, paths in sorted(skipped.items())
        if paths
    ]
    convert = any(f"{suffix} files" in skipped for suffix in OTHER_IMAGES)
    remedy = "; convert images to PNG, JPEG or WebP" if convert else ""
    return f"; skipped {', '.join(parts)}{remedy}" if parts else ""


def stem(file: Path) -> Path:
    """A path without its suffix, by which captions are found."""
    return Path(_nfc(str(file.with_suffix(""))))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
