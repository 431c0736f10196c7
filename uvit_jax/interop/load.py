"""`uvit_jax.load`: a model and its parameters from whatever holds them."""

import os
from pathlib import Path

from uvit_jax.errors import UvitError
from uvit_jax.interop import dit, files, mapping, uvit
from uvit_jax.models.config import parse_model
from uvit_jax.models.model import Model, Params, build

FAMILIES = (uvit, dit)


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
        or diffusers' names; or an official PyTorch file (`.pth`, needs the extra `interop`).
      step: of a workdir, which checkpoint; None for the newest that is whole.
      ema: of a workdir, the averaged parameters (as one samples) or the raw ones.
      num_heads, num_classes, image_size: of an official file, what its shapes do not tell; None is
        right for the published models, except that a DiT for 512×512 has image_size=64 (latents).

    Returns:
      `(model, params)`, params float32.

    Raises:
      UvitError: if there is nothing to load, or it is damaged, or of an unknown family.
    """
    path = Path(path)
    if path.is_dir():
        from uvit_jax.training.checkpoint import load_workdir

        return load_workdir(path, step=step, ema=ema)
    tensors = files.read_tensors(path)
    own = files.load_own(path, tensors)
    if own is not None:
        return own
    for family in FAMILIES:
        if family.recognises(tensors):
            tensors = family.normalised(tensors)
            try:
                config = family.describe(
                    tensors,
                    str(path),
                    num_heads=num_heads,
                    num_classes=num_classes,
                    image_size=image_size,
                )
            except UvitError:
                raise
            except KeyError as error:
                raise UvitError(f"{path} lacks the tensor {error}") from None
            except (ValueError, IndexError) as error:
                raise UvitError(f"{path}: a tensor has an impossible shape ({error})") from None
            model = build(parse_model(config, where=str(path)))
            entries = family.entries(model.config)
            return model, mapping.imported(entries, tensors, model.abstract_params, str(path))
    some = ", ".join(sorted(tensors)[:4])
    raise UvitError(f"{path} holds no model known here; its tensors: {some}, …")
