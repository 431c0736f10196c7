"""LoRA files with the names of kohya's scripts or of diffusers, as PEFT names them.

kohya: `lora_unet_<layer>.lora_down.weight`, `lora_up` and `alpha`, dots of the layer underscores.
diffusers: `transformer.<layer>.lora_A.weight` and `lora_B`, or `unet.<layer>.lora.down.weight` and
`up`, in older files `<attention>.processor.to_q_lora.down.weight`; perhaps `<layer>.alpha`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from uvit_jax.errors import UvitError
from uvit_jax.interop.mapping import Tensors, some

_KOHYA = re.compile(
    r"lora_(unet|transformer|te\d?)_(.+?)\.(lora_down\.weight|lora_up\.weight|alpha)"
)
_DIFFUSERS = re.compile(
    r"(unet|transformer|text_encoder(?:_2)?)\."
    r"(.+?)(?:\.processor\.(to_q|to_k|to_v|to_out)_lora|\.lora)[._](down|up|A|B)\.weight"
)
_ALPHA = re.compile(r"(unet|transformer)\.(.+)\.alpha")
_FACTORS = {"lora_down.weight": "A", "lora_up.weight": "B", "down": "A", "up": "B"}


def peft_tensors(
    where: Path, tensors: Tensors, layers: Iterable[str], prefix: str
) -> Tensors | None:
    """A file's tensors with PEFT's names and every `alpha` multiplied into B; None if not all of
    its names are kohya's or diffusers'.

    Args:
      layers: the names of the model's layers, in every form.
      prefix: of PEFT's names.

    Raises:
      UvitError: if the file adapts a text encoder, or an alpha has no factors.
    """
    underscored = {name.replace(".", "_"): name for name in layers}
    renamed: dict[str, np.ndarray] = {}
    alphas: dict[str, float] = {}
    for key, value in tensors.items():
        if match := _KOHYA.fullmatch(key):
            part, name, what = match.groups()
            name = underscored.get(name, name)
        elif match := _ALPHA.fullmatch(key):
            (part, name), what = match.groups(), "alpha"
        elif match := _DIFFUSERS.fullmatch(key):
            part, name, projection, what = match.groups()
            if projection:
                name += f".{projection}" + (".0" if projection == "to_out" else "")
        else:
            return None
        if part.startswith("te"):
            raise UvitError(
                f"{where} adapts a text encoder ({key}), which is not part of the model; train or "
                "save it without the text encoder"
            )
        if what == "alpha":
            if np.size(value) != 1 or not np.isfinite(value).all():
                raise UvitError(f"{where}: {key} must be one finite number; save the adapter again")
            alphas[name] = float(np.reshape(value, ()))
        else:
            renamed[f"{prefix}{name}.lora_{_FACTORS.get(what, what)}.weight"] = value
    for name, alpha in alphas.items():
        a, b = (renamed.get(f"{prefix}{name}.lora_{f}.weight") for f in "AB")
        if a is None or b is None or not np.ndim(a):
            raise UvitError(f"{where} lacks the factors of {some([name])}; save the adapter again")
        scale = np.float32(alpha / len(a))
        renamed[f"{prefix}{name}.lora_B.weight"] = np.asarray(b, np.float32) * scale
    return renamed
