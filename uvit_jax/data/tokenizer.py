"""Text as token ids: whole words where they are known, raw bytes where they are not.

Ids: 0 is padding, 1 to 256 are the bytes 0 to 255 of UTF-8, 257 and up are the known words. Words
are separated by spaces and closing punctuation, and `,.;:!?)` are words themselves. Encoding loses
nothing but case, spacing and Unicode form: `decode(encode(text, length)) == normalise(text)`.

The null text of classifier-free guidance is the empty text, whose ids are all padding.
"""

import collections
import json
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from uvit_jax import described_names
from uvit_jax.errors import UvitError

PADDING = 0
_FIRST_WORD = 257
_CLOSING = ",.;:!?)"
# A piece carries the space before it, if any; " " alone remains where two punctuations meet.
_PIECE = re.compile(rf" ?[^ {re.escape(_CLOSING)}]+|[{re.escape(_CLOSING)}]| ")


def normalise(text: str) -> str:
    """Lower case, Unicode NFC, single spaces, none at the ends; characters outside UTF-8 become
    `?`."""
    text = text.encode("utf-8", "replace").decode("utf-8").lower()
    return " ".join(unicodedata.normalize("NFC", text).split())


class Tokenizer:
    """Encodes and decodes with a fixed vocabulary of known words.

    Args:
      words: the known words; word number i has id 257 + i. A word has no spaces, is lower-case, and
        is either one of `,.;:!?)` or free of them.
      attributes: how many values each attribute of a subject has, for captions with described names
        (`uvit_jax.described_names`), whose ids are beyond `vocab_size`; empty for none.

    Raises:
      UvitError: if a word cannot occur in a normalised text, or is given twice.
    """

    def __init__(self, words: tuple[str, ...] = (), attributes: tuple[int, ...] = ()):
        # Older vocabularies may have a word in two Unicode forms; NFC takes precedence.
        self.words, self.attributes = tuple(words), tuple(attributes)
        self._ids: dict[str, int] = {}
        for i, word in enumerate(words):
            piece = unicodedata.normalize("NFC", _piece(word))
            if _pieces("a" + piece) != [" a", piece]:
                raise UvitError(f"{word!r} cannot be a word of the tokenizer: no text contains it")
            if piece not in self._ids or piece == _piece(word):
                self._ids[piece] = _FIRST_WORD + i
        if len(set(words)) != len(words):
            twice = collections.Counter(words).most_common(1)[0][0]
            raise UvitError(f"the word {twice!r} is given twice to the tokenizer")

    @property
    def vocab_size(self) -> int:
        """The number of ids, padding and bytes included."""
        return _FIRST_WORD + len(self.words)

    def encode(self, text: str, length: int, *, truncate: bool = False) -> np.ndarray:
        """The ids of `text`, padded with zeros: int32 (length,), values in [0, vocab_size).

        Raises:
          UvitError: if the text needs more than `length` tokens, unless `truncate`, which drops
            the rest.
        """
        ids = []
        for piece in _pieces(text):
            known = self._id(piece)
            ids.extend([known] if known else (byte + 1 for byte in piece.encode("utf-8")))
        if ids and ids[0] == 1 + ord(" "):
            del ids[0]  # the space before a first word that is encoded as bytes
        if len(ids) > length and not truncate:
            raise UvitError(
                f"the text {_shorten(text)!r} has {len(ids)} tokens and the limit is {length}; "
                f"shorten it (a word not in the vocabulary is one token per byte)"
            )
        row = np.full((length,), PADDING, np.int32)
        row[: min(len(ids), length)] = ids[:length]
        return row

    def decode(self, ids) -> str:
        """The text of a row of ids; padding is skipped.

        Raises:
          UvitError: on an id outside the vocabulary.
        """
        pieces = []
        for token in map(int, ids):
            if self.attributes and (
                described_names.FIRST <= token < described_names.num_ids(self.attributes)
            ):
                pieces.append(_piece(described_names.decode(token, self.attributes)).encode())
                continue
            if not 0 <= token < self.vocab_size:
                raise UvitError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
            if token >= _FIRST_WORD:
                pieces.append(_piece(self.words[token - _FIRST_WORD]).encode("utf-8"))
            elif token != PADDING:
                pieces.append(bytes([token - 1]))
        # Truncation can cut a character in two.
        return b"".join(pieces).decode("utf-8", "replace").removeprefix(" ")

    def unknown(self, text: str) -> list[str]:
        """The words of `text` that are not in the vocabulary, and are encoded as bytes."""
        pieces = (piece for piece in _pieces(text) if piece.strip())
        return [piece.strip() for piece in pieces if self._id(piece) is None]

    def to_json(self) -> str:
        """The words as JSON, in the order of their ids."""
        attributes = {"attributes": self.attributes} if self.attributes else {}
        return json.dumps({"words": self.words} | attributes, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The inverse of `to_json`.

        Raises:
          UvitError: if `text` has another form.
        """
        try:
            found = json.loads(text)
            words, attributes = found["words"], found.get("attributes", [])
            for values, kind in ((words, str), (attributes, int)):
                if not (isinstance(values, list) and all(isinstance(v, kind) for v in values)):
                    raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UvitError('a tokenizer must be JSON of the form {"words": ["a", "b"]}') from None
        return cls(tuple(words), tuple(attributes))

    @classmethod
    def from_captions(cls, captions: Iterable[str], max_words: int = 4096) -> "Tokenizer":
        """The `max_words` most frequent words of the captions; ties go alphabetically."""
        counts = collections.Counter()
        for caption in captions:
            # Only pieces that `encode` looks up as words; the rest is encoded as bytes.
            counts.update(
                piece.strip(" ")
                for piece in _pieces(caption)
                if piece != " " and piece == _piece(piece.strip(" "))
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ranked[:max_words]))

    def __eq__(self, other) -> bool:
        return isinstance(other, Tokenizer) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple:
        return self.words, self.attributes

    def _id(self, piece: str) -> int | None:
        """The id of a piece that is a known word or a described name."""
        known = self._ids.get(piece)
        if known is None and self.attributes:
            known = described_names.encode(piece.strip(), self.attributes)
        return known


def _pieces(text: str) -> list[str]:
    text = normalise(text)
    # With a space before it, the first word is a piece like every other word.
    return _PIECE.findall(" " + text) if text else []


def _piece(word: str) -> str:
    return word if word in _CLOSING else " " + word


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
