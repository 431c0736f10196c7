"""Renders totems: surfaces of revolution with a textured surface, two arms and a top.

A totem stands on the y axis between y = -0.85 and 0.95, within |x| <= 1. The point (x, y) of an
image shows the azimuth asin(x / r(y)) + yaw of the surface, where r is the outline's radius: an
exact parallel projection, so that only views of the back show the emblem there.
"""

import functools

import numpy as np

from uvit_jax.data.sources.worlds import factors

REFERENCE_YAWS = (0.0, np.pi, 2 * np.pi / 3, -2 * np.pi / 3)
"""The views of the references, in their order: front, back, sides."""

BOTTOM, NECK, TIP = -0.85, 0.42, 0.95
EMBLEM_Y, EMBLEM_HEIGHT, EMBLEM_WIDTH = -0.2, 0.4, 0.92  # the width is an azimuth
_STEPS = 512  # of the outlines' table
_ARM, _HAND, _SHOULDER, _REACH = 0.085, 0.17, 0.3, 0.8

PALETTE = np.array(
    [
        (214, 38, 44),
        (245, 132, 24),
        (250, 218, 46),
        (160, 220, 60),
        (30, 128, 56),
        (24, 170, 158),
        (104, 198, 252),
        (38, 78, 214),
        (122, 62, 190),
        (216, 40, 150),
        (252, 158, 198),
        (118, 70, 40),
    ],
    np.float32,
) / np.float32(255)
_INK = np.array((22, 22, 30), np.float32) / np.float32(255)
_FRONT = np.array((252, 252, 250), np.float32) / np.float32(255)
_BACK = np.array((255, 206, 40), np.float32) / np.float32(255)


def layer(
    identity_NF: np.ndarray, yaw_N: np.ndarray, x_NP: np.ndarray, y_NP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Renders N totems at P points each.

    Args:
      identity_NF: int (N, 8), indices into the values of `factors.FACTORS`.
      yaw_N: the rotation of each, in radians.
      x_NP, y_NP: float32, coordinates of the totem.

    Returns:
      Colours float32 (N, P, 3) in [0, 1], 0 outside, and the covered points, bool (N, P).
    """
    identity_NF = np.asarray(identity_NF)
    yaw_N = np.mod(np.asarray(yaw_N, np.float64), 2 * np.pi)
    colour_NP3 = np.zeros((*x_NP.shape, 3), np.float32)
    cover_NP = np.zeros(x_NP.shape, bool)
    arms = [arm for n in range(len(x_NP)) for arm in _arms(identity_NF[n], yaw_N[n], n)]
    for n, front, hand, colours in arms:
        if not front:
            _draw_arm(colour_NP3[n], cover_NP[n], x_NP[n], y_NP[n], hand, colours)
    _draw_body(colour_NP3, cover_NP, identity_NF, yaw_N.astype(np.float32), x_NP, y_NP)
    for n, front, hand, colours in arms:
        if front:
            _draw_arm(colour_NP3[n], cover_NP[n], x_NP[n], y_NP[n], hand, colours)
    return colour_NP3, cover_NP


def _draw_body(colour_NP3, cover_NP, identity_NF, yaw_N, x_NP, y_NP) -> None:
    place_NP = ((y_NP - BOTTOM) * np.float32(_STEPS / (TIP - BOTTOM))).astype(np.int32)
    within_NP = (place_NP >= 0) & (place_NP < _STEPS) & (np.abs(x_NP) < 0.75)
    n_M, p_M = np.nonzero(within_NP)
    x_M, y_M = x_NP[n_M, p_M], y_NP[n_M, p_M]
    profile_M, top_M = identity_NF[n_M, 0], identity_NF[n_M, 6]
    r_M = _outlines()[profile_M, top_M, place_NP[n_M, p_M]]
    inside = np.flatnonzero(np.abs(x_M) < r_M)
    n_M, p_M, y_M = n_M[inside], p_M[inside], y_M[inside]
    sine_M = x_M[inside] / r_M[inside]
    depth_M = np.sqrt(1 - sine_M * sine_M)
    azimuth_M = np.arcsin(sine_M) + yaw_N[n_M]
    skin_M3 = _skin(identity_NF[n_M], azimuth_M, y_M)
    light_M = np.minimum(0.5 + 0.5 * depth_M - 0.2 * sine_M, 1.04)
    colour_NP3[n_M, p_M] = np.minimum(skin_M3 * light_M[:, None], 1)
    cover_NP[n_M, p_M] = True


def _skin(identity_MF: np.ndarray, azimuth_M: np.ndarray, y_M: np.ndarray) -> np.ndarray:
    """The colours of the surface, before shading."""
    second_M = _pattern(identity_MF[:, 3], azimuth_M, y_M) | (y_M > NECK)
    hue_M = np.where(second_M, identity_MF[:, 2], identity_MF[:, 1])
    skin_M3 = PALETTE[hue_M]
    turn_M = azimuth_M + np.float32(np.pi)
    turn_M -= np.float32(2 * np.pi) * np.floor(turn_M * np.float32(0.5 / np.pi))
    from_front_M = turn_M - np.float32(np.pi)  # in [-pi, pi)
    b_M = (y_M - EMBLEM_Y) / EMBLEM_HEIGHT
    for column, paint, back in ((4, _FRONT, False), (5, _BACK, True)):
        # The azimuth from the centre of the emblem, to the right of the viewer.
        side_M = turn_M - np.float32(2 * np.pi) * (turn_M > np.pi) if back else from_front_M
        a_M = side_M / np.float32(EMBLEM_WIDTH)
        on = np.flatnonzero((np.abs(a_M) < 1) & (np.abs(b_M) < 1))
        a_M, b_on_M = a_M[on], b_M[on]
        plate = np.flatnonzero(a_M**4 + b_on_M**4 < 1)
        on, a_M, b_on_M = on[plate], a_M[plate], b_on_M[plate]
        lit_M = _glyph(identity_MF[on, column], a_M, b_on_M)
        skin_M3[on] = np.where(lit_M[:, None], paint, _INK)
    return skin_M3


def _pattern(kind_M: np.ndarray, azimuth_M: np.ndarray, y_M: np.ndarray) -> np.ndarray:
    """Which points have the second hue."""
    band = np.sin(y_M * np.float32(2.5 * 2 * np.pi / 1.27) + 1.2)
    stripe = np.sin(4 * azimuth_M + 0.5 * np.float32(np.pi))
    spiral = np.sin(2 * azimuth_M + 8 * y_M)
    base = np.abs(y_M + 0.2) - 0.36
    dots = np.abs(band) + np.abs(stripe) - 1.15
    choices = np.stack([band, stripe, band * stripe, spiral, base, dots])
    return choices[kind_M, np.arange(len(kind_M))] > 0


def _glyph(kind_M: np.ndarray, a_M: np.ndarray, b_M: np.ndarray) -> np.ndarray:
    """Which points (a, b) in [-1, 1]² of an emblem are light."""
    round_M = a_M * a_M + b_M * b_M - np.float32(0.36)
    arms = np.float32(0.27) - np.minimum(np.abs(a_M), np.abs(b_M))
    choices = np.stack([-a_M, a_M, b_M, -b_M, -round_M, round_M, arms, a_M * b_M])
    return choices[kind_M, np.arange(len(kind_M))] > 0


def _arms(identity_F: np.ndarray, yaw: float, n: int):
    """(totem, in front of the body?, (shoulder, hand), (arm colour, hand colour)) of each arm."""
    kind = int(identity_F[7])
    if kind == 0:
        return
    shoulder_y, hand_y = ((0.0, 0.0), (0.05, 0.62), (0.15, -0.6))[kind - 1]
    colours = PALETTE[identity_F[2]], PALETTE[identity_F[1]]
    for side in (1, -1):
        along = side * np.cos(yaw)
        shoulder, hand = (along * _SHOULDER, shoulder_y), (along * _REACH, hand_y)
        yield n, side * np.sin(yaw) > 0, (shoulder, hand), colours


def _draw_arm(colour_P3, cover_P, x_P, y_P, ends, colours) -> None:
    (x0, y0), (x1, y1) = ends
    low_x, high_x = min(x0, x1) - _HAND, max(x0, x1) + _HAND
    low_y, high_y = min(y0, y1) - _HAND, max(y0, y1) + _HAND
    near = np.flatnonzero((x_P > low_x) & (x_P < high_x) & (y_P > low_y) & (y_P < high_y))
    x, y = x_P[near], y_P[near]
    dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
    share = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
    to_arm = np.hypot(x - x0 - share * dx, y - y0 - share * dy) / _ARM
    to_hand = np.hypot(x - x1, y - y1) / _HAND
    for distance, colour in ((to_arm, colours[0]), (to_hand, colours[1])):
        inside = distance < 1
        light = 1 - 0.4 * distance[inside] ** 2
        colour_P3[near[inside]] = colour * light[:, None]
        cover_P[near[inside]] = True


@functools.cache
def _outlines() -> np.ndarray:
    """The radius at each height, float32 (8 profiles, 6 tops, steps)."""
    y = BOTTOM + (np.arange(_STEPS) + 0.5) * (TIP - BOTTOM) / _STEPS
    t = (y - BOTTOM) / (NECK - BOTTOM)  # 0 at the bottom, 1 at the neck
    bump = np.sin(np.pi * np.clip(t, 0, 1))
    profiles = {
        "pillar": 0.4 + 0 * t,
        "cone": 0.68 - 0.44 * t,
        "goblet": 0.26 + 0.42 * t,
        "barrel": 0.28 + 0.38 * bump,
        "waist": 0.64 - 0.36 * bump,
        "bell": 0.36 + 0.34 * np.clip(1 - 2.6 * t, 0, 1) ** 0.7,
        "vase": 0.24 + 0.42 * np.exp(-(((t - 0.3) / 0.26) ** 2)),
        "beads": 0.28 + 0.32 * np.abs(np.sin(2 * np.pi * t)) ** 0.7,
    }

    def ball(centre: float, radius: float) -> np.ndarray:
        return np.sqrt(np.maximum(radius**2 - (y - centre) ** 2, 0))

    up = (y - NECK) / (TIP - NECK)  # 0 at the neck, 1 at the tip
    tops = {
        "ball": np.maximum(ball(0.67, 0.26), 0.08 * (up < 0.3)),
        "cone": 0.46 * (1 - up),
        "plate": np.where(up < 0.3, 0.62, 0),
        "spike": 0.1 - 0.02 * up,
        "funnel": 0.06 + 0.5 * np.maximum(up, 0) ** 1.5,
        "beads": np.maximum(ball(0.53, 0.17), ball(0.81, 0.13)),
    }
    table = [
        [np.where(y < NECK, profiles[p], tops[t]) for t in factors.FACTORS["top"]]
        for p in factors.FACTORS["profile"]
    ]
    return np.array(table, np.float32)
