"""Images of named subjects, with reference images of each: `data.name="subjects"`.

`config.path` is a manifest or a folder. A manifest is a file of JSON lines, with paths relative to
its folder:

    {"image": "park.jpg", "caption": "@1 chases @2 in a park",
     "references": {"@1": ["rex/1.jpg", "rex/2.jpg"], "@2": ["ball.png"]},
     "masks": {"@1": ["rex/1_mask.png", null]}, "weight": 2}

Masks cut subjects out of their references. In a folder, every sub-folder has the images of one
subject. Each image is a target, and the others are its references; its caption is the file of the
same name with the suffix `.txt` or `.caption`, in which the subject is `@1`, or else just `@1`.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import DataConfig, parse_colour
from uvit_jax.data.dataset import Dataset, first_size, is_small
from uvit_jax.data.reference_rows import SLOT_WORDS, reference_inputs
from uvit_jax.data.sources.folder import FolderSource
from uvit_jax.data.sources.manifest import read_manifest, refuse
from uvit_jax.data.sources.source import Source
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError, nearest
from uvit_jax.paths import local_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectImage:
    """An image of subjects, and the files that show them.

    Attributes:
      image: the target's file.
      caption: with `@1` to `@S`, each at least once.
      references: by subject, the candidate files, at least one.
      masks: of some of these files, the file of a mask: white where the subject is, black where
        the reference has `config.background` instead.
      weight: how many times the image occurs in an epoch.
      where: its line or file, for messages.
    """

    image: Path
    caption: str
    references: tuple[tuple[Path, ...], ...]
    masks: Mapping[Path, Path] = dataclasses.field(default_factory=dict)
    weight: int = 1
    where: str = ""


class SubjectDataset(Dataset):
    """Images of subjects, opened. Files of a small set are decoded once and kept in memory.

    A row has the inputs of `scene_source.SceneDataset`: `image`, `ref_{s}_{v}`, `refs_present` and
    `text`. Of several sizes, references have the first. An image's references are sampled again in
    every epoch: how many of a subject, from 1 to `config.max_views`, which ones, and in which
    order.
    """

    _transient = ("_encode_caption", "_decoded")

    def __init__(self, config: DataConfig, source: "SubjectSource", tokenizer: Tokenizer | None):
        self.image_shape = (*first_size(config, source), config.channels)
        self._background = parse_colour(config.background)
        super().__init__(config, source, tokenizer)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """A record as one row of a batch, with the first references of each subject."""
        return self._row(record["example"], None)

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The records of these indices as a batch; `bits` decide on references and mirroring."""
        bits = [None] * len(indices) if bits is None else bits
        rows = [
            self._row(self.source[index]["example"], row_bits)
            for index, row_bits in zip(indices, bits, strict=True)
        ]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, example: SubjectImage, bits: int | None) -> dict[str, np.ndarray]:
        S, V, sizes = self.config.max_subjects, self.config.max_views, self.config.target_sizes
        rng = None if bits is None else np.random.default_rng(bits)
        present = np.zeros((S, V), bool)
        images = np.zeros((S, V, *self.image_shape), np.float32)
        most = min(V, self.config.places // len(example.references)) if self.config.places else V
        for s, files in enumerate(example.references):
            chosen = range(min(len(files), most))
            if rng is not None and most:
                count = rng.integers(1, len(chosen) + 1)
                chosen = rng.permutation(len(files))[:count]
            for v, i in enumerate(chosen):
                image = self._image(files[i], sizes[:1], example.masks.get(files[i]))
                images[s, v], present[s, v] = image, True
        target = self._image(example.image, sizes)
        if rng is not None and self.config.flip and rng.integers(2):
            target, images = target[:, ::-1], images[..., ::-1, :]
        row = {"image": target, **reference_inputs(images, present, self.config)}
        if self.tokenizer is not None:
            row["text"] = self._encode_caption(example.caption)
        return row

    def _image(
        self, file: Path, sizes: Sequence[tuple[int, int]], mask: Path | None = None
    ) -> np.ndarray:
        """float32 (H, W, C) in [-1, 1], of the nearest of `sizes`."""
        key = (file, len(sizes), mask)
        pixels = self._decoded.get(key) if self._decoded is not None else None
        if pixels is None:
            pixels = image_decoding.decode(
                image_decoding.read_file(file),
                str(file),
                sizes=sizes,
                channels=self.config.channels,
                background=self._background,
                mask=None if mask is None else image_decoding.read_file(mask),
            )
            if self._decoded is not None:
                self._decoded[key] = pixels
        return image_decoding.to_float(pixels)

    def _start(self) -> None:
        super()._start()
        small = is_small(self, len(self.source.files))
        self._decoded: dict[tuple, np.ndarray] | None = {} if small else None


class SubjectSource(Source):
    """The images of a manifest or of a folder of subjects.

    A record is a dict with `example` (a `SubjectImage`), `name` and `captions` (one text).

    Raises:
      UvitError: if the manifest or the folder is missing, empty or damaged; or a file cannot be
        opened, a caption does not name exactly the subjects that have references, or an image has
        more than `config.max_subjects` or `config.places` of them. Up to ten are listed.
    """

    dataset_class = SubjectDataset

    def __init__(self, config: DataConfig):
        path = local_path(config.path)
        if path.is_dir():
            self.examples = _from_folder(config)
        else:
            remedy = "give a manifest of JSON lines, or a folder with a sub-folder for each subject"
            self.examples = read_manifest(path, _from_row, remedy=remedy)
        refuse(path, "captions that do not name their subjects", _misnamed(self.examples))
        refuse(path, "images with too many subjects", _too_many(self.examples, config))
        unique = {f for e in self.examples for f in (e.image, *sum(e.references, ()))}
        self.files = sorted(unique)
        if not path.is_dir():  # `FolderSource` has opened those of a folder
            masks = {m for e in self.examples for m in e.masks.values()}
            broken = image_decoding.problems([*self.files, *sorted(masks)])
            refuse(path, "images that cannot be opened", broken, "replace or remove them")
        self.native_shape = None
        self._order = [i for i, e in enumerate(self.examples) for _ in range(e.weight)]
        if len(config.sizes) > 1:
            shapes = image_decoding.upright_shapes(e.image for e in self.examples)
            self.shapes = [shapes[i] for i in self._order]
        elif not config.target_sizes:
            self.native_shape = image_decoding.common_shape(self.files)
        if config.text:
            self.captions = sorted({e.caption for e in self.examples})

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict:
        example = self.examples[self._order[index]]
        return {"example": example, "name": example.where, "captions": (example.caption,)}

    def tokenizer(self) -> Tokenizer:
        """The words of the captions, after those of the slots, which training permutes."""
        words = Tokenizer.from_captions(self.captions or ()).words
        return Tokenizer((*SLOT_WORDS, *(w for w in words if w not in SLOT_WORDS)))


def _from_folder(config: DataConfig) -> list[SubjectImage]:
    options = dict(labels="label", text=False, name="folder")
    folder = FolderSource(dataclasses.replace(config, **options))
    by_subject = collections.defaultdict(list)
    for file in folder.files:
        by_subject[file.parts[0]].append(file)
    alone = [f"{folder.root / name}" for name, files in by_subject.items() if len(files) < 2]
    refuse(folder.root, "subjects with a single image", alone, "add another view, or remove them")
    examples = []
    for files in by_subject.values():
        for file in files:
            others = tuple(folder.root / f for f in files if f != file)
            caption = folder.caption(file)
            examples.append(
                SubjectImage(
                    image=folder.root / file,
                    caption="@1" if caption is None else caption,
                    references=(others,),
                    where=str(folder.root / file),
                )
            )
    return examples


def _from_row(row: dict[str, Any], folder: Path, where: str) -> SubjectImage:
    known = ("image", "caption", "references", "masks", "weight")
    for key in row:
        if key not in known:
            raise UvitError(f"{key!r} is not a known key{nearest(key, known)}")
    image, caption, references = (row.get(key) for key in known[:3])
    weight = row.get("weight", 1)
    if not isinstance(image, str) or not isinstance(caption, str):
        raise UvitError("image and caption must be strings")
    if type(weight) is not int or not 1 <= weight <= 1000:
        raise UvitError(f"weight must be an integer from 1 to 1000, got {weight!r}")
    if not isinstance(references, dict) or not references:
        raise UvitError('references must be of the form {"@1": ["file", …]}')
    names = [f"@{s + 1}" for s in range(len(references))]
    if set(references) != set(names):
        raise UvitError(f"references are of {', '.join(references)}; number subjects from @1")
    files = [_files(references[name], f"references of {name}", folder) for name in names]
    if None in sum(files, ()):
        raise UvitError("references must be files")
    masks = row.get("masks", {})
    if not isinstance(masks, dict) or not masks.keys() <= set(names):
        raise UvitError('masks must be of the form {"@1": ["file", null, …]}, as references')
    by_file: dict[Path, Path] = {}
    for name, own in zip(names, files, strict=True):
        listed = _files(masks[name], f"masks of {name}", folder) if name in masks else ()
        if listed and len(listed) != len(own):
            raise UvitError(f"{name} has {len(own)} references and {len(listed)} masks")
        by_file |= {f: mask for f, mask in zip(own, listed, strict=False) if mask is not None}
    return SubjectImage(
        image=folder / local_path(image),
        caption=caption,
        references=tuple(files),
        masks=by_file,
        weight=weight,
        where=where,
    )


def _files(listed: Any, what: str, folder: Path) -> tuple[Path | None, ...]:
    """A list of files, or of null, relative to a folder."""
    if not isinstance(listed, list) or not all(f is None or isinstance(f, str) for f in listed):
        raise UvitError(f"{what} must be a list of files")
    if not listed:
        raise UvitError(f"{what} must be a list of files, at least one")
    return tuple(None if f is None else folder / local_path(f) for f in listed)


def _misnamed(examples: Iterable[SubjectImage]) -> list[str]:
    """What captions lack the name of a subject, or name one without references."""
    wrong = []
    for example in examples:
        named = {int(n) for n in re.findall(r"(?<!\S)@(\d+)(?=[\s,.;:!?)]|$)", example.caption)}
        expected = set(range(1, len(example.references) + 1))
        if missing := sorted(expected - named):
            wrong.append(f"{example.where}: the caption {example.caption!r} lacks @{missing[0]}")
        elif unknown := sorted(named - expected):
            wrong.append(f"{example.where}: @{unknown[0]} of the caption has no references")
    return wrong


def _too_many(examples: Iterable[SubjectImage], config: DataConfig) -> list[str]:
    """Which examples have more subjects than the config allows."""
    limits = {"max_subjects": config.max_subjects}
    if config.places:
        limits["places"] = config.places
    key = min(limits, key=limits.get)
    return [
        f"{e.where}: {len(e.references)} subjects, and config.data.{key} is {limits[key]}"
        for e in examples
        if len(e.references) > limits[key]
    ]
