"""`uvit_jax.load`: a model and its parameters from whatever holds them."""

import os
from pathlib import Path

from uvit_jax.interop.recognise import read, recognise
from uvit_jax.interop.weight_files import holds_foreign_weights, open_weights
from uvit_jax.models.model import Model, Params


def load(
    path: str | os.PathLike,
    *,
    step: int | None = None,
    ema: bool = True,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> tuple[Model, Params]:
    """Loads a model.

    Args:
      path: a workdir of `experiments.train`; a `.safetensors` file, our own or with official
        or diffusers' names; a folder of diffusers'; an official PyTorch file (`.pth` or `.pt`,
        needs the extra `interop`), or a training folder of U-ViT's.
      step: of a workdir or training folder, which checkpoint; None for the newest (of a workdir,
        the newest that is whole).
      ema: of a run, the averaged parameters (as one samples) or the raw ones.
      num_heads, num_classes, image_size: of a foreign file, what its shapes do not tell; None is
        right for the published models, except that diffusers' DiT for 512×512, without its
        config.json, has image_size=64 (latents).

    Returns:
      `(model, params)`, params float32.

    Raises:
      UvitError: if there is nothing to load, or it is damaged, or of an unknown family.
    """
    path = Path(path).expanduser()
    if path.is_dir() and not holds_foreign_weights(path):
        from uvit_jax.training.checkpoint import load_workdir

        return load_workdir(path, step=step, ema=ema)
    source = open_weights(path, step=step, raw=not ema)
    found = recognise(source, num_heads=num_heads, num_classes=num_classes, image_size=image_size)
    return read(source, found)
