"""Tar files as a data source: examples by key, in any order, nothing unpacked."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError


def image(value, size=(8, 8), kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, kind)
    return stream.getvalue()


def write(path, files, mode="w"):
    """A tar of {name: bytes}."""
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def config(path, **more):
    return DataConfig(name="webdataset", path=str(path), workers=0, **{"image_size": 8, **more})


@pytest.fixture
def folder(tmp_path):
    write(
        tmp_path / "000.tar",
        [
            ("a/0.png", image(0)),
            ("a/0.txt", b"one"),
            ("a/0.cls", b"2\n"),
            ("a/1.json", json.dumps({"caption": "two", "key": "1"}).encode()),
            ("a/1.JPG", image(85, (12, 8), "JPEG")),
            ("a/1.cls", b"0"),
            ("alone.txt", b"no image"),
        ],
    )
    write(
        tmp_path / "001.tar",
        [("0.png", image(255)), ("0.seg.png", image(9)), ("0.txt", b"x"), ("0.cls", b"1")],
    )
    return tmp_path


def test_examples_are_files_of_one_key_in_any_order(folder):
    data = pickle.loads(pickle.dumps(dataset(config(folder, text=True, labels="label"))))
    assert len(data) == 3 and data.class_names == ("0", "1", "2")
    batch = data.batch([2, 0, 1, 2])
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], [1, -1, -1 / 3, 1], atol=0.02)
    assert batch["label"].tolist() == [1, 2, 0, 1]
    assert [data.tokenizer.decode(t) for t in batch["text"]] == ["x", "one", "two", "x"]
    one = dataset(config(folder / "001.tar"))
    assert len(one) == 1 and one.source[0]["name"] == f"0.png in {folder / '001.tar'}"


def test_images_of_several_sizes_have_buckets(folder):
    data = dataset(config(folder, image_size=0, sizes=((8, 8), (8, 12))))
    assert data.buckets.tolist() == [0, 1, 0]
    assert data.batch([1])["image"].shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    "files, more, message",
    [
        ([("0.txt", b"x")], {}, "no images"),
        ([("0.png", image(0))], dict(text=True), r"0\.png .*no caption.*text=False"),
        ([("0.png", image(0)), ("0.json", b"{")], dict(text=True), r"caption of 0\.png .*cannot"),
        ([("0.png", image(0)), ("0.cls", b"cat")], dict(labels="label"), r"0\.png .*no class"),
        ([("0.png", image(0))], dict(split="test"), "only the split 'train'"),
    ],
)
def test_what_is_missing_is_named(tmp_path, files, more, message):
    write(tmp_path / "x.tar", files)
    with pytest.raises(UvitError, match=message):
        dataset(config(tmp_path, **more))


def test_broken_files_are_named(folder, tmp_path):
    write(tmp_path / "x.tar", [("0.png", image(0)[:40])])
    with pytest.raises(UvitError, match=r"0\.png in .*x\.tar cannot be decoded"):
        dataset(config(tmp_path / "x.tar")).batch([0])
    data = dataset(config(folder / "000.tar"))
    (folder / "000.tar").write_bytes((folder / "000.tar").read_bytes()[:540])
    with pytest.raises(UvitError, match=r"a/0\.png in .*000\.tar .*shorter"):
        data.batch([0])
    with pytest.raises(UvitError, match=r"000\.tar cannot be read.*repair or remove"):
        dataset(config(folder))
    compressed = write(tmp_path / "z.tar", [("0.png", image(0))], mode="w:gz")
    with pytest.raises(UvitError, match=r"z\.tar cannot be read.*compressed"):
        dataset(config(compressed))
    with pytest.raises(UvitError, match=r"no files NAME\.tar"):
        (tmp_path / "none").mkdir()
        dataset(config(tmp_path / "none"))


def test_links_and_devices_in_a_tar_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("0.png", tarfile.SYMTYPE), ("1.png", tarfile.CHRTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    with pytest.raises(UvitError, match="no images"):
        dataset(config(tmp_path))
