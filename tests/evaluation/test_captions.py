"""Agreement of captions with known ones, and of captions with images."""

import numpy as np
import pytest

from uvit_jax.errors import UvitError
from uvit_jax.evaluation.captions import CaptionMatcher, caption_scores

COLOURS, THINGS = ("red", "green", "blue", "grey"), ("cat", "dog", "owl")
CAPTIONS = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]


def encoded(captions, seed, noise=0.1):
    """Features with a random direction for each word, and noise."""
    directions = np.random.default_rng(0).normal(size=(7, 16))
    rows = [
        directions[COLOURS.index(c.split()[1])] + directions[4 + THINGS.index(c.split()[2])]
        for c in captions
    ]
    return np.stack(rows) + noise * np.random.default_rng(seed).normal(size=(len(rows), 16))


def test_scores_of_captions():
    known = ["grinning face, noto", "red heart, noto"]
    assert caption_scores(["Grinning  face, noto", "red heart, noto"], known) == {
        "exact": 1.0,
        "words": 1.0,
    }
    scores = caption_scores(["noto face face grinning", "blue star"], known)
    assert scores == {"exact": 0.0, "words": (3 / 4 + 0) / 2}


@pytest.mark.parametrize("generated", [[], ["a", "b"]])
def test_other_numbers_of_captions_are_refused(generated):
    with pytest.raises(UvitError, match="cannot be scored"):
        caption_scores(generated, ["a"] if generated else [])


def test_the_matcher_finds_the_captions_of_new_images():
    matcher = CaptionMatcher(encoded(CAPTIONS, 1), CAPTIONS, ridge=0.1)
    new = encoded(CAPTIONS, 2)
    assert matcher.precision(new, CAPTIONS, CAPTIONS, candidates=12) > 0.9
    wrong = [CAPTIONS[(i + 4) % 12] for i in range(12)]  # both words are others
    assert matcher.precision(new, wrong, CAPTIONS, candidates=12) == 0
    assert matcher.scores(new, CAPTIONS).argmax(axis=1).tolist() == list(range(12))


def test_the_matcher_composes_words():
    seen = [caption for caption in CAPTIONS if caption != "a red owl"]
    matcher = CaptionMatcher(encoded(seen * 4, 1), seen * 4, ridge=0.1)
    scores = matcher.scores(encoded(["a red owl"], 2), CAPTIONS)
    assert CAPTIONS[scores[0].argmax()] == "a red owl"


def test_too_few_captions_are_refused():
    matcher = CaptionMatcher(encoded(CAPTIONS, 1), CAPTIONS)
    with pytest.raises(UvitError, match="too few for candidates=13"):
        matcher.precision(encoded(CAPTIONS, 2), CAPTIONS, CAPTIONS, candidates=13)
    with pytest.raises(UvitError, match="two or more pairs"):
        CaptionMatcher(encoded(CAPTIONS, 1), CAPTIONS[:3])
