"""The embedded animated emoji: `data.name="animated_emoji"`, clips at 64×64 pixels, 8 frames a
second, each with its name as the caption. `animated_emoji/ATTRIBUTION.md` says where they are from.
"""

import dataclasses
from pathlib import Path

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.clips import ClipSource

FOLDER = Path(__file__).parent / "animated_emoji"


class AnimatedEmojiSource(ClipSource):
    """The animated emoji, of 1 to 3 seconds; raises as `ClipSource` does."""

    def __init__(self, config: DataConfig):
        path = str(FOLDER / "manifest.jsonl")
        super().__init__(dataclasses.replace(config, name="clips", path=path))
