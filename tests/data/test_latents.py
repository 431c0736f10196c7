"""Latents are sampled anew at every step, as reproducibly as the rest of a batch."""

import dataclasses
import itertools
import json
import pickle
import shlex
import shutil

import numpy as np
import pytest

from tests.helpers.latent_folders import COUNT, INDEX, SHAPE, NumberedImages, moments_of, write
from tests.sampling.test_conditions import model
from uvit_jax.data.batches import batches, random_bits
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.latent_shards import encode_images
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.sources.latents import LOGVAR_RANGE
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.sampling.conditions import conditions_like


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    assert write(folder) == 3
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return DataConfig(
        name="latents", path=str(folder), labels="label", text=True, text_length=24, flip=True
    )


@pytest.fixture(scope="module")
def data(config):
    return dataset(config)


def take(data, count, **arguments):
    return list(itertools.islice(batches(data, **{"seed": 0, **arguments}), count))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype and (a[key] == b[key]).all(), key


def test_what_was_encoded_is_what_is_read(data):
    assert len(data) == len(data.source) == COUNT
    assert data.image_shape == SHAPE and data.class_names == ("a", "b", "c")
    for example in range(COUNT):
        record = data.source[example]
        assert (record["moments"] == moments_of(example, False)).all()
        assert (record["mirrored"] == moments_of(example, True)).all()
        assert record["label"] == example % 3
        assert record["captions"] == (f"number {example}", f"the number {example}")


def test_shapes_and_dtypes(data):
    described = {k: (v.shape, v.dtype.name) for k, v in take(data, 1, batch_size=8)[0].items()}
    assert described == {
        "image": ((8, *SHAPE), "float32"),
        "label": ((8,), "int32"),
        "text": ((8, 24), "int32"),
        "index": ((8,), "int64"),
    }


@pytest.mark.parametrize("label", [-1, 3, -(2**31)])
def test_labels_that_are_no_classes_are_refused(tmp_path, monkeypatch, label):
    images = NumberedImages.__getitem__

    def labelled(self, example):
        return images(self, example) | ({"label": label} if example == 7 else {})

    monkeypatch.setattr(NumberedImages, "__getitem__", labelled)
    write(tmp_path)
    data = dataset(DataConfig(name="latents", path=str(tmp_path), labels="label"))
    assert data.batch([6, 8], [1, 2])["label"].tolist() == [0, 2]
    for read in (
        lambda: data.batch([6, 7, 8], [1, 2, 3]),
        lambda: data.decode(data.source[7]),
        lambda: conditions_like(model(num_classes=3), data, Vocabulary(), COUNT, seed=0),
    ):
        with pytest.raises(UvitError, match=rf"number 7 has label={label}.*class_names"):
            read()
    unlabelled = dataset(DataConfig(name="latents", path=str(tmp_path)))
    assert "label" not in unlabelled.batch([7])


def test_examples_are_not_counted_from_the_end(data):
    for example in (-1, COUNT, -COUNT - 1):
        with pytest.raises(UvitError, match=rf"no example {example} .*0 to {COUNT - 1}"):
            data.batch([example])
        with pytest.raises(UvitError, match=f"no example {example} "):
            data.caption(example)


def test_rows_are_samples_of_either_copy(data):
    """Each row's noise, got back from its moments, is standard normal and never the same."""
    noise, mirrored, second, indices = [], 0, 0, []
    for batch in take(data, 16, batch_size=32):
        for image, label, text, index in zip(
            *(batch[k] for k in ("image", "label", "text", "index")), strict=True
        ):
            fits = []
            for copy in (False, True):
                mean, logvar = np.split(moments_of(int(index), copy).astype(float), 2, axis=-1)
                fits.append((image / INDEX.scale - mean) / np.exp(logvar / 2))
            # The wrong copy's noise would be larger.
            best = int(np.abs(fits[1]).mean() < np.abs(fits[0]).mean())
            mirrored += best
            noise.append(fits[best])
            indices.append(int(index))
            assert label == index % 3
            words = data.tokenizer.decode(text)
            assert words in (f"number {index}", f"the number {index}")
            second += words.startswith("the")
    count = len(noise)
    for share in (mirrored, second):
        assert abs(share - count / 2) < 5 * np.sqrt(count / 4) + 0.01 * count
    flat = np.stack(noise).reshape(count, -1)
    assert len(np.unique(flat[:, 0])) == count
    assert abs(flat.mean()) < 0.04 and abs(flat.var() - 1) < 0.06
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 6 / np.sqrt(count)


def many_samples(data, example, count):
    """float64 (count, h, w, C): samples of one latent, as `count` positions would have them."""
    bits = [random_bits(example, position) for position in range(count)]
    return data.batch([example] * count, bits)["image"].astype(float) / INDEX.scale


def test_a_latents_mean_and_variance_are_its_moments(config):
    data, count = dataset(dataclasses.replace(config, flip=False)), 2000
    for example in range(COUNT):
        samples = many_samples(data, example, count)
        mean, logvar = np.split(moments_of(example, False).astype(float), 2, axis=-1)
        std = np.exp(logvar / 2)
        assert np.all(np.abs(samples.mean(0) - mean) < 5 * std / count**0.5)
        assert np.all(np.abs(samples.var(0) / std**2 - 1) < 6 * (2 / count) ** 0.5)


def test_log_variances_are_clamped(tmp_path):
    extreme = np.zeros((*SHAPE[:2], 2 * SHAPE[2]), np.float32)
    extreme[..., 4:] = [-400, 400, -31, 21]
    index = dataclasses.replace(INDEX, mirrored=False, dtype="float16")
    encode_images(
        tmp_path, index, NumberedImages(), lambda x: np.stack([extreme] * len(x)), batch_size=4
    )
    data = dataset(DataConfig(name="latents", path=str(tmp_path)))
    wanted = np.exp(np.array([LOGVAR_RANGE[i] for i in (0, 1, 0, 1)]) / 2)
    assert np.allclose(many_samples(data, 5, 2000).std(axis=(0, 1, 2)), wanted, rtol=0.03)


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_hosts_divide_the_same_global_batches(data, hosts, train):
    whole = take(data, 7, batch_size=8, train=train)
    parts = [
        take(data, 7, batch_size=8, train=train, rows=range(first, first + 8 // hosts))
        for first in range(0, 8, 8 // hosts)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("workers", [0, 3])
def test_resuming_is_exact_and_seeds_differ(config, workers):
    data = dataset(dataclasses.replace(config, workers=workers))
    whole = take(data, 9, batch_size=5)
    assert_same(whole[4:], take(data, 5, batch_size=5, start=4))
    other = take(data, 9, batch_size=5, seed=1)
    assert all((a["image"] != b["image"]).all() for a, b in zip(whole, other, strict=True))


def test_a_pickled_copy_yields_the_same_batches(data):
    copy = pickle.loads(pickle.dumps(data))
    assert_same(take(data, 3, batch_size=8), take(copy, 3, batch_size=8))


def test_one_pass_without_training_gives_the_means(data):
    got = list(batches(data, batch_size=8, seed=0, train=False))
    assert np.concatenate([b["index"] for b in got]).tolist() == [*range(COUNT)] + [-1] * 5
    for batch in got:
        for image, text, index in zip(*(batch[k] for k in ("image", "text", "index")), strict=True):
            if index < 0:  # the filling of the last batch
                continue
            row = data.decode(data.source[int(index)])
            mean = moments_of(int(index), False)[..., :4] * np.float32(0.5)
            assert (image == row["image"]).all() and (image == mean).all()
            assert (text == row["text"]).all()


@pytest.mark.parametrize(
    "key, value",
    [
        ("shape", [2, 3, 4000]),
        ("shape", [10**9, 10**9, 4]),
        ("shape", [2, 3]),
        ("count", 10**12),
        ("count", 0),
        ("shard_size", 10**400),
        ("scale", float("nan")),
        ("autoencoder", {}),
        ("autoencoder", {"file": "x", "config": 3}),
        ("autoencoder", []),
        ("words", ["two words"]),
        ("words", 3),
        ("dtype", "float8"),
        ("class_names", {"a": 1}),
    ],
)
def test_a_damaged_index_is_refused_in_a_line(folder, tmp_path, key, value):
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UvitError) as caught:
        dataset(DataConfig(name="latents", path=str(tmp_path / "copy"), text=True)).batch([0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 10**5, "9" * 10**4, "", "3", '"x"', "{}", "\ufeff{}"])
def test_an_index_that_is_no_index_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UvitError) as caught:
        dataset(DataConfig(name="latents", path=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tail", [b"", b"[", b"3", b"[3]", b"\xff", b"[" * 10**5])
def test_damaged_captions_name_the_shard_and_a_command_for_the_shell(tmp_path, monkeypatch, tail):
    path = tmp_path / "it's latents; rm -rf x"
    write(path)
    data = dataset(DataConfig(name="latents", path=str(path), text=True))
    read = data.source.read_record
    size = 2 * 2 * 3 * 4 * 4 + 4
    monkeypatch.setattr(data.source, "read_record", lambda *at: read(*at)[:size] + tail)
    for call in (lambda: data.batch([5]), lambda: data.source[5], lambda: data.caption(5)):
        with pytest.raises(
            UvitError, match=r"latents-00001-of-00003\.array_record is damaged"
        ) as e:
            call()
        command = shlex.split(str(e.value).split("`")[1])
        assert f"--out={path}" in command and "--data.path=my images" in command
    monkeypatch.setattr(data.source, "read_record", lambda *at: read(*at)[: size - 1])
    with pytest.raises(UvitError, match="is too short"):
        data.batch([5])
