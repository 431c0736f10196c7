"""Identities: as many, as far apart and as disjoint as promised, and the same ones every time."""

import zlib

import numpy as np
import pytest

from uvit_jax.data.sources.worlds import factors


@pytest.fixture(scope="module")
def splits():
    return factors.identities()


def test_any_two_identities_differ_in_three_factors(splits):
    every = np.concatenate(list(splits.values()))
    assert every.shape == (2048, 8)
    assert sum(len(splits[s]) for s in ("test", "test_pairs")) == 256
    for n, one in enumerate(every):
        distance = (every[n + 1 :] != one).sum(axis=1)
        assert (distance >= factors.MIN_DISTANCE).all()


def test_values_lie_in_range_and_all_of_them_are_trained(splits):
    for split in splits.values():
        assert (split >= 0).all() and (split < factors.SIZES).all()
        assert factors.valid(split).all()
    for column, size in enumerate(factors.SIZES):
        assert set(splits["train"][:, column]) == set(range(size))


def test_held_out_pairs_are_in_their_split_and_nowhere_else(splits):
    for name, split in splits.items():
        assert (factors.has_held_out_pair(split) == (name == "test_pairs")).all()


def test_they_are_the_same_on_every_machine(splits):
    data = b"".join(splits[name].astype("<i4").tobytes() for name in factors.COUNTS)
    assert zlib.crc32(data) == 4216810394


def test_neighbours_differ_in_one_factor(splits):
    one = splits["test"][0]
    for column, name in enumerate(factors.NAMES):
        near = factors.neighbours(one, name)
        assert len(near) == factors.SIZES[column] - (2 if "hue" in name else 1)
        assert ((near != one).sum(axis=1) == 1).all() and (near[:, column] != one[column]).all()


def test_one_couple_in_eight_is_held_out_in_either_order():
    rng = np.random.default_rng(0)
    couples = rng.integers(0, 1600, (4000, 2))
    held = [factors.held_out_couple(a, b) for a, b in couples]
    assert held == [factors.held_out_couple(b, a) for a, b in couples]
    assert abs(np.mean(held) - 1 / 8) < 0.03


def test_one_side_shows_at_a_time():
    front, back = factors.NAMES.index("front"), factors.NAMES.index("back")
    shown = factors.visible(np.linspace(-7, 7, 500))
    assert not (shown[:, front] & shown[:, back]).any()
    assert factors.visible(0.0)[front] and factors.visible(np.pi)[back]
    assert factors.visible(2 * np.pi / 3)[back]  # a reference from the side shows the back's edge
