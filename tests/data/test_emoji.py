"""The embedded emoji are as documented, and are prepared safely."""

import collections
import hashlib
import io
import subprocess
import sys
import zipfile
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.batches import batches
from uvit_jax.data.image_decoding import composite
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.data.sources import emoji
from uvit_jax.data.sources.emoji.emoji_source import EmojiSource
from uvit_jax.errors import UvitError


@pytest.fixture(scope="module")
def images() -> dict[str, Image.Image]:
    archive = zipfile.ZipFile(resources.files(emoji) / "images.zip")
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    return {
        name.removesuffix(".webp"): Image.open(io.BytesIO(archive.read(name)))
        for name in archive.namelist()
    }


def test_the_zip_is_that_of_this_version():
    from uvit_jax.data.sources.emoji.emoji_dataset_builder import IMAGES_SHA256

    data = (resources.files(emoji) / "images.zip").read_bytes()
    assert hashlib.sha256(data).hexdigest() == IMAGES_SHA256
    assert len(data) < 16e6


def test_counts_vendors_and_groups():
    index = emoji.index()
    counts = collections.Counter(record["vendor"] for record in index)
    assert counts == {"noto": 1644, "twemoji": 1644, "fluent_flat": 1587, "fluent_3d": 1599}
    assert tuple(dict.fromkeys(record["vendor"] for record in index)) == emoji.VENDORS
    assert {record["group"] for record in index} == set(emoji.GROUPS)
    concepts = {(record["code"], record["label"]) for record in index}
    assert len(concepts) == len({c for c, _ in concepts}) == len({label for _, label in concepts})


def test_index_and_zip_agree(images):
    index = emoji.index()
    assert [record["key"] for record in index] == list(images)
    assert all(record["key"] == f"{record['vendor']}/{record['code']}" for record in index)
    assert all(record["caption"] == record["caption"].lower() for record in index)


def test_images_are_64_square_with_clean_edges(images):
    for key, image in images.items():
        assert image.format == "WEBP" and image.size == (64, 64), key
        pixels = np.asarray(image.convert("RGBA"))
        assert pixels[..., 3].max() > 127, key
        assert not pixels[pixels[..., 3] == 0].any(), key


def test_splits_share_no_concept_and_no_image(images):
    sides = collections.defaultdict(set)
    for record in emoji.index():
        sides[record["code"]].add(record["split"])
        pixels = np.asarray(images[record["key"]].convert("RGBA"))
        for copy in (pixels, pixels[:, ::-1]):
            over_white = composite(copy, (255, 255, 255))
            sides[hashlib.sha256(over_white.tobytes()).digest()].add(record["split"])
    assert all(len(splits) == 1 for splits in sides.values())
    shares = collections.Counter(r["split"] for r in emoji.index())
    assert 0.03 < shares["test"] / (shares["test"] + shares["train"]) < 0.07
    groups = {record["group"] for record in emoji.index() if record["split"] == "test"}
    assert groups == set(emoji.GROUPS)


def test_captions_are_known_words_in_every_subset(data_dir):
    full = dataset(DataConfig(data_dir=data_dir, text=True))
    for record in emoji.index():
        ids = full.tokenizer.encode(record["caption"], full.config.text_length)
        assert (ids[ids > 0] >= 257).all()
    part = dataset(
        DataConfig(data_dir=data_dir, text=True, split="test", keep_groups=("food-drink",))
    )
    assert part.tokenizer == full.tokenizer


def test_records_are_the_images(data_dir, images):
    entries = {record["key"]: record for record in emoji.index()}
    total = 0
    for split in ("train", "test"):
        data = dataset(DataConfig(data_dir=data_dir, labels="vendor", split=split))
        assert data.class_names == emoji.VENDORS and data.image_shape == (64, 64, 3)
        total += len(data)
        for i in range(0, len(data), 50):
            record = data.source[i]
            entry = entries[record["key"]]
            assert entry["split"] == split and record["captions"] == (entry["caption"],)
            assert emoji.VENDORS[record["label"]] == entry["vendor"] == record["vendor"]
            pixels = np.asarray(images[record["key"]].convert("RGBA"))
            over_white = composite(pixels, (255, 255, 255)).astype(np.float32) / 127.5 - 1
            assert (data.decode(record)["image"] == over_white).all()
    assert total == len(entries)


def test_filters_and_compact_classes(data_dir):
    keep = {
        "keep_groups": ("food-drink", "animals-nature"),
        "keep_vendors": ("fluent_3d", "noto"),
    }
    sizes, names = 0, set()
    for split in ("train", "test"):
        data = dataset(DataConfig(data_dir=data_dir, split=split, labels="group", **keep))
        assert data.class_names == ("animals-nature", "food-drink")
        names.add(
            dataset(
                DataConfig(data_dir=data_dir, split=split, labels="subgroup", **keep)
            ).class_names
        )
        for i in range(len(data)):
            record = data.source[i]
            assert record["vendor"] in keep["keep_vendors"]
            assert data.class_names[record["label"]] == record["group"]
        sizes += len(data)
    wanted = [
        r
        for r in emoji.index()
        if r["vendor"] in keep["keep_vendors"] and r["group"] in keep["keep_groups"]
    ]
    assert sizes == len(wanted)
    assert names == {tuple(sorted({r["subgroup"] for r in wanted}))}
    one = dataset(DataConfig(data_dir=data_dir, keep_labels=("red heart",)))
    assert {one.source[i]["concept"] for i in range(len(one))} == {"red heart"}


def test_errors_of_filters_name_the_key_and_the_nearest_value(data_dir):
    for key, value, hint in (
        ("keep_vendors", "notto", "did you mean 'noto'"),
        ("keep_groups", "foods-drink", "did you mean 'food-drink'"),
        ("keep_labels", "grining face", "did you mean 'grinning face'"),
        ("keep_labels", "zzzzzz", "'zzzzzz' is unknown"),
    ):
        with pytest.raises(UvitError, match=f"{key}: .*{hint}"):
            dataset(DataConfig(data_dir=data_dir, **{key: (value,)}))
    with pytest.raises(UvitError, match=r"split 'test' .*keep_ filters"):
        held_in = next(r["label"] for r in emoji.index() if r["split"] == "train")
        dataset(DataConfig(data_dir=data_dir, split="test", keep_labels=(held_in,)))
    with pytest.raises(UvitError, match=r"'val' of emoji.* train, test"):
        dataset(DataConfig(data_dir=data_dir, split="val"))


def test_background_and_grey(data_dir):
    dark = dataset(DataConfig(data_dir=data_dir, background="#102030", image_size=32, channels=1))
    batch = next(batches(dark, batch_size=16, seed=0))
    assert batch["image"].shape == (16, 32, 32, 1)
    coloured = dataset(DataConfig(data_dir=data_dir, background="#102030"))
    corners = [coloured.decode(coloured.source[i])["image"][0, 0] for i in range(200)]
    behind = np.array([0x10, 0x20, 0x30], np.float32) / 127.5 - 1
    assert sum((corner == behind).all() for corner in corners) > 100


def test_two_processes_prepare_at_once(tmp_path):
    code = (
        "import sys; from uvit_jax.data.sources.emoji.prepared import builder; "
        "print(len(builder(sys.argv[1]).as_data_source(split='train')))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=-1, stderr=-1, text=True
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == ["6149", "6149"]
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]
    assert len(list((tmp_path / "emoji").iterdir())) == 1


def test_a_failed_preparation_leaves_no_files(tmp_path, monkeypatch):
    from uvit_jax.data.sources.emoji import prepared

    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UvitError, match=r"cannot prepare .* set data_dir to"):
        prepared.builder(str(file))
    with pytest.raises(UvitError, match=r"data_dir='gs://bucket/data' .*local disk"):
        prepared.builder("gs://bucket/data")
    # As if the machine had stopped while someone copied the set here by hand.
    (tmp_path / "emoji" / "1.0.0").mkdir(parents=True)
    (tmp_path / "emoji" / "1.0.0" / "part").write_text("")
    few = [record for split in ("train", "test") for record in _some(split, 20)]
    monkeypatch.setattr(emoji, "index", lambda: few)
    with pytest.raises(UvitError, match=r"cannot prepare .* delete that folder"):
        prepared.builder(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji", "file"]


def _some(split: str, count: int) -> list[dict]:
    return [record for record in emoji.index() if record["split"] == split][:count]


def test_held_out_images_are_of_known_concepts_and_a_known_vendor():
    filters = dict(keep_vendors=("twemoji", "noto"), keep_groups=("smileys-emotion",))
    everything = EmojiSource(DataConfig(**filters))
    parts = {
        split: EmojiSource(DataConfig(split=split, hold_out="noto", **filters))
        for split in ("train", "held_out", "test")
    }

    def keys(source):
        return {source[i]["key"] for i in range(len(source))}

    train, held_out = keys(parts["train"]), keys(parts["held_out"])
    assert not train & held_out and train | held_out == keys(everything)
    assert 0.1 < len(held_out) / (len(everything) / 2) < 0.3
    assert {key.split("/")[0] for key in held_out} == {"noto"}
    assert {key.replace("noto", "twemoji") for key in held_out} <= train
    assert keys(parts["test"]) == keys(EmojiSource(DataConfig(split="test", **filters)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(hold_out="nota"), "hold_out='nota'.*did you mean 'noto'"),
        (dict(hold_out="noto", name="cifar10"), r"hold_out.*name='cifar10'.*hold_out=''"),
        (dict(split="held_out"), "needs hold_out, the vendor"),
    ],
)
def test_impossible_held_out_images_are_refused(keys, message):
    with pytest.raises(UvitError, match=message):
        EmojiSource(DataConfig(**keys))
