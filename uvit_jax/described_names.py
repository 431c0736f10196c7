"""Names of subjects that say who is meant, as one token: `@1#3-7-2` and `@1*`.

Captions call a subject `@1`, and references show what it looks like. To a network without
references a caption has to say it: `@1#3-7-2` lists the values of a subject's attributes, and `@1*`
is a word of its own, whose vector fine-tuning trains (textual inversion, Gal et al. 2023). An
encoder of captions reads either as `@1`; the vectors of the description are added to its output
(`uvit_jax.tokens.modalities.text`).

The id is FIRST + NAMES · code + k - 1 for the name `@k`: the code has the attributes' values as the
digits of a number, the first one most significant, and one past the largest is the own word.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from uvit_jax.errors import UvitError

FIRST, NAMES = 2**20, 8
"""The least id, beyond those of any vocabulary, and the number of names: `@1` to `@7`, and one to
spare."""
_DESCRIBED = re.compile(r"@([1-7])(?:\*|#(\d+(?:-\d+)*))")


def num_ids(attributes: Sequence[int]) -> int:
    """One past the largest id, for attributes with so many values each."""
    return FIRST + NAMES * (math.prod(attributes) + 1)


def described(name: str, values: Sequence[int]) -> str:
    """The name with a description: `@1#3-7-2`."""
    return f"{name}#{'-'.join(map(str, values))}"


def encode(word: str, attributes: Sequence[int]) -> int | None:
    """The id of a described name, None if the word is something else.

    Raises:
      UvitError: if its values are not those of the attributes.
    """
    match = _DESCRIBED.fullmatch(word)
    if match is None:
        return None
    code = math.prod(attributes)
    if match[2]:
        values = [int(value) for value in match[2].split("-")]
        if len(values) != len(attributes) or any(
            value >= size for value, size in zip(values, attributes, strict=True)
        ):
            raise UvitError(
                f"{word!r} must have {len(attributes)} values, each less than "
                f"{'-'.join(map(str, attributes))}"
            )
        code = 0
        for value, size in zip(values, attributes, strict=True):
            code = code * size + value
    return FIRST + NAMES * code + int(match[1]) - 1


def decode(token: int, attributes: Sequence[int]) -> str:
    """The inverse of `encode`."""
    code, k = divmod(token - FIRST, NAMES)
    if code == math.prod(attributes):
        return f"@{k + 1}*"
    return described(f"@{k + 1}", [digit for digit, _ in _digits(code, attributes)])


def plain(ids: Any, names: Sequence[int], xp: Any) -> Any:
    """Token ids with the id of `@k`, which is `names[k - 1]`, in place of every described one.

    Args:
      xp: numpy or jax.numpy, of which `ids` is an array.
    """
    slots = xp.clip((ids - FIRST) % NAMES, 0, len(names) - 1)
    return xp.where(ids >= FIRST, xp.asarray(names, ids.dtype)[slots], ids)


def rows(ids: Any, attributes: Sequence[int], xp: Any) -> tuple[Any, Any]:
    """The rows of a table that has a row for each value of each attribute, and then one for each of
    the own words: int (…, F) of the values, and int (…) of the own word, or -1 where there is none.
    """
    code, slot = (ids - FIRST) // NAMES, (ids - FIRST) % NAMES
    found = xp.stack([digit + first for digit, first in _digits(code, attributes)], axis=-1)
    is_own, is_plain = code == math.prod(attributes), ids < FIRST
    values = xp.where((is_own | is_plain)[..., None], -1, found)
    return values, xp.where(is_own & ~is_plain, sum(attributes) + slot, -1)


def _digits(code: Any, attributes: Sequence[int]) -> list[tuple[Any, int]]:
    """Each attribute's value in a code, and its first row."""
    found, first = [], sum(attributes)
    for size in reversed(attributes):
        first -= size
        found.append((code % size, first))
        code = code // size
    return found[::-1]
