"""TFDS data sets: read if they are prepared, never downloaded; errors name what is missing."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from uvit_jax.data.batches import batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.data.sources.emoji import prepared
from uvit_jax.errors import UvitError


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Holidays(tfds.core.GeneratorBasedBuilder):
    """Images without classes and with several captions each, as in coco_captions."""

    name = "holidays"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(7):
            yield i, {"image": png(i), "captions": [{"text": f"view {i}"}, {"text": f"hill {i}"}]}


class Plants(Holidays):
    """Images of one size with classes and no captions, as in cifar10."""

    name = "plants"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(5, 4, 3)),
            "label": tfds.features.ClassLabel(names=["red_rose", "oak"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for i in range(4):
            yield i, {"image": png(i), "label": i % 2}


@pytest.fixture(scope="module")
def holidays(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    Holidays(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def emoji_dir(data_dir) -> str:
    prepared.builder(data_dir)
    return data_dir


def test_a_prepared_set_is_read_with_and_without_the_prefix(emoji_dir):
    data = dataset(
        DataConfig(name="tfds:emoji", data_dir=emoji_dir, split="test", labels="vendor", text=True)
    )
    ours = dataset(DataConfig(data_dir=emoji_dir, split="test", labels="vendor", text=True))
    assert data.class_names == ours.class_names and data.image_shape == ours.image_shape
    batch, same = (next(batches(d, batch_size=8, seed=0)) for d in (data, ours))
    for key in ("image", "label", "index"):
        assert (batch[key] == same[key]).all()


def test_slices_of_splits(emoji_dir):
    data = dataset(DataConfig(name="tfds:emoji", data_dir=emoji_dir, split="train[:40]"))
    assert len(data) == 40 and data.class_names == () and data.num_classes == 0


def test_training_samples_one_of_several_captions_and_one_pass_takes_the_first(holidays):
    data = dataset(
        DataConfig(name="holidays", data_dir=holidays, image_size=4, text=True, text_length=8)
    )
    assert data.tokenizer.vocab_size == 257
    seen = set()
    iterator = batches(data, batch_size=7, seed=0)
    for _ in range(20):
        seen |= {data.tokenizer.decode(row) for row in next(iterator)["text"]}
    assert seen == {f"{word} {i}" for word in ("view", "hill") for i in range(7)}
    (plain,) = batches(data, batch_size=7, seed=0, train=False)
    assert all(data.tokenizer.decode(row).startswith("view") for row in plain["text"])


def test_class_names_serve_as_captions_where_there_are_none(tmp_path):
    Plants(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = DataConfig(name="plants", data_dir=str(tmp_path), labels="label", text=True)
    data = dataset(config)
    assert data.image_shape == (5, 4, 3) and data.class_names == ("red_rose", "oak")
    for batch in batches(data, batch_size=2, seed=0, train=False):
        for label, text in zip(batch["label"], batch["text"], strict=True):
            assert data.tokenizer.decode(text) == data.class_names[label].replace("_", " ")
            assert text.min() == 0 and (text[text > 0] >= 257).all()


class Hidden(Plants):
    """A test split whose labels are not published: TFDS stores -1."""

    name = "hidden"

    def _generate_examples(self):
        for i in range(3):
            yield i, {"image": png(i), "label": i - 1}


def test_hidden_labels_are_no_classes(tmp_path):
    Hidden(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = dict(name="hidden", data_dir=str(tmp_path), workers=0)
    data = dataset(DataConfig(**config, labels="label"))
    read = [i for i in range(3) if data.source[i]["label"] >= 0]
    assert data.batch(read)["label"].tolist() == [data.source[i]["label"] for i in read]
    with pytest.raises(UvitError, match=r"hidden, train.*label=-1.*split.*labels=''"):
        data.batch([i for i in range(3) if i not in read])
    named = dataset(DataConfig(**config, text=True))
    with pytest.raises(UvitError, match=r"hidden, train.*class -1.*split.*text=False"):
        named.batch(range(3))


def test_errors_name_missing_features_and_splits(holidays, emoji_dir):
    with pytest.raises(UvitError, match=r"holidays has no .*'label'.*leave labels empty"):
        dataset(DataConfig(name="holidays", data_dir=holidays, labels="label"))
    with pytest.raises(UvitError, match="no class feature 'lable'; did you mean 'label'"):
        dataset(DataConfig(name="tfds:emoji", data_dir=emoji_dir, labels="lable"))
    with pytest.raises(UvitError, match="set image_size"):
        dataset(DataConfig(name="holidays", data_dir=holidays))
    with pytest.raises(UvitError, match=r"path=.*data_dir"):
        dataset(DataConfig(name="holidays", data_dir=holidays, path="/x"))
    with pytest.raises(UvitError, match=r"'tset' of holidays.* train"):
        dataset(DataConfig(name="holidays", data_dir=holidays, split="tset"))


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012", "tfds:cifar10"])
def test_what_is_not_prepared_is_not_downloaded(name, tmp_path):
    plain = name.removeprefix("tfds:")
    with pytest.raises(
        UvitError, match=f"tfds build {plain} --data_dir={tmp_path} --file_format=array_record"
    ):
        dataset(DataConfig(name=name, data_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_unknown_names_get_a_hint(tmp_path):
    for name, hint in (("cifar", "did you mean 'cifar10"), ("emojis", "did you mean 'emoji'")):
        with pytest.raises(UvitError, match=f"'{name}' is unknown; {hint}"):
            dataset(DataConfig(name=name, data_dir=str(tmp_path)))
    for name in ("qqqqqqqqqqqq", "tfds:", "a b"):
        with pytest.raises(UvitError, match="is unknown"):
            dataset(DataConfig(name=name, data_dir=str(tmp_path)))


def test_another_file_format_is_an_error(holidays, tmp_path):
    shutil.copytree(holidays, tmp_path, dirs_exist_ok=True)
    (info,) = tmp_path.glob("holidays/*/dataset_info.json")
    content = json.loads(info.read_text())
    content["fileFormat"] = "tfrecord"
    info.write_text(json.dumps(content))
    with pytest.raises(UvitError, match="not stored as array_record"):
        dataset(DataConfig(name="holidays", data_dir=str(tmp_path), image_size=4))


def test_tensorflow_is_not_needed():
    assert "tensorflow" not in sys.modules
