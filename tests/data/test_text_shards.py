"""Text features: a record per caption, one of an example's captions at every step."""

import dataclasses
import itertools
import pickle
import types

import numpy as np
import pytest

import uvit_jax
from tests.helpers.latent_folders import COUNT, INDEX, NumberedImages, write
from uvit_jax.data import text_shards
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.latent_shards import encode_images
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.sampling.conditions import conditions_like

SHAPE = (3, 5)


def encode(texts):
    """Features that are a function of the text alone, exact in half precision."""
    rows = [np.random.default_rng(list(t.encode())).integers(-99, 99, SHAPE) for t in texts]
    return np.stack(rows).astype(np.float32)


def make(folder, function=encode, null=encode, **options):
    latents = dataset(DataConfig(name="latents", path=str(folder)))
    shared = dict(shape=SHAPE, dtype="float16", shard_size=4, encoder={"sha256": "abc"})
    index = text_shards.make_index(latents.index, null, **shared)
    options = dict(batch_size=3) | options
    return text_shards.encode_captions(folder, index, latents.source, function, **options)


class CaptionedImages(NumberedImages):
    """Images of which number i has i % 3 captions."""

    def __getitem__(self, example):
        record = super().__getitem__(example)
        return record | {"captions": tuple(f"{example} {k}" for k in range(example % 3))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    moments = np.zeros((3, *INDEX.shape[:2], 2 * INDEX.shape[2]), np.float32)
    encode_images(folder, INDEX, CaptionedImages(), lambda images: moments, batch_size=3)
    assert make(folder) == 3
    return dataset(DataConfig(name="latents", path=str(folder), features=True, workers=0))


def test_every_caption_has_its_record(data):
    for example in range(COUNT):
        count = example % 3
        for number in range(4):
            text = f"{example} {number % count}" if count else ""
            assert np.array_equal(data.feature(example, number), encode([text])[0])
            assert data.caption(example, number) == text
    assert np.array_equal(data.features.null, encode([""])[0]) and data.features.encoder == "abc"
    row = data.decode(data.source[5])
    assert np.array_equal(row["text"], encode(["5 0"])[0])


def test_one_of_several_is_chosen_at_every_step_on_any_host(data):
    def take(source, **options):
        found = batches(source, batch_size=8, seed=3, **options)
        return list(itertools.islice(found, 12))

    whole, copy = take(data), take(pickle.loads(pickle.dumps(data)))
    halves = [take(data, rows=rows) for rows in (range(4), range(4, 8))]
    seen = set()
    for batch, again, *parts in zip(whole, copy, *halves, strict=True):
        assert batch["text"].dtype == np.float32
        assert np.array_equal(batch["text"], again["text"])
        assert np.array_equal(batch["text"], np.concatenate([p["text"] for p in parts]))
        for index, text in zip(batch["index"].tolist(), batch["text"], strict=True):
            wanted = encode([f"{index} {k}" for k in range(index % 3)] or [""])
            (number,) = [k for k, features in enumerate(wanted) if np.array_equal(features, text)]
            seen.add((index, number))
    assert {(i, k) for i in range(COUNT) for k in range(max(1, i % 3))} == seen


def test_a_failure_leaves_complete_shards_only(tmp_path):
    write(tmp_path)
    calls = itertools.count()

    def failing(texts):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, failing)
    files = sorted(p.name for p in tmp_path.iterdir() if "text" in p.name)
    assert files == ["text-00000-of-00003.array_record", text_shards.TextIndex.plan_name]
    assert make(tmp_path) == 2 and make(tmp_path) == 0
    with pytest.raises(UvitError, match=r"features of 'number 0' .* finite in float16"):
        (tmp_path / files[0]).unlink()
        make(tmp_path, lambda texts: encode(texts) * np.nan)


def test_hosts_that_round_differently_share_the_work(tmp_path):
    write(tmp_path)
    assert make(tmp_path, part=0, parts=2) == 2
    with pytest.raises(UvitError, match="another encoding"):
        make(tmp_path, null=lambda texts: encode(texts) + 30)
    assert make(tmp_path, null=lambda texts: encode(texts) + 0.1, part=1, parts=2) == 1
    data = dataset(DataConfig(name="latents", path=str(tmp_path), features=True, workers=0))
    assert np.array_equal(data.features.null, encode([""])[0])  # those of the first writer


def test_conditions_are_read_lazily_and_follow_the_data(data):
    image = dict(kind="patches", role="noisy", shape=(2, 2, 4))
    text, time = dict(kind="features", shape=SHAPE), dict(kind="time", time="image")
    model = uvit_jax.build(
        dict(
            sequence=("text", "time", "image"),
            segments=dict(text=text, time=time, image=image),
            backbone=dict(width=16, depth=2, num_heads=2),
        )
    )
    vocabulary = Vocabulary.from_json(Vocabulary(features=data.features).to_json())
    found = conditions_like(model, data, vocabulary, 2 * COUNT, seed=0)["text"]
    rows, texts = found[np.arange(2 * COUNT)], found.captions()
    assert np.array_equal(rows, encode(texts))
    assert sorted(t.split(" ")[0] for t in texts if t) == sorted(
        2 * [str(i) for i in range(COUNT) if i % 3]
    )
    null = model.layout.null("text", 2, vocabulary.null_features)
    assert np.array_equal(null, np.stack(2 * [encode([""])[0]]))
    with pytest.raises(UvitError, match=r"'text'.*null.*latents"):
        model.layout.null("text", 2, Vocabulary().null_features)
    with pytest.raises(UvitError, match=r"config\.data\.features=True"):
        conditions_like(model, types.SimpleNamespace(features=None), vocabulary, 4, seed=0)


def test_only_latents_have_features():
    with pytest.raises(UvitError, match="features=True needs name='latents'"):
        DataConfig(features=True)
    config = DataConfig(name="latents", path="x", features=True)
    with pytest.raises(UvitError, match=r"text and features.*only one"):
        dataclasses.replace(config, text=True)
