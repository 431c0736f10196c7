"""Reference images in a folder, as a model's inputs.

subjects = from_folder(model.layout, "photos")                  # {"bear": images, "clock": …}
conditions, captions = conditions_for(model, vocabulary, config, references=[*subjects.values()])
"""

import sys
from pathlib import Path

import numpy as np

from uvit_jax.config import to_dict
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.sources.folder import is_system_folder
from uvit_jax.errors import UvitError
from uvit_jax.models.model import Model, build
from uvit_jax.models.presets.unified import with_references
from uvit_jax.paths import local_path
from uvit_jax.sampling.decoding import Decoder
from uvit_jax.tokens.layout import Layout


def from_folder(
    layout: Layout, folder: str | Path, decoder: Decoder | None = None, *, latents: bool = False
) -> dict[str, np.ndarray]:
    """The images of each subject by its name, both sorted by name: `@1`, `@2`, … of a prompt are
    the first, the second, … subject.

    Args:
      folder: with a sub-folder for each subject; or with the images of a single one.
      decoder: of a model of latents, whose autoencoder encodes the images.
      latents: see `decoding.decoded`.

    Returns:
      By subject, float32 (V, *shape), `shape` that of the layout's references. If a subject has
      more images than the model takes views, they are the first ones by name, and a line on stderr
      names them.

    Raises:
      UvitError: if the model takes no references, or fewer subjects; or a folder has no image, or a
        broken one.
    """
    root = local_path(folder)
    if not layout.references:
        raise UvitError(f"the model takes no references; leave out --references={root}")
    shape = layout.references[0].shape
    if len(shape) == 4:
        raise UvitError("the model's references are videos; give them from Python")
    height, width, channels = shape
    if decoder is None and (latents or layout.references[0].is_latent):
        raise UvitError(
            "the model's references are latents; name the autoencoder that encodes images with "
            "--autoencoder=FILE"
        )
    if decoder is not None:
        config = decoder.autoencoder.config
        height, width = height * config.factor, width * config.factor
        channels = config.image_channels
    size = dict(sizes=((height, width),), channels=channels)
    data = dataset(DataConfig(name="folder", path=str(root), workers=0, **size))
    numbers = _by_subject(data)
    _check(layout, root, numbers)
    subjects = {}
    for name, own in sorted(numbers.items()):
        if len(own) > layout.num_views:
            own = own[: layout.num_views]
            used = ", ".join(data.source.files[i].name for i in own)
            print(
                f"note: {root / name} has more images than the {layout.num_views} that the model "
                f"takes of a subject; used: {used}",
                file=sys.stderr,
            )
        images = np.stack([data.decode(data.source[i])["image"] for i in own])
        subjects[name or root.resolve().name] = decoder.encode(images) if decoder else images
    return subjects


def with_slots(model: Model, folder: str | Path) -> Model:
    """The model with slots for as many subjects and images of each as a folder has, up to what its
    parameters serve (`max_subjects`, `max_views`), if the folder has more than the model's slots.

    Raises:
      UvitError: as `from_folder`, of the folder.
    """
    layout, root = model.layout, local_path(folder)
    if not layout.references:
        return model
    data = dataset(DataConfig(name="folder", path=str(root), image_size=8, workers=0))
    numbers = _by_subject(data)
    subjects, views = len(numbers), max(map(len, numbers.values()))
    subjects, views = min(subjects, layout.max_subjects), min(views, layout.max_views)
    if subjects <= layout.num_subjects and views <= layout.num_views:
        return model
    return build(with_references(to_dict(model.config), subjects, views))


def _by_subject(data: Dataset) -> dict[str, list[int]]:
    """The numbers of a folder's images by sub-folder, "" for none."""
    numbers: dict[str, list[int]] = {}
    for i, file in enumerate(data.source.files):
        numbers.setdefault(file.parts[0] if len(file.parts) > 1 else "", []).append(i)
    return numbers


def _check(layout: Layout, root: Path, numbers: dict[str, list[int]]) -> None:
    """Raises UvitError if the layout cannot take these subjects."""
    if "" in numbers and len(numbers) > 1:
        raise UvitError(
            f"{root} holds images and folders; give a folder for each subject, or the images of one"
        )
    folders = {p.name for p in root.iterdir() if p.is_dir() and not is_system_folder(p.name)}
    if empty := sorted(folders - numbers.keys()):
        raise UvitError(f"{root / empty[0]} holds no image; add one, or remove the folder")
    subjects = layout.num_subjects
    if len(numbers) > subjects:
        raise UvitError(
            f"{root} holds {len(numbers)} subjects ({', '.join(sorted(numbers))}), and the model "
            f"takes at most {subjects}"
        )
