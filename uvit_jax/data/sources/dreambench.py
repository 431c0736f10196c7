"""Reads a folder of DreamBench: photographs of subjects in sub-folders, classes and prompts.

    prompts_and_classes.txt
    backpack/00.jpg, 01.jpg, …
    dog/00.jpg, …

    bench = DreamBench(path, image_size=256)
    bench.subjects["dog"].images()          # (n, 256, 256, 3)
    bench.subjects["dog"].prompts("@1")     # ["a @1 dog in the jungle", …]

The benchmark is that of Ruiz et al., "DreamBooth" (2022). Its file has two lists of 25 prompts, for
objects and for live subjects, and the class of each folder. Without it, the prompts of prompts.txt
(one per line, with `{0}` for the subject and `{1}` for its class) are used for all subjects, whose
class is the name of their folder.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.image_decoding import decode, read_file, to_float
from uvit_jax.data.sources.folder import FolderSource
from uvit_jax.errors import UvitError
from uvit_jax.paths import local_path

FILE, PLAIN = "prompts_and_classes.txt", "prompts.txt"
LIVE = ("cat", "dog")
"""The classes of live subjects, which the file does not list."""
_WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamBenchSubject:
    """A subject of the benchmark.

    Attributes:
      name: of its folder.
      kind: its class.
      files: its photographs, sorted.
      image_size: of its photographs: the short side is resized, the centre cropped; 0 keeps their
        sizes.
      templates: of prompts, with `{0}` for the subject and `{1}` for its class.
    """

    name: str
    kind: str
    files: tuple[Path, ...]
    image_size: int
    templates: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether it is an animal, which has its own prompts."""
        return self.kind in LIVE

    def prompts(self, word: str) -> list[str]:
        """The prompts, with `word` for the subject ("" for its class alone)."""
        return [" ".join(t.format(word, self.kind).split()) for t in self.templates]

    def images(self) -> np.ndarray:
        """Its photographs, float32 (n, image_size, image_size, 3) in [-1, 1].

        Raises:
          UvitError: if one cannot be decoded, or `image_size` is 0.
        """
        if not self.image_size:
            raise UvitError("the photographs differ in size; set image_size")
        return to_float(np.stack([_decoded(file, self.image_size) for file in self.files]))


class DreamBench:
    """The subjects in a folder, by name.

    Args:
      path: of the folder.
      image_size: see `DreamBenchSubject`.
      names: of the subjects to read; empty for all.

    Raises:
      UvitError: if there is no such folder, file or subject, a class or the prompts are missing, or
        a photograph cannot be opened.
    """

    def __init__(self, path: str | os.PathLike, *, image_size: int = 0, names: Sequence[str] = ()):
        root = local_path(path)
        # Opens every image, and raises at once if one is broken.
        source = FolderSource(DataConfig(name="folder", path=str(root), image_size=1))
        folders: dict[str, list[Path]] = {}
        for file in source.files:
            if len(file.parts) > 1:
                folders.setdefault(file.parts[0], []).append(root / file)
        if not folders:
            raise UvitError(f"{root} has no sub-folders with images; each subject needs one")
        if unknown := sorted(set(names) - set(folders)):
            raise UvitError(f"{root} has no subject {unknown[0]!r}; it has {', '.join(folders)}")
        classes, templates = _texts(root)
        self.path = root
        self.subjects: dict[str, DreamBenchSubject] = {}
        for name in names or folders:
            kind = classes(name)
            self.subjects[name] = DreamBenchSubject(
                name=name,
                kind=kind,
                files=tuple(folders[name]),
                image_size=image_size,
                templates=templates[kind in LIVE],
            )


def _texts(root: Path):
    """A function from a subject to its class, and the templates for objects and live subjects."""
    file = root / FILE
    if file.is_file():
        text = _read(file)
        head, _, rest = text.partition("\nPrompts")
        pairs = [line.split(",", 1) for line in head.splitlines() if "," in line]
        kinds = {name.strip(): kind.strip() for name, kind in pairs if name != "subject_name"}
        things, _, live = rest.partition("Live Subject Prompts")
        templates = tuple(
            tuple(re.findall(r"^\s*['\"](.*)['\"]\.format", t, re.M)) for t in (things, live)
        )
        if not kinds or not all(templates):
            raise UvitError(f"{file} needs DreamBench's list of classes and two lists of prompts")

        def find(name: str) -> str:
            if name not in kinds:
                raise UvitError(f"{file} has no class for the subject {name!r}; add a line to it")
            return kinds[name]

        return find, _checked(templates, file)
    file = root / PLAIN
    if not file.is_file():
        raise UvitError(f"{root} has neither {FILE} nor {PLAIN}; put one beside the subjects")
    lines = tuple(line.strip() for line in _read(file).splitlines() if line.strip())
    if not lines:
        raise UvitError(f"{file} has no prompts; give one per line, with {{0}} for the subject")
    return _words, _checked((lines, lines), file)


def _checked(templates: tuple[tuple[str, ...], ...], file: Path) -> tuple[tuple[str, ...], ...]:
    for template in (t for part in templates for t in part):
        try:
            named = "{0}" in template and template.format("", "")
        except (IndexError, KeyError, ValueError):
            named = False
        if not named:
            raise UvitError(
                f"{file}: the prompt {template!r} needs {{0}} for the subject, and may have {{1}} "
                "for its class"
            )
    return templates


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UvitError(f"cannot read {file}: {error}") from None


def _decoded(file: Path, size: int) -> np.ndarray:
    return decode(read_file(file), str(file), sizes=((size, size),), channels=3, background=_WHITE)


def _words(name: str) -> str:
    """The name of a folder as words: `grey_sloth2` → `grey sloth`."""
    return re.sub(r"[_\d]+", " ", name).strip() or name
