"""Eight backgrounds, each a function of scene coordinates, and the plain one of references."""

import numpy as np

BACKGROUNDS = {
    "beach": "on a beach",
    "forest": "in a forest",
    "snow": "in the snow",
    "desert": "in the desert",
    "night": "at night",
    "meadow": "on a meadow",
    "sea": "under water",
    "room": "in a room",
}
"""Name → its words in a caption."""

NAMES = tuple(BACKGROUNDS)
HELD_OUT = ("desert", "room")
"""Backgrounds that no training image has."""
PLAIN = "plain"
PLAIN_COLOUR = 0.78
WORDS = BACKGROUNDS | {PLAIN: "on plain grey"}
"""`BACKGROUNDS` and the plain one."""


def paint(name: str, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """Renders a background, float32 (H, W, 3) in [0, 1].

    Args:
      name: one of `NAMES`, or `PLAIN`.
      x, y: scene coordinates, float32 (H, W).
      phase: in [0, 1): the position of its waves, trees, hills and moon.
    """
    if name == PLAIN:
        return np.full((*x.shape, 3), PLAIN_COLOUR, np.float32)
    return _PAINTERS[name](x, y, np.float32(phase * 2 * np.pi))


def _rgb(*colour: int) -> np.ndarray:
    return np.array(colour, np.float32) / 255


def _mix(share: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Interpolates from `low` (at share 0) to `high` (at share 1)."""
    return low + np.clip(share, 0, 1)[..., None] * (high - low)


def _over(edge: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A soft border at the zeros of `edge`, about one pixel wide in a 32×32 image."""
    return _mix(edge * 12 + 0.5, below, above)


def _beach(x, y, phase):
    sky = _mix(y, _rgb(190, 228, 250), _rgb(96, 176, 238))
    sea = _over(y - 0.15, _rgb(40, 128, 178), sky)
    return _over(y + 0.28 + 0.05 * np.sin(4 * x + phase), _rgb(238, 214, 160), sea)


def _forest(x, y, phase):
    leaves = _mix(0.5 + 0.5 * y, _rgb(30, 74, 42), _rgb(76, 128, 62))
    trunks = _mix(4 * np.sin(7 * x + phase) - 2.6, leaves, _rgb(72, 48, 34))
    return _over(y + 0.55, _rgb(58, 78, 36), trunks)


def _snow(x, y, phase):
    sky = _mix(y, _rgb(226, 234, 246), _rgb(160, 184, 216))
    hills = _over(y - 0.2 - 0.16 * np.sin(3 * x + phase), _rgb(214, 226, 240), sky)
    return _over(y + 0.3 + 0.04 * np.sin(2 * x + 2 * phase), _rgb(250, 252, 255), hills)


def _desert(x, y, phase):
    sky = _mix(y, _rgb(252, 214, 150), _rgb(240, 140, 92))
    far = _over(y - 0.1 - 0.14 * np.sin(2.5 * x + phase), _rgb(206, 130, 66), sky)
    return _over(y + 0.35 - 0.12 * np.sin(2 * x + 2.3 * phase), _rgb(232, 166, 92), far)


def _night(x, y, phase):
    sky = _mix(0.5 + 0.5 * y, _rgb(44, 48, 98), _rgb(12, 14, 44))
    moon_x, moon_y = 0.6 * np.cos(phase), 0.66
    moon = 0.2 - np.hypot(x - moon_x, y - moon_y)
    return _over(y + 0.5, _rgb(20, 26, 34), _over(moon, sky, _rgb(250, 244, 208)))


def _meadow(x, y, phase):
    sky = _mix(y, _rgb(206, 232, 250), _rgb(120, 186, 244))
    hill = _over(y - 0.05 - 0.12 * np.sin(2.2 * x + phase), _rgb(126, 190, 88), sky)
    return _over(y + 0.4 + 0.05 * np.sin(3 * x - phase), _rgb(92, 160, 62), hill)


def _sea(x, y, phase):
    water = _mix(0.5 + 0.5 * y, _rgb(10, 56, 110), _rgb(64, 190, 206))
    light = 0.5 + 0.5 * np.sin(5 * x + 2.5 * y + phase)
    return _mix(0.35 * light * light * (0.5 + 0.5 * y), water, _rgb(214, 248, 240))


def _room(x, y, phase):
    wall = _mix(
        0.5 + 0.5 * np.sign(np.sin(9 * x + phase)), _rgb(226, 206, 206), _rgb(212, 190, 194)
    )
    skirting = _over(y + 0.3, _rgb(250, 246, 240), wall)
    return _over(y + 0.42, _rgb(150, 98, 60), skirting)


_PAINTERS = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "night": _night,
    "meadow": _meadow,
    "sea": _sea,
    "room": _room,
}
