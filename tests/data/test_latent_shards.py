"""Shards are written atomically, by any number of writers; errors name the file and the command."""

import dataclasses
import itertools
import json
import shlex

import numpy as np
import pytest

from experiments.cli import literal
from tests.helpers.latent_folders import (
    COUNT,
    INDEX,
    SHAPE,
    NumberedImages,
    encode,
    moments_of,
    write,
)
from uvit_jax.data import shards
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.latent_shards import encode_images
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    assert write(folder) == 3
    return folder


def test_half_precision_rounds_to_nearest(tmp_path):
    write(tmp_path, dataclasses.replace(INDEX, dtype="float16"))
    half = dataset(DataConfig(name="latents", path=str(tmp_path)))
    for example in range(COUNT):
        wanted = moments_of(example, False).astype(np.float16)
        assert (half.source[example]["moments"] == wanted).all()


def test_parts_write_the_same_files_as_one_run(folder, tmp_path):
    assert write(tmp_path, part=1, parts=2) == 1
    assert not (tmp_path / INDEX.index_name).exists() and (tmp_path / INDEX.plan_name).exists()
    assert write(tmp_path, part=0, parts=2) == 2
    assert not (tmp_path / INDEX.plan_name).exists()
    assert_same_folder(folder, tmp_path)
    assert write(tmp_path) == 0
    assert_same_folder(folder, tmp_path)


def assert_same_folder(left, right):
    files = [sorted(p.name for p in folder.iterdir()) for folder in (left, right)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_an_error_leaves_no_half_shard(folder, tmp_path):
    class Broken(NumberedImages):
        def decode(self, record):
            if record["example"] == 6:
                raise UvitError("the image 6 cannot be decoded")
            return super().decode(record)

    with pytest.raises(UvitError, match="image 6"):
        encode_images(tmp_path, INDEX, Broken(), encode, batch_size=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        INDEX.plan_name,
        INDEX.files(tmp_path)[0].name,
    ]
    (tmp_path / f".{INDEX.files(tmp_path)[1].name}.0").write_bytes(b"of a run that was killed")
    assert write(tmp_path) == 2
    assert_same_folder(folder, tmp_path)


def test_missing_and_unfinished_latents_name_their_command(tmp_path):
    config = DataConfig(name="latents", path=str(tmp_path / "none"))
    with pytest.raises(UvitError, match=r"no latents in .*none; .*`python -m experiments.encode_l"):
        dataset(config)
    write(tmp_path, part=1, parts=2)
    with pytest.raises(UvitError, match=r"1 of 3 shards.*`python -m experiments.encode_latents"):
        dataset(DataConfig(name="latents", path=str(tmp_path)))


def test_commands_are_quoted_for_the_shell(tmp_path):
    """A command read back by the shell and the parser has the config that the index was made of."""
    source = {
        "name": "folder",
        "path": "it's $HOME; a `b` \\ c",
        "background": "#ff0000",
        "keep_labels": ["o'clock", "Zürich"],
    }
    folder = tmp_path / "my latents"
    command = INDEX.command(folder, dataclasses.replace(INDEX, source=source))
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "experiments.encode_latents"]
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[3:])
    values = {key.removeprefix("data."): literal(v) for key, v in flags.items() if "data." in key}
    assert values == source
    assert flags["out"] == str(folder) and flags["autoencoder"] == "vae.safetensors"
    assert "mirror" in flags


def test_another_encoding_in_the_folder_is_an_error(folder):
    other = dataclasses.replace(INDEX, scale=0.25, mirrored=False)
    with pytest.raises(UvitError, match=r"mirrored, scale differ; mirrored was true and is false"):
        write(folder, other)


def damage(folder, change):
    write(folder)
    file = INDEX.files(folder)[1]
    change(file)
    return file.name


def shorter(file):
    writer = shards.array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    writer.write(b"one")
    writer.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "is damaged"),
        (lambda f: f.write_bytes(b""), "is damaged"),
        (shorter, r"is damaged \(1 records, not 8\)"),
        (lambda f: f.unlink(), r"lacks latents-00001.* \(1 of 3 shards\)"),
    ],
    ids=["cut", "empty", "shorter", "gone"],
)
def test_damaged_shards_raise(tmp_path, change, says):
    name = damage(tmp_path, change)
    with pytest.raises(UvitError, match=says) as caught:
        rows = batches(DataConfig(name="latents", path=str(tmp_path)), batch_size=COUNT, seed=0)
        list(itertools.islice(rows, 3))
    assert name in str(caught.value) and "python -m experiments.encode_latents" in str(caught.value)


def test_errors_name_what_the_folder_lacks(tmp_path):
    write(tmp_path, dataclasses.replace(INDEX, mirrored=False, labels=False, captions=False))
    for key, value, says in (
        ("labels", "label", "leave labels empty"),
        ("text", True, "set text to False"),
        ("flip", True, "--mirror.*set flip=False"),
    ):
        with pytest.raises(UvitError, match=says):
            dataset(DataConfig(name="latents", path=str(tmp_path), **{key: value}))
    with pytest.raises(UvitError, match=r"image_size=32 .*set it to 0"):
        DataConfig(name="latents", path=str(tmp_path), image_size=32)
    index = tmp_path / INDEX.index_name
    index.write_text(json.dumps({**json.loads(index.read_text()), "dtype": "int8"}))
    with pytest.raises(UvitError, match=r"index.json.dtype='int8' .*float16, float32"):
        dataset(DataConfig(name="latents", path=str(tmp_path)))
    index.write_text("{")
    with pytest.raises(UvitError, match=r"cannot read .*index.json"):
        dataset(DataConfig(name="latents", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "are not finite"), (1e6, "exceed 65504.* float16")]
)
def test_moments_that_cannot_be_stored_are_an_error(tmp_path, value, says):
    index = dataclasses.replace(INDEX, dtype="float16")
    shape = (*SHAPE[:2], 2 * SHAPE[2])
    with pytest.raises(UvitError, match=says):
        encode_images(
            tmp_path,
            index,
            NumberedImages(),
            lambda x: np.full((len(x), *shape), value),
            batch_size=2,
        )
