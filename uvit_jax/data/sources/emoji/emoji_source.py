"""The embedded emoji as a data source, filtered by the `keep_` keys of the config."""

import difflib
import functools
import zlib
from collections.abc import Iterable

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources import emoji
from uvit_jax.data.sources.source import Source
from uvit_jax.data.sources.tfds import open_split
from uvit_jax.errors import UvitError, nearest

HELD_OUT = "held_out"
_FILTERED = ("vendor", "group", "subgroup", "label")


class EmojiSource(Source):
    """The emoji of a split that pass the filters.

    Records also have the texts `vendor`, `group`, `subgroup`, `concept` and `key`. `class_names`
    are the classes of either split that pass the filters, so that a class has the same label in
    both.

    With `config.hold_out`, a vendor, its images of a fifth of the concepts that another vendor has
    are the split "held_out" instead of being in "train": images that training has not seen, of
    concepts and of a vendor that it has.

    Raises:
      UvitError: if a filter names something unknown or nothing passes, or there is nothing held out
        to read.
    """

    splits = label_names = None
    native_shape = (64, 64)

    def __init__(self, config: DataConfig):
        from uvit_jax.data.sources.emoji import prepared

        index = emoji.index()
        self.captions = [record["caption"] for record in index]
        passing = {record["key"]: record for record in _filter(index, config)}
        if config.labels:
            present = {record[config.labels] for record in passing.values()}
            order = {"vendor": emoji.VENDORS, "group": emoji.GROUPS}
            order = order.get(config.labels, sorted(present))
            self.class_names = tuple(name for name in order if name in present)
        builder = prepared.builder(config.data_dir)
        self._records = []
        held_out, split = _held_out(passing.values(), config), config.split
        if split == HELD_OUT:
            passing, split = {key: passing[key] for key in held_out}, "train"
        elif split != "test":
            passing = {key: record for key, record in passing.items() if key not in held_out}
        for key, image in _stored_images(str(builder.data_path), split):
            if key not in passing:
                continue
            entry = passing[key]
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
def _stored_images(data_path: str, split: str) -> tuple[tuple[str, bytes], ...]:
    """(key, encoded image) of every emoji of a split, read once per process (20 MB in all)."""
    import tensorflow_datasets as tfds

    data = open_split(tfds.builder_from_directory(data_path), split, ["image"])
    records = data.__getitems__(range(len(data)))
    return tuple((record["key"].decode(), record["image"]) for record in records)


def _held_out(records: Iterable[dict], config: DataConfig) -> set[str]:
    """The keys of the images held out from training."""
    if not config.hold_out:
        if config.split == HELD_OUT:
            raise UvitError("split='held_out' needs hold_out, the vendor whose images it has")
        return set()
    training = [record for record in records if record["split"] == "train"]
    others = {record["label"] for record in training if record["vendor"] != config.hold_out}
    return {
        record["key"]
        for record in training
        if record["vendor"] == config.hold_out
        and record["label"] in others
        and zlib.crc32(record["label"].encode()) % 5 == 0
    }


def _filter(records: list[dict], config: DataConfig) -> list[dict]:
    keep = {field: getattr(config, f"keep_{field}s") for field in _FILTERED}
    for field, wanted in keep.items():
        known = {record[field] for record in records}
        for value in wanted:
            if value not in known:
                close = difflib.get_close_matches(value, known) if len(known) > 100 else known
                raise UvitError(f"keep_{field}s: {value!r} is unknown{nearest(value, close)}")
    return [
        record
        for record in records
        if all(not wanted or record[field] in wanted for field, wanted in keep.items())
    ]
