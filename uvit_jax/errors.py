"""The one exception that a user is meant to read.

Every command line catches `UvitError`, prints its sentence on one line and exits with status 2.
Anything else that escapes is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UvitError(ValueError):
    """Something the user gave is wrong: the message says what, where, and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'depth'?` for a misspelt `word`, or the known words."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
