"""`data.name="totems"` and `"emoji_scenes"`: scenes as a data source, and as a model's inputs.

Example i of a split is a pure function of (world, split, i): nothing is stored, and nothing depends
on what was drawn before. A batch holds, with S = max_subjects and V = max_views:

    image          float32 (B, H, W, 3) in [-1, 1], the target
    ref_{s}_{v}    float32 (B, H, W, 3) in [-1, 1], view v of subject s from 1 on; zeros if absent
    refs_present   bool (B, S, V), which references an example has; with V = 0 there are neither
    text           int32 (B, text_length), the caption, if text is on; subject s is `@s` in it

With `places`, references stand in as many places, whosever they are, see `packed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.worlds import random_scenes, scenes
from uvit_jax.data.sources.worlds.backgrounds import WORDS
from uvit_jax.data.sources.worlds.worlds import world
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError

LENGTHS = {"train": 2**18}
"""Examples in an epoch of training; every other split has `OTHER`."""
OTHER = 2048
SLOT_WORDS = tuple(f"@{s}" for s in range(1, 8))
"""Names of subjects that the tokenizer knows, more than there ever are: slots are shuffled among
all that a model has."""
LONGEST_CAPTION = 24


class SceneSource(grain.sources.RandomAccessDataSource):
    """Random access to the scenes of a split.

    `source[i]` is a dict: `scene` (a `scenes.Scene`, not drawn yet), `name`, `captions` (one text).

    Raises:
      UvitError: if the world has no such split; IndexError beyond the end.
    """

    class_names: tuple[str, ...] = ()
    native_shape = (32, 32)

    def __init__(self, config: DataConfig):
        self._config = config
        world(config.name).split(config.split)
        self._length = LENGTHS.get(config.split, OTHER)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self._length:
            raise IndexError(f"there is no scene {index}; there are {self._length}")
        config = self._config
        scene = random_scenes.draw(
            config.name,
            config.split,
            int(index),
            subjects=config.max_subjects,
            views=config.max_views,
            places=config.places,
            portraits=config.portraits if config.split == "train" else 0.0,
        )
        name = f"{config.name}, {config.split}, number {index}"
        return {"scene": scene, "name": name, "captions": (scene.caption,)}


class SubjectData:
    """A world's split, opened: the same face as `pipeline.Dataset`, which makes it.

    Attributes: config, source (a `SceneSource`), class_names, num_classes, image_shape, tokenizer,
      features, as there.

    Raises:
      UvitError: if there is no such split, or captions do not fit text_length.
    """

    features = None
    class_names: tuple[str, ...] = ()
    num_classes = 0

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None = None):
        self.config, self.source = config, SceneSource(config)
        size = config.image_size or self.source.native_shape[0]
        self.image_shape = (size, size, 3)
        self.tokenizer = None
        if config.text:
            self.tokenizer = tokenizer or vocabulary()
            if config.text_length < LONGEST_CAPTION:
                raise UvitError(
                    f"text_length {config.text_length} is too small: captions of {config.name} "
                    f"have up to {LONGEST_CAPTION} tokens"
                )

    def __len__(self) -> int:
        return len(self.source)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """A record as a row of a batch, see the module; nothing is random."""
        return self.inputs(record["scene"])

    def inputs(self, scene: scenes.Scene) -> dict[str, np.ndarray]:
        """A scene, of a split or of a setting, as a row of a batch.

        Raises:
          UvitError: if it has more subjects or views than the config's `max_subjects`, `max_views`.
        """
        S, V = self.config.max_subjects, self.config.max_views
        if not V:
            scene = random_scenes.without_references(scene)
        example = scenes.render(scene, self.image_shape[0], subjects=S, views=V)
        row = {"image": example.image}
        for s in range(S):
            for v in range(V):
                row[f"ref_{s + 1}_{v + 1}"] = example.references[s, v]
        if V:
            row["refs_present"] = example.present
        if self.config.places:
            row = packed(row, self.config.places)
        if self.tokenizer is not None:
            row["text"] = self.tokenizer.encode(scene.caption, self.config.text_length)
        return row

    def batch(
        self, indices: Sequence[int], chances: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The examples `indices` as a batch; `chances` change nothing, chance is in the index."""
        rows = [self.decode(self.source[index]) for index in indices]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def packed(row: dict[str, np.ndarray], places: int) -> dict[str, np.ndarray]:
    """A row whose references stand in `places` alike, whosever they are: `ref_{p}_1`.

    `refs_present` (P, 1) says which places are taken, `subject_slots` (P,) and `view_slots` (P, 1)
    of whom and which view each is, from 0. A sequence of P references then serves one subject of P
    views as well as P subjects of one.

    Raises:
      UvitError: if there are more references.
    """
    present_SV = row["refs_present"]
    taken = np.argwhere(present_SV)
    if len(taken) > places:
        raise UvitError(f"the scene has {len(taken)} references, and there are {places} places")
    found = {name: value for name, value in row.items() if not name.startswith("ref")}
    for p in range(places):
        s, v = taken[p] if p < len(taken) else (0, 0)
        picture = row[f"ref_{s + 1}_{v + 1}"]
        found[f"ref_{p + 1}_1"] = picture if p < len(taken) else np.zeros_like(picture)
    slots = np.zeros((places, 2), np.int32)
    slots[: len(taken)] = taken
    return found | {
        "refs_present": (np.arange(places) < len(taken))[:, None],
        "subject_slots": slots[:, 0],
        "view_slots": slots[:, 1:],
    }


def vocabulary() -> Tokenizer:
    """The words of every caption of both worlds, those of slots first."""
    found = ["on the left of right and in middle , a small large from front behind to left"]
    words = [*SLOT_WORDS, *" ".join([*found, *WORDS.values()]).split()]
    return Tokenizer(tuple(dict.fromkeys(words)))
