"""A scene: who stands where, seen how; its caption; and its pictures with their exact masks."""

import dataclasses

import numpy as np

from uvit_jax.data.sources.worlds import backgrounds, factors
from uvit_jax.data.sources.worlds.camera import Camera, grid
from uvit_jax.data.sources.worlds.worlds import Pose, World, world
from uvit_jax.errors import UvitError

PLACES = {1: ("left", "middle", "right"), 2: ("left", "right"), 3: ("left", "middle", "right")}
"""Number of subjects → the places they can take, from left to right."""
SIZES = ("small", "large")
"""Of a lone subject; of several, all are as large as the room allows."""

_ABSCISSA = {1: (-0.4, 0.0, 0.4), 2: (-0.48, 0.48), 3: (-0.64, 0.0, 0.64)}
_SCALE = {"small": 0.5, "large": 0.74, 2: 0.54, 3: 0.42}
_FEET = -0.8
_REFERENCE_SCALE, _REFERENCE_Y = 0.95, -0.05
_SIDE_WORDS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a caption states, a value a subject in the order of the slots.

    Attributes:
      places: of `PLACES`. facings: of the world's. sizes: of `SIZES`, or "" where there are
        several subjects. background: of `backgrounds.WORDS`.
      wording: 0 or 1, which of two ways to say it, where there are two.
    """

    places: tuple[str, ...]
    facings: tuple[str, ...]
    sizes: tuple[str, ...]
    background: str
    wording: int = 0

    @property
    def caption(self) -> str:
        """Subject s is called `@s`, from 1."""
        named = [f"@{s + 1} {facing}".strip() for s, facing in enumerate(self.facings)]
        ground = backgrounds.WORDS[self.background]
        if len(named) == 1:
            return f"a {self.sizes[0]} {named[0]} {_SIDE_WORDS[self.places[0]]} {ground}"
        order = [named[self.places.index(place)] for place in PLACES[len(named)]]
        if len(named) == 3:
            return f"{order[0]}, {order[1]} and {order[2]} from left to right {ground}"
        left, right = order
        if self.wording:
            return f"{right} on the right of {left} {ground}"
        return f"{left} on the left of {right} {ground}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject of a scene.

    Attributes:
      identity: the factors' indices of a totem, the record of an emoji.
      pose: how the target shows it. x, y, scale: where, in the scene.
      references: the poses that its references show, 1 to V.
    """

    identity: tuple[int, ...]
    pose: Pose
    x: float
    y: float
    scale: float
    references: tuple[Pose, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture and its references are made of.

    Attributes:
      world: of `worlds.WORLDS`. subjects: 1 to 3. facts: what its caption says.
      phase: in [0, 1), of the background. camera: of the target; references have the plain one.
    """

    world: str
    subjects: tuple[Subject, ...]
    facts: Facts
    phase: float = 0.0
    camera: Camera = Camera()

    @property
    def caption(self) -> str:
        return self.facts.caption

    def judged(self) -> np.ndarray:
        """Totems: the factors that the target and some reference show, bool (S, 8)."""
        if self.world != "totems":
            raise UvitError(f"only totems have factors, and the scene's world is {self.world!r}")
        return np.array(
            [
                factors.visible(s.pose[0])
                & factors.visible(np.array([yaw for yaw, _ in s.references])).any(axis=0)
                for s in self.subjects
            ]
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A scene's pictures. S and V are what was asked for; the scene may have fewer.

    Attributes:
      scene: what they were made from.
      image: float32 (H, W, 3) in [-1, 1], the target.
      references: float32 (S, V, H, W, 3) in [-1, 1], zeros where there is none.
      present: bool (S, V), which there are.
      identities: int32 (S, F), -1 where there is no subject.
      masks: float32 (S, H, W), the share of each pixel of the target that a subject fills.
      boxes: int32 (S, 4), left, top, right, bottom in pixels, the last two exclusive, of the pixels
        at least half filled; zeros where there are none.
    """

    scene: Scene
    image: np.ndarray
    references: np.ndarray
    present: np.ndarray
    identities: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray

    @property
    def caption(self) -> str:
        return self.scene.caption

    @property
    def facts(self) -> Facts:
        return self.scene.facts


def place(facts: Facts, slot: int, size: float) -> tuple[float, float, float]:
    """Where a subject stands and its scale, before chance moves it.

    Args:
      size: `World.size`.
    """
    count = len(facts.places)
    x = abscissa(count, facts.places[slot])
    scale = _SCALE[facts.sizes[slot] if count == 1 else count]
    return x, _FEET + 0.9 * scale, scale * size


def abscissa(count: int, name: str) -> float:
    """Where the middle of a place of `PLACES[count]` lies, in scene coordinates."""
    return _ABSCISSA[count][PLACES[count].index(name)]


def render(scene: Scene, size: int, *, subjects: int = 0, views: int = 0) -> Example:
    """Draws a scene and its references.

    Args:
      size: H = W, in pixels. subjects, views: S and V; 0 for as many as the scene has.

    Raises:
      UvitError: if the scene has more than S subjects, or a subject more than V references.
    """
    S = subjects or len(scene.subjects)
    V = views or max(len(s.references) for s in scene.subjects)
    _check(scene, S, V)
    x, y = grid(2 * size)
    at = [scene.camera.scene(x, y)]
    drawn = [(s.identity, s.pose, s.x, s.y, s.scale, *at[0]) for s in scene.subjects]
    spots = [(s, v) for s, one in enumerate(scene.subjects) for v in range(len(one.references))]
    for s, v in spots:
        one = scene.subjects[s]
        scale = _REFERENCE_SCALE * world(scene.world).size
        drawn.append((one.identity, one.references[v], 0.0, _REFERENCE_Y, scale, x, y))
    colour, alpha = _layers(world(scene.world), drawn, size, scene.camera.zoom)

    count = len(scene.subjects)
    image, masks_HW = _compose(scene, colour[:count], alpha[:count], size)
    masks = np.zeros((S, size, size), np.float32)
    masks[:count] = masks_HW
    references = np.zeros((S, V, size, size, 3), np.float32)
    present = np.zeros((S, V), bool)
    plain = np.float32(backgrounds.PLAIN_COLOUR)
    for n, (s, v) in enumerate(spots, start=count):
        pictured = _halve(colour[n]) + (1 - _halve(alpha[n]))[..., None] * plain
        references[s, v] = _signed(pictured)
        present[s, v] = True
    identities = np.full((S, len(scene.subjects[0].identity)), -1, np.int32)
    identities[:count] = [s.identity for s in scene.subjects]
    return Example(
        scene=scene,
        image=_signed(image),
        references=references,
        present=present,
        identities=identities,
        masks=masks,
        boxes=np.array([box(mask) for mask in masks], np.int32),
    )


def video(scene: Scene, size: int, cameras: list[Camera]) -> np.ndarray:
    """The target from each of F cameras (see `camera.moved`), float32 (F, H, W, 3) in [-1, 1]."""
    frames = [dataclasses.replace(scene, camera=camera) for camera in cameras]
    return np.stack([render(frame, size).image for frame in frames])


def portrait(
    world_name: str,
    identity: tuple[int, ...],
    pose: Pose,
    size: int,
) -> np.ndarray:
    """A subject as references show it, float32 (H, W, 3) in [-1, 1]."""
    x, y = grid(2 * size)
    drawn_world = world(world_name)
    scale = _REFERENCE_SCALE * drawn_world.size
    drawn = [(identity, pose, 0.0, _REFERENCE_Y, scale, x, y)]
    colour, alpha = _layers(drawn_world, drawn, size, 1.0)
    plain = np.float32(backgrounds.PLAIN_COLOUR)
    return _signed(_halve(colour[0]) + (1 - _halve(alpha[0]))[..., None] * plain)


def portrait_place(drawn_world: World) -> dict[str, float]:
    """Where references show their subject: `x`, `y` and `scale` of a `Subject`."""
    return dict(x=0.0, y=_REFERENCE_Y, scale=_REFERENCE_SCALE * drawn_world.size)


def spot(scene: Scene, slot: int, *, exact: bool = False) -> tuple[tuple[float, float], float]:
    """Where to look for a subject: the middle (x, y) and the scale, in the picture's [-1, 1]².

    Args:
      slot: from 0. exact: where the scene's own picture has it; otherwise where the caption says,
        which is all that a generated picture can know, and within .11 of the former or so.
    """
    if not exact and scene.facts.background == backgrounds.PLAIN:
        exact = True  # a portrait has one place
    if not exact:
        x, y, scale = place(scene.facts, slot, world(scene.world).size)
        return (x, y), scale
    one = scene.subjects[slot]
    return scene.camera.picture(one.x, one.y), one.scale * scene.camera.zoom


def box(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels at least half filled; zeros if there are none."""
    rows, columns = np.nonzero(mask_HW >= 0.5)
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _check(scene: Scene, S: int, V: int) -> None:
    if not 1 <= len(scene.subjects) <= 3:
        raise UvitError(f"a scene has 1 to 3 subjects, got {len(scene.subjects)}")
    if len(scene.subjects) > S:
        raise UvitError(f"the scene has {len(scene.subjects)} subjects, and there is room for {S}")
    most = max(len(s.references) for s in scene.subjects)
    if most > V:
        raise UvitError(f"a subject has {most} references, and there is room for {V}")


def _layers(
    drawn_world: World, drawn: list, size: int, zoom: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each of N subjects on its own, at two by two points a pixel: (N, 2H, 2W, 3), (N, 2H, 2W)."""
    x_NP = np.stack([((x - cx) / np.float32(k)).ravel() for _, _, cx, _, k, x, _ in drawn])
    y_NP = np.stack([((y - cy) / np.float32(k)).ravel() for _, _, _, cy, k, _, y in drawn])
    identity_NF = np.array([one[0] for one in drawn], np.int32)
    pose_N2 = np.array([one[1] for one in drawn], np.float64)
    pixel_N = np.array([1 / (size * one[4] * zoom) for one in drawn])
    colour_NP3, alpha_NP = drawn_world.layer(identity_NF, pose_N2, x_NP, y_NP, pixel_N)
    side = 2 * size
    return colour_NP3.reshape(-1, side, side, 3), alpha_NP.reshape(-1, side, side)


def _compose(
    scene: Scene, colour: np.ndarray, alpha: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) in [0, 1] and the subjects' masks (S, H, W); lower ones are nearer."""
    x, y = scene.camera.scene(*grid(size))
    ground = backgrounds.paint(scene.facts.background, x, y, scene.phase)
    order = sorted(range(len(scene.subjects)), key=lambda s: -scene.subjects[s].y)
    seen = np.zeros_like(alpha)
    picture = np.zeros_like(colour[0])
    open_ = np.ones_like(alpha[0])  # what no subject covers yet, from near to far
    for s in reversed(order):
        seen[s] = open_ * alpha[s]
        picture += open_[..., None] * colour[s]
        open_ = open_ * (1 - alpha[s])
    for one in scene.subjects:
        foot = one.y - 0.86 * one.scale
        far = ((x - one.x) / (0.75 * one.scale)) ** 2 + ((y - foot) / (0.16 * one.scale)) ** 2
        ground = ground * (1 - 0.4 * np.exp(-far))[..., None]
    image = _halve(picture) + _halve(open_)[..., None] * ground
    return image, np.stack([_halve(mask) for mask in seen])


def _halve(fine: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 points: (2H, 2W, ...) → (H, W, ...)."""
    rows = fine[0::2] + fine[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _signed(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 2 - 1).astype(np.float32)
