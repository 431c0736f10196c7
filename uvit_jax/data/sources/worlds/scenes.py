"""A scene: its subjects, their positions and views; its caption; its images with exact masks."""

import dataclasses

import numpy as np

from uvit_jax import described_names
from uvit_jax.data.sources.worlds import backgrounds, factors
from uvit_jax.data.sources.worlds.scene_camera import Camera, grid
from uvit_jax.data.sources.worlds.worlds import Pose, World, world
from uvit_jax.errors import UvitError

PLACES = {1: ("left", "middle", "right"), 2: ("left", "right"), 3: ("left", "middle", "right")}
"""Number of subjects → their possible positions, from left to right."""
SIZES = ("small", "large")
"""Of a lone subject; the size of several follows from their number."""

_ABSCISSA = {1: (-0.4, 0.0, 0.4), 2: (-0.48, 0.48), 3: (-0.64, 0.0, 0.64)}
_SCALE = {"small": 0.5, "large": 0.74, 2: 0.54, 3: 0.42}
_FEET = -0.8
_REFERENCE_SCALE, _REFERENCE_Y = 0.95, -0.05
_SIDE_WORDS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a caption states. Tuples have one value per subject, in the order of the slots.

    Attributes:
      places: from `PLACES`.
      facings: from `World.facings`.
      sizes: from `SIZES`, or "" if there are several subjects.
      background: a key of `backgrounds.WORDS`.
      wording: 0 or 1, which of the two wordings to use for two subjects; of three subjects, 2 has
        the words of two, `@1 on the left of @2 on the left of @3`.
    """

    places: tuple[str, ...]
    facings: tuple[str, ...]
    sizes: tuple[str, ...]
    background: str
    wording: int = 0

    @property
    def caption(self) -> str:
        """The caption, which calls subject s `@s`, from 1."""
        named = [f"@{s + 1} {facing}".strip() for s, facing in enumerate(self.facings)]
        ground = backgrounds.WORDS[self.background]
        if len(named) == 1:
            return f"a {self.sizes[0]} {named[0]} {_SIDE_WORDS[self.places[0]]} {ground}"
        order = [named[self.places.index(place)] for place in PLACES[len(named)]]
        if len(named) == 3 and self.wording == 2:
            return f"{' on the left of '.join(order)} {ground}"
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
      identity: of a totem, the indices of its factors; of an emoji, the index of its record.
      pose: in the target.
      x, y, scale: in the scene.
      references: the poses in its references, 1 to V.
    """

    identity: tuple[int, ...]
    pose: Pose
    x: float
    y: float
    scale: float
    references: tuple[Pose, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The description from which an image and its references are rendered.

    Attributes:
      world: a key of `worlds.WORLDS`.
      subjects: 1 to 3.
      facts: stated by its caption.
      phase: of the background, in [0, 1).
      camera: of the target; references use `Camera()`.
      distractors: subjects of which there are references, and nothing else.
      described: whether the caption says who its subjects are (`uvit_jax.described_names`).
    """

    world: str
    subjects: tuple[Subject, ...]
    facts: Facts
    # Random scenes with the same facts are seeded by the repr.
    distractors: tuple[Subject, ...] = dataclasses.field(default=(), repr=False)
    described: bool = dataclasses.field(default=False, repr=False)
    phase: float = 0.0
    camera: Camera = Camera()

    @property
    def caption(self) -> str:
        caption = self.facts.caption
        if self.described:
            for s, one in enumerate(self.subjects, start=1):
                caption = caption.replace(f"@{s}", described_names.described(f"@{s}", one.identity))
        return caption

    @property
    def referenced(self) -> tuple[Subject, ...]:
        """All subjects that may have references, in the order of the slots."""
        return (*self.subjects, *self.distractors)

    def judged(self) -> np.ndarray:
        """Which factors of totems are visible in the target and in some reference, bool (S, 8)."""
        if self.world != "totems":
            raise UvitError(
                f"only totems have factors, and the world of the scene is {self.world!r}"
            )
        return np.array(
            [
                factors.visible(s.pose[0])
                & factors.visible(np.array([yaw for yaw, _ in s.references])).any(axis=0)
                for s in self.subjects
            ]
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """The images of a scene, padded to S subjects and V views.

    Attributes:
      scene: as rendered.
      image: float32 (H, W, 3) in [-1, 1], the target.
      references: float32 (S, V, H, W, 3) in [-1, 1], zeros where absent.
      present: bool (S, V), which references there are.
      identities: int32 (S, F), -1 where there is no subject.
      masks: float32 (S, H, W), the share of each pixel of the target that a subject covers.
    """

    scene: Scene
    image: np.ndarray
    references: np.ndarray
    present: np.ndarray
    identities: np.ndarray
    masks: np.ndarray

    @property
    def caption(self) -> str:
        return self.scene.caption

    @property
    def facts(self) -> Facts:
        return self.scene.facts


def place(facts: Facts, slot: int, size: float) -> tuple[float, float, float]:
    """The position x, y and the scale of a subject, without their random variation.

    Args:
      size: `World.size`.
    """
    count = len(facts.places)
    x = abscissa(count, facts.places[slot])
    scale = _SCALE[facts.sizes[slot] if count == 1 else count]
    return x, _FEET + 0.9 * scale, scale * size


def abscissa(count: int, name: str) -> float:
    """The x coordinate of a position of `PLACES[count]`."""
    return _ABSCISSA[count][PLACES[count].index(name)]


def render(scene: Scene, size: int, *, subjects: int = 0, views: int = 0) -> Example:
    """Renders a scene and its references.

    Args:
      size: H = W, in pixels.
      subjects, views: S and V; 0 for those of the scene.

    Raises:
      UvitError: if the scene has more than S subjects, or a subject more than V references.
    """
    S = subjects or len(scene.referenced)
    V = views or max(len(s.references) for s in scene.referenced)
    _check(scene, S, V)
    x, y = grid(2 * size)
    at = scene.camera.to_scene(x, y)
    layers = [(s.identity, s.pose, s.x, s.y, s.scale, *at) for s in scene.subjects]
    slots = [(s, v) for s, one in enumerate(scene.referenced) for v in range(len(one.references))]
    for s, v in slots:
        one = scene.referenced[s]
        scale = _REFERENCE_SCALE * world(scene.world).size
        layers.append((one.identity, one.references[v], 0.0, _REFERENCE_Y, scale, x, y))
    colour, alpha = _layers(world(scene.world), layers, size, scene.camera.zoom)

    count = len(scene.subjects)
    image, masks_HW = _compose(scene, colour[:count], alpha[:count], size)
    masks = np.zeros((S, size, size), np.float32)
    masks[:count] = masks_HW
    references = np.zeros((S, V, size, size, 3), np.float32)
    present = np.zeros((S, V), bool)
    plain = np.float32(backgrounds.PLAIN_COLOUR)
    for n, (s, v) in enumerate(slots, start=count):
        reference = _halve(colour[n]) + (1 - _halve(alpha[n]))[..., None] * plain
        references[s, v] = _signed(reference)
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
    scene_world = world(world_name)
    scale = _REFERENCE_SCALE * scene_world.size
    layers = [(identity, pose, 0.0, _REFERENCE_Y, scale, x, y)]
    colour, alpha = _layers(scene_world, layers, size, 1.0)
    plain = np.float32(backgrounds.PLAIN_COLOUR)
    return _signed(_halve(colour[0]) + (1 - _halve(alpha[0]))[..., None] * plain)


def portrait_place(scene_world: World) -> dict[str, float]:
    """The `x`, `y` and `scale` of a `Subject` in references."""
    return dict(x=0.0, y=_REFERENCE_Y, scale=_REFERENCE_SCALE * scene_world.size)


def spot(scene: Scene, slot: int, *, exact: bool = False) -> tuple[tuple[float, float], float]:
    """The centre (x, y) and the scale of a subject in image coordinates.

    Args:
      slot: of the subject, from 0.
      exact: whether to return the position in this scene, or the one that the caption states, which
        is all a generated image can follow. They differ by about 0.11 at most.
    """
    if not exact and scene.facts.background == backgrounds.PLAIN:
        exact = True  # portraits have one position
    if not exact:
        x, y, scale = place(scene.facts, slot, world(scene.world).size)
        return (x, y), scale
    one = scene.subjects[slot]
    return scene.camera.to_image(one.x, one.y), one.scale * scene.camera.zoom


def _check(scene: Scene, S: int, V: int) -> None:
    if not 1 <= len(scene.subjects) <= 3:
        raise UvitError(f"a scene has 1 to 3 subjects, got {len(scene.subjects)}")
    if len(scene.referenced) > S:
        raise UvitError(f"the scene has {len(scene.referenced)} subjects, more than {S}")
    most = max(len(s.references) for s in scene.referenced)
    if most > V:
        raise UvitError(f"a subject has {most} references, more than {V}")


def _layers(
    scene_world: World, layers: list, size: int, zoom: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each of N subjects alone, 2×2 points per pixel: colours (N, 2H, 2W, 3), alpha (N, 2H, 2W)."""
    x_NP = np.stack([((x - cx) / np.float32(k)).ravel() for _, _, cx, _, k, x, _ in layers])
    y_NP = np.stack([((y - cy) / np.float32(k)).ravel() for _, _, _, cy, k, _, y in layers])
    identity_NF = np.array([one[0] for one in layers], np.int32)
    pose_N2 = np.array([one[1] for one in layers], np.float64)
    pixel_N = np.array([1 / (size * one[4] * zoom) for one in layers])
    colour_NP3, alpha_NP = scene_world.layer(identity_NF, pose_N2, x_NP, y_NP, pixel_N)
    side = 2 * size
    return colour_NP3.reshape(-1, side, side, 3), alpha_NP.reshape(-1, side, side)


def _compose(
    scene: Scene, colour: np.ndarray, alpha: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The image (H, W, 3) in [0, 1] and the masks (S, H, W); lower subjects occlude higher ones."""
    x, y = scene.camera.to_scene(*grid(size))
    ground = backgrounds.paint(scene.facts.background, x, y, scene.phase)
    order = sorted(range(len(scene.subjects)), key=lambda s: -scene.subjects[s].y)
    visible = np.zeros_like(alpha)
    subjects = np.zeros_like(colour[0])
    uncovered = np.ones_like(alpha[0])  # by the subjects so far, from near to far
    for s in reversed(order):
        visible[s] = uncovered * alpha[s]
        subjects += uncovered[..., None] * colour[s]
        uncovered = uncovered * (1 - alpha[s])
    for one in scene.subjects:
        foot = one.y - 0.86 * one.scale
        far = ((x - one.x) / (0.75 * one.scale)) ** 2 + ((y - foot) / (0.16 * one.scale)) ** 2
        ground = ground * (1 - 0.4 * np.exp(-far))[..., None]
    image = _halve(subjects) + _halve(uncovered)[..., None] * ground
    return image, np.stack([_halve(mask) for mask in visible])


def _halve(fine: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 points: (2H, 2W, ...) → (H, W, ...)."""
    rows = fine[0::2] + fine[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _signed(image: np.ndarray) -> np.ndarray:
    """[0, 1] → [-1, 1]."""
    return (np.clip(image, 0, 1) * 2 - 1).astype(np.float32)
