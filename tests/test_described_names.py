"""A described name is one token, and its description is found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax import described_names
from uvit_jax.data import pipeline
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.worlds import random_scenes
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError
from uvit_jax.tokens.modalities.text import Text
from uvit_jax.training.dropping import renamed

SIZES = (3, 2, 4)
TOKENIZER = Tokenizer(("@1", "@2", "@3", "on"), SIZES)
SEGMENT = Text(
    name="text", shape=(4,), vocab_size=270, names=(257, 258, 259), attributes=SIZES,
    encoder_depth=1, encoder_width=8,
)  # fmt: skip


def ids(text):
    return TOKENIZER.encode(text, 4)


@pytest.mark.parametrize("text", ["@1#2-1-3 on @2*", "@3#0-0-0", "on @1*"])
def test_texts_with_descriptions_are_encoded_without_loss(text):
    assert TOKENIZER.decode(ids(text)) == text
    assert (ids(text) > 0).sum() == len(text.split())
    assert ids(text).max() < SEGMENT.num_ids
    assert not TOKENIZER.unknown(text)
    assert Tokenizer.from_json(TOKENIZER.to_json()) == TOKENIZER


@pytest.mark.parametrize("word", ["@1#3-0-0", "@1#0-0", "@1#0-0-0-0"])
def test_values_that_no_attribute_has_are_an_error(word):
    with pytest.raises(UvitError, match=r"must have 3 values, each less than 3-2-4"):
        ids(word)


def test_without_attributes_a_description_is_bytes():
    plain = Tokenizer(TOKENIZER.words)
    assert plain.encode("@1*", 4).max() < plain.vocab_size
    assert "attributes" not in plain.to_json()


def test_every_value_has_a_row_of_its_own():
    seen = set()
    for code in np.ndindex(*SIZES):
        token = described_names.encode(described_names.described("@2", code), SIZES)
        values, own = described_names.rows(np.array([token]), SIZES, np)
        assert values.tolist() == [[code[0], 3 + code[1], 5 + code[2]]] and own.tolist() == [-1]
        seen |= set(values[0].tolist())
    assert seen == set(range(sum(SIZES)))
    values, own = described_names.rows(ids("@1* @3* on"), SIZES, np)
    assert (values == -1).all() and own.tolist() == [9, 11, -1, -1]


def test_a_network_reads_the_plain_name_and_adds_the_vectors_of_its_values():
    embedding = SEGMENT.embedding(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    table = np.array(embedding.described.table.embedding)
    plain = np.array(embedding(ids("@1 on @2")[None]))
    np.testing.assert_array_equal(embedding(ids("@1* on @2*")[None]), plain)
    found = np.array(embedding(ids("@1#2-1-3 on @2")[None])) - plain
    np.testing.assert_allclose(found[0, 0], table[[2, 4, 8]].sum(0), atol=1e-6)
    assert not found[0, 1:].any()
    names = SEGMENT.names_in({"text": jnp.asarray(ids("@2#0-0-0 on @1*"))[None]})
    np.testing.assert_array_equal(names[0].argmax(axis=1)[:2], [2, 0])


def test_renaming_keeps_descriptions():
    order = jnp.array([[2, 0, 1]])
    text = {"text": jnp.asarray(ids("@1#1-0-2 on @2"))[None]}
    found = renamed(order, text, {"text": SEGMENT.names})["text"][0]
    assert TOKENIZER.decode(np.array(found)) == "@3#1-0-2 on @1"


def test_training_captions_describe_the_subjects_of_a_share_of_the_scenes():
    config = DataConfig(name="totems", text=True, text_length=24, max_views=0, described=0.5)
    before = DataConfig(name="totems", text=True, text_length=24, max_views=0)
    data, plain = pipeline.dataset(config), pipeline.dataset(before)
    with_description = 0
    for i in range(200):
        record = data.source[i]
        assert record["scene"].facts == plain.source[i]["scene"].facts
        with_description += record["scene"].described
        if record["scene"].described:
            for s, one in enumerate(record["scene"].subjects, start=1):
                assert f"@{s}#{'-'.join(map(str, one.identity))}" in record["captions"][0]
            row = data.decode(record)["text"]
            found = described_names.plain(row, (257, 258, 259), np)
            np.testing.assert_array_equal(found, plain.decode(plain.source[i])["text"])
    assert 70 < with_description < 130
    scene = random_scenes.draw("totems", "train", 3, subjects=1, views=1, described=1.0)
    assert repr(scene) == repr(random_scenes.draw("totems", "train", 3, subjects=1, views=1))


def test_the_null_and_absent_descriptions_have_no_gradient():
    embedding = SEGMENT.embedding(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(embedding)

    def loss(state):
        return jnp.sum(nnx.merge(graph, state)(ids("@1 on @2*")[None]) ** 2)

    rows = jax.grad(loss)(state)["described"]["table"]["embedding"][...]
    assert np.flatnonzero(np.abs(rows).sum(axis=1)).tolist() == [10]
