"""A folder of images: order, classes, captions, errors."""

import os

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.batches import batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.vocabulary import Vocabulary
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
    with pytest.raises(UvitError, match=r"b\.jpg .*c\.webp .*; replace or remove"):
        dataset(config(tmp_path))
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.webp").unlink()
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UvitError, match=r"a\.png"):
        dataset(config(tmp_path))


def test_all_broken_files_are_named_in_the_error_or_logged(tmp_path, caplog):
    for i in range(25):
        (tmp_path / f"{i:02d}.png").write_bytes(b"not an image")
    with pytest.raises(UvitError, match=r"00\.png .*19\.png .*and 5 more") as error:
        dataset(config(tmp_path))
    assert all(f"{i:02d}.png" in f"{error.value}{caplog.text}" for i in range(25))


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
    file = tmp_path_factory.mktemp("vocabulary") / "words.json"
    file.write_text(Tokenizer(("cat", "dog")).to_json())
    data = dataset(config(folder, image_size=8, text=True, vocabulary=str(file)))
    assert data.tokenizer.words == ("cat", "dog")
    with pytest.raises(UvitError, match="cannot read the vocabulary"):
        dataset(config(folder, image_size=8, text=True, vocabulary=str(file) + "x"))


def test_each_folder_is_read_once_however_links_lead_to_it(folder):
    wanted = dataset(config(folder, image_size=8)).source.files
    (folder / "cat" / "loop").symlink_to(folder)
    (folder / "cat" / "dogs").symlink_to(folder / "dog")
    (folder / "dog" / "self").symlink_to(folder / "dog" / "self")
    assert dataset(config(folder, image_size=8)).source.files == wanted


def test_chains_of_links_end(tmp_path):
    for i in range(40):  # 2^40 paths
        (tmp_path / "real" / f"{i}").mkdir(parents=True)
        for name in "ab":
            (tmp_path / "real" / f"{i}" / name).symlink_to(tmp_path / "real" / f"{i + 1}")
    write_image(tmp_path / "real" / "39" / "x.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "real" / "0")
    data = dataset(config(tmp_path / "set", labels="label"))
    assert len(data) == 1 and data.class_names == ("cat",)


def test_linked_folders_and_files_are_read(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write_image(outside / "x.png")
    (folder / "bird").symlink_to(outside)
    (folder / "dog" / "c.png").symlink_to(outside / "x.png")
    data = dataset(config(folder, image_size=8, labels="label"))
    assert data.class_names == ("bird", "cat", "dog") and len(data) == 6


@pytest.mark.parametrize(
    "junk",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"],
)
def test_folders_of_the_system_are_no_classes(folder, junk, caplog):
    write_image(folder / junk / "x.png")
    write_image(folder / "dog" / junk.swapcase() / "x.png")
    with caplog.at_level("INFO", "uvit_jax"):
        data = dataset(config(folder, image_size=8, labels="label"))
    assert data.class_names == ("cat", "dog") and len(data) == 4
    assert "2 system folders" in caplog.text


def test_what_is_read_and_what_is_skipped_is_logged(folder, caplog):
    for name in ("dog/a.HEIC", "dog/b.heic", "cat/c.gif", "Thumbs.db", "orphan.txt", "cat/Z.md"):
        (folder / name).write_text("")
    (folder / "loop").symlink_to(folder)
    with caplog.at_level("INFO", "uvit_jax"):
        dataset(config(folder, image_size=8, text=True))
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: 4 images in 2 sub-folders, 1 with a caption file")
    for part in (
        "2 .heic files",
        "1 .gif files",
        "1 .db files",
        "2 .md files",
        "2 hidden (.thumbnails, …)",
    ):
        assert part in line
    assert "1 links to folders read already (loop)" in line
    assert "1 captions without an image (orphan.txt)" in line
    assert line.endswith("convert images to PNG, JPEG or WebP")


def test_a_folder_of_other_formats_says_which(tmp_path):
    (tmp_path / "a.HEIC").write_text("")
    with pytest.raises(UvitError, match=r"contains no images .*1 \.heic files.*convert"):
        dataset(config(tmp_path))


def test_a_folder_that_cannot_be_read_is_named(folder, caplog, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level("INFO", "uvit_jax"):
        assert len(dataset(config(folder, image_size=8))) == 3
    assert "1 folders that cannot be read (cat/deep)" in caplog.text


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".Txt", ".caption", ".CAPTION"])
def test_captions_of_any_suffix_with_or_without_a_byte_order_mark(tmp_path, suffix):
    for mark in ("", "\ufeff"):
        write_image(tmp_path / "a.JPG")
        (tmp_path / f"a{suffix}").write_text(f"{mark}A cat\r\n", encoding="utf-8")
        data = dataset(config(tmp_path, text=True))
        assert data.tokenizer.words == ("a", "cat")


def test_txt_precedes_caption(tmp_path):
    write_image(tmp_path / "a.png")
    for i, name in enumerate(("a.caption", "a.TXT", "a.txt")):
        (tmp_path / name).write_text(str(i))
        assert dataset(config(tmp_path, text=True)).source.captions == [str(i)]


def test_composed_and_decomposed_names_and_captions_are_the_same(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for i, name in enumerate((composed, decomposed)):
        write_image(tmp_path / name / f"{i}{name}.png")
        (tmp_path / name / f"{i}{(decomposed, composed)[i]}.txt").write_text(name)
    data = dataset(config(tmp_path, labels="label", text=True))
    assert data.class_names == (composed,) and data.tokenizer.words == (composed,)
    assert data.source.captions == [composed, composed]
    vocabulary = Vocabulary(data.class_names, data.tokenizer)
    for name in (composed, decomposed):
        assert vocabulary.class_id(name, 1) == 0
        assert vocabulary.encode(name, 1).tolist() == [257]


def test_old_vocabularies_with_decomposed_words_are_read():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    old = Tokenizer.from_json(Tokenizer((decomposed,)).to_json())
    assert old.encode(composed, 1).tolist() == old.encode(decomposed, 1).tolist() == [257]
    both = Tokenizer((decomposed, composed))
    assert both.encode(decomposed, 1).tolist() == [258]


def test_numbers_as_class_names_are_names(tmp_path):
    for name in ("1", "2", "10"):
        write_image(tmp_path / name / "x.png")
    data = dataset(config(tmp_path, labels="label"))
    vocabulary = Vocabulary(data.class_names)
    for name in ("1", "2", "10"):
        assert data.class_names[vocabulary.class_id(name, 3)] == name
    for wrong in ("0", 0, "3", "-1", "01"):
        with pytest.raises(UvitError, match=r"is not a class of this model.*1"):
            vocabulary.class_id(wrong, 3)
    assert Vocabulary(("cat", "dog")).class_id("1", 2) == 1
