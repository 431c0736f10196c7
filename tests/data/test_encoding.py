"""Shards appear whole or not at all, whoever writes them; what is wrong with them is told."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from tests.helpers.latent_folders import COUNT, INDEX, SHAPE, Pictures, encode, moments_of, write
from uvit_jax.data import encoding, latent_shards, record_files
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import batches, dataset
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


def test_parts_make_what_one_makes(folder, tmp_path):
    assert write(tmp_path, part=1, parts=2) == 1
    assert (
        not (tmp_path / latent_shards.INDEX).exists() and (tmp_path / latent_shards.PLAN).exists()
    )
    assert write(tmp_path, part=0, parts=2) == 2
    assert not (tmp_path / latent_shards.PLAN).exists()
    assert_same_folder(folder, tmp_path)
    assert write(tmp_path) == 0
    assert_same_folder(folder, tmp_path)


def assert_same_folder(left, right):
    files = [sorted(p.name for p in folder.iterdir()) for folder in (left, right)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_an_error_leaves_no_half_shard(folder, tmp_path):
    class Broken(Pictures):
        def decode(self, record):
            if record["example"] == 6:
                raise UvitError("the picture 6 cannot be decoded")
            return super().decode(record)

    with pytest.raises(UvitError, match="picture 6"):
        encoding.encode_dataset(tmp_path, INDEX, Broken(), encode, batch_size=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        latent_shards.PLAN,
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
    with pytest.raises(UvitError, match=r"unfinished, 1 of 3 shards") as caught:
        dataset(DataConfig(name="latents", path=str(tmp_path)))
    assert '--data.path="my pictures" --autoencoder=vae.safetensors' in str(caught.value)
    assert f"--out={tmp_path} --mirror`" in str(caught.value)


def test_another_encoding_in_the_folder_is_told(folder):
    other = dataclasses.replace(INDEX, scale=0.25, mirrored=False)
    with pytest.raises(UvitError, match=r"mirrored, scale differ; mirrored was true and is false"):
        write(folder, other)


def damage(folder, change):
    write(folder)
    file = INDEX.files(folder)[1]
    change(file)
    return file.name


def shorter(file):
    writer = record_files.array_record_module.ArrayRecordWriter(str(file), "group_size:1")
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
def test_damaged_shards_are_named(tmp_path, change, says):
    name = damage(tmp_path, change)
    with pytest.raises(UvitError, match=says) as caught:
        rows = batches(DataConfig(name="latents", path=str(tmp_path)), batch_size=COUNT, seed=0)
        list(itertools.islice(rows, 3))
    assert name in str(caught.value) and "python -m experiments.encode_latents" in str(caught.value)


def test_what_the_folder_lacks_is_told(tmp_path):
    write(tmp_path, dataclasses.replace(INDEX, mirrored=False, labels=False, captions=False))
    for key, value, says in (
        ("labels", "label", "no labels; leave labels empty"),
        ("text", True, "no captions; set text to False"),
        ("flip", True, "made without --mirror; set flip to False"),
    ):
        with pytest.raises(UvitError, match=says):
            dataset(DataConfig(name="latents", path=str(tmp_path), **{key: value}))
    with pytest.raises(UvitError, match="image_size of latents was settled"):
        DataConfig(name="latents", path=str(tmp_path), image_size=32)
    index = tmp_path / latent_shards.INDEX
    index.write_text(json.dumps({**json.loads(index.read_text()), "dtype": "int8"}))
    with pytest.raises(UvitError, match=r"index.json.*dtype must be one of float16, float32"):
        dataset(DataConfig(name="latents", path=str(tmp_path)))
    index.write_text("{")
    with pytest.raises(UvitError, match=r"cannot read .*index.json"):
        dataset(DataConfig(name="latents", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "are not finite"), (1e6, "exceed 65504, the most that float16")]
)
def test_moments_that_cannot_be_stored_are_told(tmp_path, value, says):
    index = dataclasses.replace(INDEX, dtype="float16")
    shape = (*SHAPE[:2], 2 * SHAPE[2])
    with pytest.raises(UvitError, match=says):
        encoding.encode_dataset(
            tmp_path, index, Pictures(), lambda x: np.full((len(x), *shape), value), batch_size=2
        )
