"""`SOURCES`: the data sources by `DataConfig.name`. Any other name is a TFDS data set's."""

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.sources.animated_emoji_source import AnimatedEmojiSource
from uvit_jax.data.sources.clips import ClipSource
from uvit_jax.data.sources.emoji.emoji_source import EmojiSource
from uvit_jax.data.sources.folder import FolderSource
from uvit_jax.data.sources.huggingface import ArrowSource
from uvit_jax.data.sources.latent_folders import SizedLatentSource, latent_folders
from uvit_jax.data.sources.latents import LatentSource
from uvit_jax.data.sources.source import Source
from uvit_jax.data.sources.subjects import SubjectSource
from uvit_jax.data.sources.tfds import TfdsSource
from uvit_jax.data.sources.tfds_videos import TfdsVideoSource
from uvit_jax.data.sources.webdataset import TarSource
from uvit_jax.data.sources.worlds.scene_source import SceneSource
from uvit_jax.data.sources.worlds.scene_video_source import SceneVideoSource
from uvit_jax.errors import UvitError, nearest
from uvit_jax.paths import local_path

SOURCES: dict[str, type[Source]] = {
    "emoji": EmojiSource,
    "folder": FolderSource,
    "webdataset": TarSource,
    "huggingface": ArrowSource,
    "latents": LatentSource,
    "subjects": SubjectSource,
    "totems": SceneSource,
    "emoji_scenes": SceneSource,
    "totem_videos": SceneVideoSource,
    "clips": ClipSource,
    "animated_emoji": AnimatedEmojiSource,
}


def open_source(config: DataConfig) -> Source:
    """The data source that `config.name` names.

    Raises:
      UvitError: if there is none of that name, it is not prepared or broken, or it lacks what the
        config asks for.
    """
    if config.name not in SOURCES:
        tfds_source = TfdsVideoSource if config.frames else TfdsSource
        return tfds_source(config, other_names=tuple(SOURCES))
    source = SOURCES[config.name]
    if source is LatentSource and len(latent_folders(local_path(config.path))) > 1:
        source = SizedLatentSource
    labels = None if source.label_names is None else ("", *source.label_names)
    for key, known in (("labels", labels), ("split", source.splits)):
        value = getattr(config, key)
        if known is not None and value not in known:
            raise UvitError(
                f"config.data.{key}={value!r} is unknown for {config.name}{nearest(value, known)}"
            )
    return source(config)
