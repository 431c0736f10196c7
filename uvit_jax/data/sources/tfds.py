"""TFDS data sets as data sources, the embedded emoji set among them. No TensorFlow is needed.

Only the emoji set is ever prepared from here; every other one has to be on the disk already, as
array_record files.
"""

import difflib
import functools
from collections.abc import Iterable

from uvit_jax.data.data_config import WORLDS, DataConfig
from uvit_jax.data.sources import emoji
from uvit_jax.errors import UvitError, nearest


class EmojiSource:
    """The embedded emoji, filtered by the `keep_` keys of the config.

    `source[i]` is a dict: `image` (encoded bytes), `name`, `captions` (one text), `label` (if
    labels are on), and the texts `vendor`, `group`, `subgroup`, `concept`, `key`.

    `class_names` are those that the filter leaves in either split, so that a class has one number
    in training and in the test.

    Raises:
      UvitError: if the filter names something unknown or leaves nothing.
    """

    native_shape = (64, 64)

    def __init__(self, config: DataConfig):
        from uvit_jax.data.sources.emoji import preparation

        everything = emoji.index()
        self.captions = [record["caption"] for record in everything]
        kept = {record["key"]: record for record in _filter(everything, config)}
        self.class_names: tuple[str, ...] = ()
        if config.labels:
            names = {record[config.labels] for record in kept.values()}
            known = {"vendor": emoji.VENDORS, "group": emoji.GROUPS}
            self.class_names = tuple(
                n for n in known.get(config.labels, sorted(names)) if n in names
            )
        else:
            self.class_names = ()
        builder = preparation.builder(config.data_dir)
        self._records = []
        for key, image in _stored(str(builder.data_path), config.split):
            if key not in kept:
                continue
            entry = kept[key]
            record = {
                "image": image,
                "name": key,
                "captions": (entry["caption"],),
                "concept": entry["label"],
                **{field: entry[field] for field in ("vendor", "group", "subgroup", "key")},
            }
            if config.labels:
                record["label"] = self.class_names.index(entry[config.labels])
            self._records.append(record)
        if not self._records:
            raise UvitError(f"no emoji of the split {config.split!r} passes the keep_ filters")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return dict(self._records[index])


@functools.lru_cache(4)
def _stored(data_path: str, split: str) -> tuple[tuple[str, bytes], ...]:
    """(key, encoded picture) of every emoji of a split, read once a process: all of it is 20 MB."""
    import tensorflow_datasets as tfds

    data = _open(tfds.builder_from_directory(data_path), split, ["image"])
    records = data.__getitems__(range(len(data)))
    return tuple((record["key"].decode(), record["image"]) for record in records)


def _filter(records: list[dict], config: DataConfig) -> list[dict]:
    for field in ("vendor", "group", "subgroup", "label"):
        wanted = getattr(config, f"keep_{field}s")
        known = {record[field] for record in records}
        for value in wanted:
            if value not in known:
                close = difflib.get_close_matches(value, known) if len(known) > 100 else known
                raise UvitError(f"keep_{field}s: {value!r} is unknown{nearest(value, close)}")
    return [
        record
        for record in records
        if all(
            record[field] in (getattr(config, f"keep_{field}s") or (record[field],))
            for field in ("vendor", "group", "subgroup", "label")
        )
    ]


class TfdsSource:
    """A prepared TFDS data set with an Image feature.

    `source[i]` is a dict: `image` (encoded bytes), `name` (data set, split and index), `label` (if
    labels are on), `captions` (if text is on: those of the record, or else its class name).

    Raises:
      UvitError: on an unknown name or split, a data set that is not prepared, or one without the
        features that the config asks for.
    """

    def __init__(self, config: DataConfig):
        import tensorflow_datasets as tfds

        self.name, self.split = config.name.removeprefix("tfds:"), config.split
        builder = _builder(self.name, config.data_dir)
        features = builder.info.features
        images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
        if not images:
            raise UvitError(f"the data set {self.name} has no pictures")
        wanted = {"image": "image" if "image" in images else images[0]}
        classes = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
        if config.labels:
            if config.labels not in classes:
                hint = nearest(config.labels, classes) or "; it has none, leave labels empty"
                raise UvitError(f"{self.name} has no class feature {config.labels!r}{hint}")
            wanted["label"] = config.labels
        self.class_names = tuple(features[config.labels].names) if config.labels else ()
        self.captions = None
        self._names = ()
        if config.text:
            texts = [k for k in ("captions", "caption") if k in features]
            if texts:
                wanted["captions"] = texts[0]
            elif classes:
                key = config.labels or ("label" if "label" in classes else classes[0])
                wanted["named"] = key
                # "n02119789" or "great_white_shark": words are what a tokenizer can use.
                self._names = tuple(n.replace("_", " ") for n in features[key].names)
                self.captions = list(self._names)
            else:
                raise UvitError(f"{self.name} has neither captions nor classes; set text to False")
        shape = features[wanted["image"]].shape[:2]
        self.native_shape = None if None in shape else tuple(shape)
        self._wanted = wanted
        self._data = _open(builder, config.split, images)
        if not len(self._data):
            raise UvitError(f"the split {config.split!r} of {self.name} is empty")

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict:
        stored = self._data[index]
        stored = {ours: stored[theirs] for ours, theirs in self._wanted.items()}
        record = {"image": stored["image"], "name": f"{self.name}, {self.split}, number {index}"}
        if "label" in stored:
            record["label"] = int(stored["label"])
        if "named" in stored:
            record["captions"] = (self._names[int(stored["named"])],)
        if "captions" in stored:
            texts = stored["captions"]
            texts = texts["text"] if isinstance(texts, dict) else texts
            texts = [texts] if isinstance(texts, bytes) else list(texts)
            record["captions"] = tuple(text.decode("utf-8", "replace") for text in texts)
        return record


def _builder(name: str, data_dir: str):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (ValueError, ImportError) as error:
        known = [
            "emoji",
            "folder",
            "latents",
            *WORLDS,
            *tfds.list_builders(with_community_datasets=False),
        ]
        if name.split("/")[0].split(":")[0] in known:
            raise UvitError(f"cannot open the data set {name!r}: {error}") from error
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UvitError(f"the data set {name!r} is unknown{nearest(name, close)}") from None
    if not builder.is_prepared():
        root = data_dir or builder.data_path.parent.parent
        raise UvitError(
            f"the data set {name} is not prepared in {root}; do so once with "
            f"`tfds build {name} --data_dir={root} --file_format=array_record` (which downloads "
            f"it, needs TensorFlow for most data sets, and for imagenet2012 the original archives)"
        )
    return builder


def _open(builder, split: str, pictures: Iterable[str]):
    """The split's random access, with the features `pictures` left encoded."""
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    try:
        return builder.as_data_source(
            split=split,
            # PartialDecoding, which would leave out what is not wanted, needs TensorFlow.
            decoders=dict.fromkeys(pictures, tfds.decode.SkipDecoding()),
        )
    except NotImplementedError:
        raise UvitError(
            f"{builder.name} in {builder.data_path} is not stored as array_record; prepare it in "
            f"another data_dir with `tfds build {builder.name} --file_format=array_record`"
        ) from None
    except (ValueError, KeyError, AssertionError) as error:
        raise UvitError(
            f"cannot open the split {split!r} of {builder.name}, which has "
            f"{', '.join(splits)} ({str(error).splitlines()[0] if str(error) else 'unknown'})"
        ) from error
