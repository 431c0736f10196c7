"""Reference pictures in a folder, as a model takes them.

shown = from_folder(model.layout, "photos")                     # {"bear": pictures, "clock": …}
conditions, captions = conditions_for(model, vocabulary, config, references=[*shown.values()])
"""

from pathlib import Path

import numpy as np

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError
from uvit_jax.sampling.decoding import Decoder, is_latent
from uvit_jax.tokens.layout import Layout


def from_folder(
    layout: Layout, folder: str | Path, decoder: Decoder | None = None
) -> dict[str, np.ndarray]:
    """The pictures of each subject by its name, both in the order of names: `@1`, `@2`, … of a
    prompt are the first, the second, … subject.

    Args:
      folder: one folder for each subject; or the pictures of a single one.
      decoder: of a model of latents, whose autoencoder encodes the pictures.

    Returns:
      By subject, float32 (V, *shape), V up to the layout's views and `shape` its references'.

    Raises:
      UvitError: if the model takes no references, or fewer subjects or views; or a folder holds no
        picture, or a broken one.
    """
    root = Path(folder).expanduser()
    if not layout.references:
        raise UvitError(f"the model takes no references, and {root} was given; leave them out")
    shape = layout.references[0].shape
    size, channels = shape[0], shape[-1]
    if is_latent(layout.references[0]):
        if decoder is None:
            raise UvitError(
                "the model's references are latents; name the autoencoder that makes them of "
                "pictures with --autoencoder=FILE"
            )
        config = decoder.autoencoder.config
        size, channels = size * config.factor, config.image_channels
    data = dataset(
        DataConfig(name="folder", path=str(root), image_size=size, channels=channels, workers=0)
    )
    numbers: dict[str, list[int]] = {}
    for i, file in enumerate(data.source.files):
        numbers.setdefault(file.parts[0] if len(file.parts) > 1 else "", []).append(i)
    _check(layout, root, numbers)
    found = {}
    for name, own in sorted(numbers.items()):
        pictures = np.stack([data.decode(data.source[i])["image"] for i in own])
        found[name or root.resolve().name] = decoder.encode(pictures) if decoder else pictures
    return found


def _check(layout: Layout, root: Path, numbers: dict[str, list[int]]) -> None:
    """Raises UvitError if the subjects are not what the layout takes."""
    if "" in numbers and len(numbers) > 1:
        raise UvitError(
            f"{root} holds pictures and folders; give one folder a subject, or pictures of one"
        )
    folders = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if empty := sorted(folders - numbers.keys()):
        raise UvitError(f"{root / empty[0]} holds no picture; add one, or remove the folder")
    subjects, views = layout.num_subjects, layout.num_views
    if len(numbers) > subjects:
        raise UvitError(
            f"{root} holds {len(numbers)} subjects ({', '.join(sorted(numbers))}), and the model "
            f"takes at most {subjects}"
        )
    for name, own in sorted(numbers.items()):
        if len(own) > views:
            raise UvitError(
                f"{root / name} holds {len(own)} pictures, and the model takes at most {views} of "
                "a subject"
            )
