"""Images of totems follow their factors and the view, pixel by pixel."""

import time

import numpy as np
import pytest

from uvit_jax.data.sources.worlds import factors, scene_camera, totems

SIZE = 48
NAMES = list(factors.NAMES)


def view(identity, yaw):
    """One totem: colours (P, 3) and cover (P,)."""
    x, y = (c.reshape(1, -1) for c in scene_camera.grid(SIZE))
    colour, cover = totems.layer(np.array([identity]), np.array([yaw]), x, y)
    return colour[0], cover[0]


@pytest.fixture(scope="module")
def some():
    return factors.identities()["validation"][:6]


@pytest.mark.parametrize("yaw", [0.0, 1.0, -2.5])
def test_a_full_turn_changes_nothing(some, yaw):
    for one in some:
        colour, cover = view(one, yaw)
        again, again_cover = view(one, yaw + 2 * np.pi)
        assert (cover == again_cover).all()
        # Rounding may move the border of a pattern by less than a point.
        assert (np.abs(colour - again).max(axis=1) > 1e-3).mean() < 1e-3


@pytest.mark.parametrize(
    ("factor", "hidden", "shown"), [("back", 0.0, np.pi), ("front", np.pi, 0.0)]
)
def test_an_emblem_needs_a_view_of_its_side(some, factor, hidden, shown):
    for one in some:
        other = factors.neighbours(one, factor)[0]
        assert (view(one, hidden)[0] == view(other, hidden)[0]).all()
        assert (view(one, shown)[0] != view(other, shown)[0]).any(axis=1).mean() > 0.02


def test_every_factor_is_visible_where_it_should_be(some):
    """A change of one visible factor changes at least a hundredth of the image's points."""
    for one in some:
        for yaw in (0.3, 2.8):
            for factor in np.array(NAMES)[factors.visible(yaw)]:
                for other in factors.neighbours(one, factor):
                    a, b = view(one, yaw), view(other, yaw)
                    changed = (np.abs(a[0] - b[0]).max(axis=1) > 0.05) | (a[1] != b[1])
                    assert changed.mean() > 0.01, (factor, one, other)


def test_the_skin_turns_with_the_yaw():
    """The colour at azimuth a + yaw is the one that the view from yaw has at a: a stripe's edge in
    the middle of one view is where asin says in another."""
    identity = np.zeros(8, np.int32)
    identity[[1, 2, 3]] = 0, 7, 1  # a pillar of radius .4, red with blue stripes
    at_x = 0.4 * np.sin(np.linspace(-1.2, 1.2, 25)).astype(np.float32)
    low = np.full((1, 25), -0.75, np.float32)  # below the emblems
    straight = totems.layer(identity[None], np.array([0.6]), at_x[None], low)[0][0]
    turned_x = 0.4 * np.sin(np.linspace(-1.2, 1.2, 25) + 0.2).astype(np.float32)
    turned = totems.layer(identity[None], np.array([0.4]), turned_x[None], low)[0][0]
    # The light differs, the paint does not.
    assert (straight.argmax(axis=1) == turned.argmax(axis=1))[1:-1].all()


def test_arms_on_either_side_from_front_and_back(some):
    one = some[0].copy()
    one[7] = 1
    for yaw in (0.0, np.pi):
        cover = view(one, yaw)[1].reshape(SIZE, SIZE)
        assert (cover == cover[:, ::-1]).all()
        assert cover[:, : SIZE // 8].any()
    assert not view(one, np.pi / 2)[1].reshape(SIZE, SIZE)[:, : SIZE // 8].any()


def test_together_or_alone(some):
    x, y = (np.repeat(c.reshape(1, -1), 6, axis=0) for c in scene_camera.grid(SIZE))
    yaw = np.linspace(0, 3, 6)
    colour, cover = totems.layer(some, yaw, x, y)
    for n in range(6):
        alone, alone_cover = view(some[n], yaw[n])
        assert (alone == colour[n]).all() and (alone_cover == cover[n]).all()


def test_fast_enough_to_feed_training(some):
    """Over 1000 a second on a quiet core at 32²; here it only must not be ten times slower."""
    x, y = (np.repeat(c.reshape(1, -1), 6, axis=0) for c in scene_camera.grid(64))
    totems.layer(some, np.zeros(6), x, y)
    began = time.process_time()
    for _ in range(5):
        totems.layer(some, np.zeros(6), x, y)
    assert 30 / (time.process_time() - began) > 150
