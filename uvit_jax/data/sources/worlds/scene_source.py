"""Rendered scenes as a data source: `data.name="totems"` and `data.name="emoji_scenes"`.

Example i of a split is a pure function of (world, split, i), and is rendered when it is read. A
batch holds, with S = max_subjects and V = max_views:

    image          float32 (B, H, W, 3) in [-1, 1], the target
    ref_{s}_{v}    float32 (B, H, W, 3) in [-1, 1], view v of subject s, from 1; zeros if absent
    refs_present   bool (B, S, V), which references an example has; with V = 0 there are neither
    text           int32 (B, text_length), the caption, if text is on; subject s is `@s` in it

With `config.places`, see `reference_rows.pack_references`.
"""

from collections.abc import Sequence

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.reference_rows import SLOT_WORDS, reference_inputs
from uvit_jax.data.sources.source import Source
from uvit_jax.data.sources.worlds import random_scenes, scenes
from uvit_jax.data.sources.worlds.backgrounds import WORDS
from uvit_jax.data.sources.worlds.worlds import world
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError

TRAIN_LENGTH, OTHER_LENGTH = 2**18, 2048
"""Examples of the split "train", and of every other split."""
LONGEST_CAPTION = 24


class SceneDataset(Dataset):
    """A split of a world, opened.

    Raises:
      UvitError: if captions do not fit `config.text_length`.
    """

    def __init__(self, config: DataConfig, source: "SceneSource", tokenizer: Tokenizer | None):
        size = config.image_size or source.native_shape[0]
        self.image_shape = (size, size, 3)
        if tokenizer is not None and config.text_length < LONGEST_CAPTION:
            raise UvitError(
                f"text_length {config.text_length} is too small: captions of {config.name} have up "
                f"to {LONGEST_CAPTION} tokens"
            )
        super().__init__(config, source, tokenizer)

    def decode(self, record: dict) -> dict[str, np.ndarray]:
        """A record as one row of a batch, see the module; nothing is random."""
        return self.inputs(record["scene"])

    def inputs(self, scene: scenes.Scene) -> dict[str, np.ndarray]:
        """A scene, of a split or of an evaluation set, as one row of a batch.

        Raises:
          UvitError: if it has more subjects or views than `config.max_subjects` or
            `config.max_views`.
        """
        S, V = self.config.max_subjects, self.config.max_views
        if not V:
            scene = random_scenes.without_references(scene)
        example = scenes.render(scene, self.image_shape[0], subjects=S, views=V)
        references = reference_inputs(example.references, example.present, self.config)
        row = {"image": example.image, **references}
        if self.tokenizer is not None:
            row["text"] = self.tokenizer.encode(scene.caption, self.config.text_length)
        return row

    def batch(
        self, indices: Sequence[int], bits: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The examples of these indices as a batch. Scenes follow from the index; `bits` are
        ignored."""
        rows = [self.decode(self.source[index]) for index in indices]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class SceneSource(Source):
    """The scenes of a split.

    A record is a dict with `scene` (a `scenes.Scene`, not rendered yet), `name`, `captions` (one
    text) and `facts`: place and facing of each subject, as the caption states them.

    Raises:
      UvitError: if the world has no such split; IndexError beyond the end.
    """

    splits = None

    native_shape = (32, 32)
    dataset_class = SceneDataset

    def __init__(self, config: DataConfig):
        self._config = config
        world(config.name).split(config.split)
        self._length = TRAIN_LENGTH if config.split == "train" else OTHER_LENGTH

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
            distractors=config.distractors if config.split == "train" else 0.0,
            described=config.described if config.split == "train" else 0.0,
        )
        name = f"{config.name}, {config.split}, number {index}"
        facts = tuple(zip(scene.facts.places, scene.facts.facings, strict=True))
        return {"scene": scene, "name": name, "captions": (scene.caption,), "facts": facts}

    def tokenizer(self) -> Tokenizer:
        """The words of all captions of both worlds, those of slots first."""
        phrases = ["on the left of right and in middle , a small large from front behind to left"]
        words = [*SLOT_WORDS, *" ".join([*phrases, *WORDS.values()]).split()]
        attributes = world(self._config.name).attributes() if self._config.described else ()
        return Tokenizer(tuple(dict.fromkeys(words)), attributes)
