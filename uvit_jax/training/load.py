"""`uvit_jax.load`: a model and its parameters, from a run directory, a file or the package."""

import os

from uvit_jax.interop.recognise import read, recognise
from uvit_jax.interop.weight_files import holds_foreign_weights, open_weights
from uvit_jax.models.model import Model, Params
from uvit_jax.remote import any_path, fetched, is_gs
from uvit_jax.shipped import shipped_networks

SUFFIXES = (".safetensors", ".pth", ".pt")


def load(
    path: str | os.PathLike,
    *,
    step: int | None = None,
    ema: bool = True,
    num_heads: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    text_tokens: int | None = None,
) -> tuple[Model, Params]:
    """Loads a model.

    Args:
      path: a workdir of `experiments.train`; a `.safetensors` file with our own, official or
        diffusers' names; a diffusers folder; an official PyTorch file (`.pth` or `.pt`, needs the
        extra `interop`); or a training folder of U-ViT's official code. They may be in `gs://`, and
        all but workdirs in a repository of the Hugging Face Hub, `hf://OWNER/NAME[@REVISION]`. The
        name of a network of the package (`uvit_jax/shipped`) is "shipped:totems", or "totems" where
        there is no file or folder of that name.
      step: the checkpoint of a workdir or training folder; None is the newest (of a workdir, the
        newest complete one).
      ema: of a run, whether to load the EMA of the parameters (as for sampling) or the raw ones.
      num_heads, num_classes, image_size, text_tokens: of other programs' files, where shapes do not
        imply them; None is right for the published models, except for diffusers' 512×512 DiT
        without its config.json, which needs image_size=64 (latents).

    Returns:
      `(model, params)`, params float32.

    Raises:
      UvitError: if there are no weights at `path`, or they are damaged or of an unknown family.
    """
    from uvit_jax.training.checkpoint import load_workdir  # Orbax takes a second to import

    name = shipped_networks.shipped_name(path)
    if is_gs(path) and (workdir := any_path(path)).suffix not in SUFFIXES:
        return load_workdir(workdir, step=step, ema=ema)
    if name is None and os.fspath(path) in shipped_networks.manifest() and not os.path.exists(path):
        name = os.fspath(path)
    path = fetched(path) if name is None else shipped_networks.file_of(name)
    if path.is_dir() and not holds_foreign_weights(path):
        return load_workdir(path, step=step, ema=ema)
    source = open_weights(path, step=step, raw=not ema)
    recognised = recognise(
        source,
        num_heads=num_heads,
        num_classes=num_classes,
        image_size=image_size,
        text_tokens=text_tokens,
    )
    return read(source, recognised)
