"""Data sets that Hugging Face's `datasets` has saved (`save_to_disk`): `data.name="huggingface"`.

    config.data = dict(name="huggingface", path="pokemon", split="train", image_size=64, text=True)

`config.path` is the folder of a `Dataset` or of a `DatasetDict`. Its Arrow files are mapped into
memory and read with pyarrow; `datasets` itself is not needed.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from uvit_jax.data import image_decoding
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.source import Source
from uvit_jax.errors import UvitError, nearest
from uvit_jax.io import read_json
from uvit_jax.paths import local_path

CAPTIONS = ("caption", "captions", "text", "texts")
"""The columns that captions are in, strings or lists of them, of which the first is taken."""


class ArrowSource(Source):
    """The rows of a saved data set with a column of images.

    Captions are the first column of `CAPTIONS`; without these, the class names.

    Raises:
      UvitError: if pyarrow is missing, the folder is none of a saved data set or damaged, or it
        lacks the split, the classes or the captions that the config asks for.
    """

    splits = None
    label_names = None

    def __init__(self, config: DataConfig):
        self.folder = _split_folder(local_path(config.path), config.split)
        remedy = "; save the data set again with save_to_disk"
        state = read_json(self.folder / "state.json", remedy=remedy)
        features = read_json(self.folder / "dataset_info.json", remedy=remedy).get("features")
        files = [f.get("filename") for f in state.get("_data_files") or () if isinstance(f, dict)]
        if not isinstance(features, dict) or not all(_is_name(f) for f in files):
            raise UvitError(f"{self.folder}: state.json or dataset_info.json is damaged{remedy}")
        if state.get("_indices_data_files") or not files:
            raise UvitError(f"{self.folder} has no rows, or rows in an index file{remedy}")
        self._files = [self.folder / name for name in files]
        kinds = {k: f.get("_type") for k, f in features.items() if isinstance(f, dict)}
        images = [k for k, kind in kinds.items() if kind == "Image"]
        classes = [k for k, kind in kinds.items() if kind == "ClassLabel"]
        if not images:
            raise UvitError(f"{self.folder} has no column of images, but {', '.join(features)}")
        self._image = "image" if "image" in images else images[0]
        self._label = config.labels
        if config.labels and config.labels not in classes:
            hint = nearest(config.labels, classes) or "; it has none, leave labels empty"
            raise UvitError(f"{self.folder} has no column of classes {config.labels!r}{hint}")
        if config.labels:
            self.class_names = tuple(map(str, features[config.labels].get("names") or ()))
        self._caption = next((name for name in CAPTIONS if name in features), "")
        self._named, self._names = "", ()
        if config.text and not self._caption:
            if not classes:
                raise UvitError(
                    f"{self.folder} has neither captions ({', '.join(CAPTIONS)}) nor classes; set "
                    "text to False"
                )
            self._named = config.labels or classes[0]
            names = features[self._named].get("names") or ()
            self._names = tuple(str(name).replace("_", " ") for name in names)
        self._caption = self._caption if config.text else ""
        self._table = self._open()
        if not len(self):
            raise UvitError(f"{self.folder} is empty; save the data set again")
        if self._names:
            self.captions = list(self._names)
        elif config.text and not config.vocabulary:
            self.captions = [text for i in range(len(self)) for text in self._texts(i)]
        if len(config.sizes) > 1:
            with ThreadPoolExecutor(8) as pool:
                self.shapes = list(pool.map(self._shape, range(len(self))))

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> dict:
        record: dict[str, Any] = {"image": self._bytes(index), "name": self._name(index)}
        if self._label:
            label = self._value(self._label, index)
            record["label"] = -1 if label is None else label
        if self._caption:
            record["captions"] = self._texts(index)
        elif self._named:
            number = self._value(self._named, index)
            if number is None or not 0 <= number < len(self._names):
                raise UvitError(
                    f"{self._name(index)} has the class {number}, whose name would be its caption, "
                    f"of {len(self._names)}; set text to False"
                )
            record["captions"] = (self._names[number],)
        return record

    def _name(self, index: int) -> str:
        return f"{self.folder}, row {index}"

    def _value(self, column: str, index: int) -> Any:
        return self._table[column][index].as_py()

    def _bytes(self, index: int) -> bytes:
        stored = self._value(self._image, index)
        data = stored.get("bytes") if isinstance(stored, dict) else None
        if not isinstance(data, bytes):
            raise UvitError(
                f"{self._name(index)} has no bytes of an image in the column {self._image!r}; save "
                "the data set again with its images embedded"
            )
        return data

    def _texts(self, index: int) -> tuple[str, ...]:
        texts = self._value(self._caption, index)
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
            raise UvitError(
                f"{self._name(index)} has no text in the column {self._caption!r}; remove the row, "
                "or set text to False"
            )
        return tuple(texts)

    def _shape(self, index: int) -> tuple[int, int]:
        return image_decoding.encoded_shape(self._bytes(index), self._name(index))

    def _open(self) -> Any:
        """The rows as a pyarrow table, mapped into memory."""
        try:
            import pyarrow as pa
        except ImportError:
            raise UvitError(
                "data sets of Hugging Face need pyarrow; run `pip install 'uvit-jax[arrow]'`"
            ) from None
        tables = []
        for file in self._files:
            try:
                tables.append(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())
            except (OSError, pa.ArrowException) as error:
                raise UvitError(
                    f"{file} cannot be read ({error}); save the data set again with save_to_disk"
                ) from None
        try:
            table = pa.concat_tables(tables)
        except pa.ArrowException as error:
            raise UvitError(f"{self.folder}: its files have other columns each: {error}") from None
        wanted = {self._image, self._label, self._caption, self._named} - {""}
        if missing := sorted(wanted - set(table.column_names)):
            raise UvitError(f"{self.folder} lacks the column {missing[0]!r}; save it again")
        return table.select(sorted(wanted))

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "_table"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._table = self._open()


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _split_folder(root: Path, split: str) -> Path:
    """The folder of a split, or of a data set without splits."""
    if not root.is_dir():
        raise UvitError(f"the folder {root} does not exist; give one that save_to_disk has written")
    splits = root / "dataset_dict.json"
    if splits.is_file():
        known = read_json(splits).get("splits")
        known = [s for s in known if _is_name(s)] if isinstance(known, list) else []
        if split not in known:
            raise UvitError(f"{root} has no split {split!r}{nearest(split, known)}")
        return root / split
    if not (root / "state.json").is_file():
        raise UvitError(
            f"{root} is no data set that save_to_disk has written (it has no state.json); a folder "
            "of images is name='folder'"
        )
    if split != "train":
        raise UvitError(f"{root} has no splits; set split='train', got {split!r}")
    return root
