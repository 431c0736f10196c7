"""A folder of PNG, JPEG or WebP images as a data source; its sub-folders are the classes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.source import Source
from uvit_jax.errors import UvitError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class FolderSource(Source):
    """The images below `config.path`, sorted by path; names that begin with a dot are skipped.

    An image's class is its first sub-folder. Its caption is the text of the file of the same name
    with the suffix `.txt`, or else the name of its first sub-folder.

    Raises:
      UvitError: if the folder is missing or empty, an image cannot be opened, or one lacks the
        sub-folder or the caption that the config asks for.
    """

    label_names = ("label",)

    def __init__(self, config: DataConfig):
        self.root = Path(config.path).expanduser()
        if not self.root.is_dir():
            if self.root.exists():
                raise UvitError(f"{self.root} is a file; give the folder that contains it")
            raise UvitError(f"the folder {self.root} does not exist")
        self.files = sorted(
            Path(folder, name).relative_to(self.root)
            for folder, _, names in os.walk(self.root, followlinks=True)
            for name in names
            if name.lower().endswith(SUFFIXES)
        )
        self.files = [f for f in self.files if not any(part.startswith(".") for part in f.parts)]
        if not self.files:
            raise UvitError(f"the folder {self.root} contains no images ({', '.join(SUFFIXES)})")
        self._check()
        self.native_shape = None if config.image_size else self._common_shape()
        self._labels = None
        if config.labels:
            self._require(lambda f: len(f.parts) > 1, "is in no sub-folder, and labels are on")
            self.class_names = tuple(sorted({f.parts[0] for f in self.files}))
            self._labels = [self.class_names.index(f.parts[0]) for f in self.files]
        if config.text:
            self._require(
                lambda f: (self.root / f).with_suffix(".txt").is_file() or len(f.parts) > 1,
                "has neither a caption file (.txt) nor a sub-folder, and text is on",
            )
            self.captions = [self._caption(f) for f in self.files]

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

        def problem(file: Path) -> str | None:
            reason = image_decoding.problem(self.root / file)
            return reason and f"{self.root / file} ({reason})"

        with ThreadPoolExecutor(8) as pool:
            broken = [text for text in pool.map(problem, self.files) if text]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise UvitError(
                f"an image cannot be opened: {broken[0]}{more}; replace or remove what is broken"
            )

    def _common_shape(self) -> tuple[int, int] | None:
        """The common height and width of all images, after EXIF orientation, or None."""
        shapes = {image_decoding.upright_shape(self.root / file) for file in self.files}
        return shapes.pop() if len(shapes) == 1 else None

    def _require(self, condition: Callable[[Path], bool], problem: str) -> None:
        missing = [f for f in self.files if not condition(f)]
        if missing:
            raise UvitError(
                f"{self.root / missing[0]} {problem} ({len(missing)} of {len(self.files)} images)"
            )

    def _caption(self, file: Path) -> str:
        beside = (self.root / file).with_suffix(".txt")
        if not beside.is_file():
            return file.parts[0]
        try:
            return beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UvitError(f"cannot read the caption {beside}: {error}") from error
