"""A folder of images: order, classes, captions, errors."""

import os

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.batches import batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.errors import UvitError


def write_image(path, size=(12, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def config(path, **more):
    return DataConfig(name="folder", path=str(path), **more)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["dog/b.png", "dog/a.webp", "cat/deep/c.jpg", "cat/z.JPEG"]):
        write_image(tmp_path / name, seed=i)
    (tmp_path / "cat" / "z.txt").write_text("A sleeping cat.\n")
    (tmp_path / "notes.md").write_text("not an image")
    write_image(tmp_path / ".thumbnails" / "x.png")
    write_image(tmp_path / "dog" / ".hidden.png")
    return tmp_path


def test_order_classes_and_captions(folder):
    data = dataset(config(folder, image_size=8, labels="label", text=True))
    names = [data.source[i]["name"].removeprefix(f"{folder}/") for i in range(len(data))]
    assert names == ["cat/deep/c.jpg", "cat/z.JPEG", "dog/a.webp", "dog/b.png"]
    assert data.class_names == ("cat", "dog")
    rows = [data.decode(data.source[i]) for i in range(len(data))]
    assert [int(row["label"]) for row in rows] == [0, 0, 1, 1]
    texts = [data.tokenizer.decode(row["text"]) for row in rows]
    assert texts == ["cat", "a sleeping cat.", "dog", "dog"]
    assert data.tokenizer.encode("a sleeping cat.", 4).min() >= 257


def test_pixels_are_those_of_the_file(tmp_path):
    wanted = [write_image(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    data = dataset(config(tmp_path))
    assert data.image_shape == (8, 12, 3)
    for i in range(3):
        image = data.decode(data.source[i])["image"]
        assert (image == wanted[i].astype(np.float32) / 127.5 - 1).all()


def test_native_size_needs_equal_sizes_after_orientation(tmp_path):
    write_image(tmp_path / "a.png", size=(12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 12)).save(tmp_path / "b.png", exif=exif)
    assert dataset(config(tmp_path)).image_shape == (8, 12, 3)
    write_image(tmp_path / "c.png", size=(9, 9))
    with pytest.raises(UvitError, match=r"differ in size.*set image_size"):
        dataset(config(tmp_path))
    assert dataset(config(tmp_path, image_size=8)).image_shape == (8, 8, 3)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UvitError, match=r"nowhere does not exist"):
        dataset(config(tmp_path / "nowhere"))
    with pytest.raises(UvitError, match="contains no images"):
        dataset(config(tmp_path))


def test_broken_files_raise_when_the_folder_is_opened(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    (tmp_path / "c.webp").write_bytes(b"")
    with pytest.raises(UvitError, match=r"b\.jpg .*and 1 more; replace or remove"):
        dataset(config(tmp_path))
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.webp").unlink()
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UvitError, match=r"a\.png"):
        dataset(config(tmp_path))


@pytest.mark.parametrize("image_size", [0, 8])
def test_pipes_and_other_formats_raise_when_the_folder_is_opened(tmp_path, image_size):
    write_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(UvitError, match=r"b\.png \(it is not a regular file\); replace or remove"):
        dataset(config(tmp_path, image_size=image_size))
    (tmp_path / "b.png").unlink()
    data = dataset(config(tmp_path))
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UvitError, match=r"a\.png: it is not a regular file"):
        data.source[0]
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UvitError, match=r"a\.png \(No such file"):
        dataset(config(tmp_path, image_size=image_size))
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UvitError, match=r"a\.png \(it is PostScript, not PNG"):
        dataset(config(tmp_path, image_size=image_size))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_raises_in_training(tmp_path, workers):
    write_image(tmp_path / "a.jpg", size=(64, 64))
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])  # the header is intact
    iterator = batches(config(tmp_path, workers=workers), batch_size=2, seed=0)
    with pytest.raises(UvitError, match=r"a\.jpg cannot be decoded .* replace or remove"):
        next(iterator)


def test_an_image_that_disappears_raises(tmp_path):
    write_image(tmp_path / "a.png")
    data = dataset(config(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UvitError, match=r"cannot read .*a\.png"):
        next(batches(data, batch_size=1, seed=0))


def test_labels_and_text_need_something_to_come_from(folder):
    write_image(folder / "loose.png")
    with pytest.raises(UvitError, match=r"loose\.png is in no sub-folder.*1 of 5"):
        dataset(config(folder, image_size=8, labels="label"))
    with pytest.raises(UvitError, match=r"loose\.png has neither a caption file"):
        dataset(config(folder, image_size=8, text=True))
    (folder / "loose.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UvitError, match=r"cannot read the caption .*loose\.txt"):
        dataset(config(folder, image_size=8, text=True))
    (folder / "loose.txt").write_text("very " * 20)
    with pytest.raises(UvitError, match=r"text_length 16 is too small: .* 20 tokens"):
        dataset(config(folder, image_size=8, text=True))


def test_a_saved_vocabulary_is_used(folder, tmp_path_factory):
    from uvit_jax.data.tokenizer import Tokenizer

    file = tmp_path_factory.mktemp("vocabulary") / "words.json"
    file.write_text(Tokenizer(("cat", "dog")).to_json())
    data = dataset(config(folder, image_size=8, text=True, vocabulary=str(file)))
    assert data.tokenizer.words == ("cat", "dog")
    with pytest.raises(UvitError, match="cannot read the vocabulary"):
        dataset(config(folder, image_size=8, text=True, vocabulary=str(file) + "x"))
