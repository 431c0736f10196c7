"""Nothing is lost, known words are one token, and the vocabulary is a function of the captions."""

import random

import numpy as np
import pytest

from uvit_jax.data.tokenizer import Tokenizer, normalise
from uvit_jax.errors import UvitError

WORDS = ("face", "grinning", ",", "twemoji", "o'clock")


def random_texts(count: int):
    draw = random.Random(0)
    parts = [
        *WORDS,
        " ",
        "  ",
        " ,",
        ", ",
        ".",
        "\n",
        "\t",
        "\x00",
        "İ",
        "ß",
        "👩‍💻",
        "\ud800",
        "FACE",
    ]
    for _ in range(count):
        yield "".join(
            chr(draw.randrange(0x110000)) if draw.random() < 0.4 else draw.choice(parts)
            for _ in range(draw.randrange(12))
        )


@pytest.mark.parametrize("words", [(), WORDS])
def test_decoding_gives_back_any_normalised_text(words):
    tokenizer = Tokenizer(words)
    for text in random_texts(3000):
        ids = tokenizer.encode(text, 400)
        assert tokenizer.decode(ids) == normalise(text)
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size


def test_different_texts_have_different_ids():
    tokenizer = Tokenizer(WORDS)
    texts = {normalise(text) for text in random_texts(3000)}
    assert len({tokenizer.encode(text, 400).tobytes() for text in texts}) == len(texts)


def test_a_known_word_is_one_id_and_an_unknown_one_its_bytes():
    tokenizer = Tokenizer(WORDS)
    ids = tokenizer.encode("Grinning  FACE, twemoji", 6)
    assert ids.tolist() == [257 + WORDS.index(w) for w in ("grinning", "face", ",", "twemoji")] + [
        0,
        0,
    ]
    assert tokenizer.encode("né", 4).tolist() == [b + 1 for b in "né".encode()] + [0]
    assert tokenizer.encode("face x", 3).tolist() == [257, 1 + ord(" "), 1 + ord("x")]


def test_the_ids_of_the_empty_text_are_all_padding():
    assert Tokenizer(WORDS).encode(" \n", 5).tolist() == [0] * 5


def test_too_long_is_an_error_or_a_prefix():
    tokenizer = Tokenizer(WORDS)
    with pytest.raises(UvitError, match=r"'face face face' .*3 .*2"):
        tokenizer.encode("face face face", 2)
    whole = tokenizer.encode("face, héé", 40)
    for length in range(1, 12):
        cut = tokenizer.encode("face, héé", length, truncate=True)
        assert (cut == whole[:length]).all()
        tokenizer.decode(cut)  # half a character is no error


def test_vocabulary_is_by_frequency_then_alphabet_whatever_the_order():
    captions = ["b a", "a, c", "c b", "a"]
    tokenizer = Tokenizer.from_captions(captions)
    assert tokenizer.words == ("a", "b", "c", ",")
    assert Tokenizer.from_captions(reversed(captions)) == tokenizer
    assert Tokenizer.from_captions(captions, max_words=2).words == ("a", "b")
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer


def test_vocabulary_from_random_texts_covers_them():
    texts = list(random_texts(300))
    tokenizer = Tokenizer.from_captions(texts, max_words=10**6)
    assert all(tokenizer.decode(tokenizer.encode(t, 400)) == normalise(t) for t in texts)


@pytest.mark.parametrize("word", ["", "a b", "A", ",a", "a,", ",.", " a"])
def test_words_that_cannot_match_are_rejected(word):
    with pytest.raises(UvitError, match="cannot be a word"):
        Tokenizer((word,))


def test_errors_name_the_word_or_form():
    with pytest.raises(UvitError, match=r"'a'.* twice"):
        Tokenizer(("a", "b", "a"))
    with pytest.raises(UvitError, match="outside the vocabulary of 257"):
        Tokenizer().decode([257])
    for text in ("", "[]", "{}", '{"words": "ab"}', '{"words": [1]}'):
        with pytest.raises(UvitError, match=r'\{"words": '):
            Tokenizer.from_json(text)
