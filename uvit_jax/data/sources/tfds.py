"""Prepared data sets of TensorFlow Datasets (TFDS) as data sources.

TensorFlow is not needed, and nothing is downloaded: the data set must be on the disk already, as
array_record files.
"""

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.source import Source
from uvit_jax.errors import UvitError, nearest


class TfdsSource(Source):
    """A prepared TFDS data set with an Image feature.

    Captions are the feature `captions` or `caption`; without these, the class names.

    Args:
      other_names: names of other data sources, which are suggested for a misspelt name too.

    Raises:
      UvitError: on an unknown name or split, a data set that is not prepared, or one without the
        features that the config asks for.
    """

    key: ClassVar[str] = "image"
    """The key of a record's pixels."""
    encoded: ClassVar[bool] = True
    """Whether records hold encoded files, and not pixels."""

    def __init__(self, config: DataConfig, other_names: Sequence[str] = ()):
        import tensorflow_datasets as tfds

        if config.path:
            raise UvitError(
                f"path={config.path!r} is not read by the TFDS data set {config.name!r}; set "
                "data_dir to where it is prepared, or name to 'folder'"
            )
        self.name, self.split = config.name.removeprefix("tfds:"), config.split
        builder = _builder(self.name, config.data_dir, other_names)
        features = builder.info.features
        images = self.visual_features(features)
        if not images:
            raise UvitError(
                f"the data set {self.name} has no {self.key}s; set config.data.frames to read "
                "videos, and to 0 for images"
            )
        wanted = {self.key: self.key if self.key in images else images[0]}
        classes = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
        if config.labels:
            if config.labels not in classes:
                hint = nearest(config.labels, classes) or "; it has none, leave labels empty"
                raise UvitError(f"{self.name} has no class feature {config.labels!r}{hint}")
            wanted["label"] = config.labels
        self.class_names = tuple(features[config.labels].names) if config.labels else ()
        self._names = ()
        if config.text:
            texts = [k for k in ("captions", "caption") if k in features]
            if texts:
                wanted["captions"] = texts[0]
            elif classes:
                key = config.labels or ("label" if "label" in classes else classes[0])
                wanted["named"] = key
                # "n02119789" or "great_white_shark": a tokenizer needs words.
                self._names = tuple(n.replace("_", " ") for n in features[key].names)
                self.captions = list(self._names)
            else:
                raise UvitError(f"{self.name} has neither captions nor classes; set text to False")
        shape = features[wanted[self.key]].shape[-3:-1]
        self.native_shape = None if None in shape else tuple(shape)
        self._wanted = wanted
        self._data = open_split(builder, config.split, images if self.encoded else ())
        if not len(self._data):
            raise UvitError(f"the split {config.split!r} of {self.name} is empty")

    @staticmethod
    def visual_features(features: Mapping) -> list[str]:
        """The names of the features that are images."""
        import tensorflow_datasets as tfds

        return [name for name, one in features.items() if isinstance(one, tfds.features.Image)]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict:
        stored = self._data[index]
        stored = {key: stored[feature] for key, feature in self._wanted.items()}
        record = {self.key: stored[self.key], "name": f"{self.name}, {self.split}, number {index}"}
        if "label" in stored:
            record["label"] = int(stored["label"])
        if "named" in stored:
            number = int(stored["named"])
            if not 0 <= number < len(self._names):
                raise UvitError(
                    f"{record['name']} has the class {number}, whose name would be its caption, of "
                    f"{len(self._names)} classes: choose another split, or set "
                    "config.data.text=False"
                )
            record["captions"] = (self._names[number],)
        if "captions" in stored:
            texts = stored["captions"]
            texts = texts["text"] if isinstance(texts, dict) else texts
            texts = [texts] if isinstance(texts, bytes) else list(texts)
            record["captions"] = tuple(text.decode("utf-8", "replace") for text in texts)
        return record


def _builder(name: str, data_dir: str, other_names: Sequence[str]):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        builder.info.features  # noqa: B018, which opens them
    except (ValueError, ImportError) as error:
        if getattr(error, "name", "") == "tensorflow":
            raise UvitError(
                f"the data set {name!r} has features that need TensorFlow, such as Video: pip "
                "install tensorflow-cpu"
            ) from None
        known = [*other_names, *tfds.list_builders(with_community_datasets=False)]
        if name.split("/")[0].split(":")[0] in known:
            raise UvitError(f"cannot open the data set {name!r}: {error}") from error
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UvitError(f"the data set {name!r} is unknown{nearest(name, close)}") from None
    if not builder.is_prepared():
        root = data_dir or builder.data_path.parent.parent
        raise UvitError(
            f"the data set {name} is not prepared in {root}; prepare it once with "
            f"`{_build_command(name, f'--data_dir={root}')}` (which downloads it, needs TensorFlow "
            "for most data sets, and for imagenet2012 the original archives)"
        )
    return builder


def open_split(builder, split: str, images: Iterable[str]):
    """A split's random access, with the features `images` left encoded.

    Raises:
      UvitError: if there is no such split, or it is not stored as array_record.
    """
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    try:
        return builder.as_data_source(
            split=split,
            # PartialDecoding, which would skip unused features, needs TensorFlow.
            decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()),
        )
    except NotImplementedError:
        raise UvitError(
            f"{builder.name} in {builder.data_path} is not stored as array_record; prepare it in "
            f"another data_dir with `{_build_command(builder.name)}`"
        ) from None
    except (ValueError, KeyError, AssertionError) as error:
        raise UvitError(
            f"cannot open the split {split!r} of {builder.name}, which has "
            f"{', '.join(splits)} ({str(error).splitlines()[0] if str(error) else 'unknown'})"
        ) from error


def _build_command(name: str, *flags: str) -> str:
    return shlex.join(["tfds", "build", name, *flags, "--file_format=array_record"])
