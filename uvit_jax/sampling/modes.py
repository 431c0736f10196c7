"""What a model of images and texts generates: one modality from the other, both, or one alone.

A model whose images and texts have two independent times does all of it (UniDiffuser: Bao et al.
2023, section 3.2): a modality at time 0 is given, at time 1 it is pure noise, as if there were
none, and the others are generated. Variations go through the other modality and back.
"""

from typing import Literal, NamedTuple

from uvit_jax.errors import UvitError
from uvit_jax.tokens.layout import Layout

Mode = Literal[
    "",
    "text_to_image",
    "image_to_text",
    "joint",
    "image",
    "text",
    "image_variation",
    "text_variation",
]
MODES: tuple[str, ...] = Mode.__args__[1:]
GIVEN = {
    "text_to_image": "text",
    "image_to_text": "image",
    "image_variation": "image",
    "text_variation": "text",
}
"""The modality that a mode is given; the others are given none."""
_PASSES = {
    "text_to_image": ("image",),
    "image_to_text": ("text",),
    "joint": ("both",),
    "image": ("image",),
    "text": ("text",),
    "image_variation": ("text", "image"),
    "text_variation": ("image", "text"),
}


class Pass(NamedTuple):
    """One run of a sampler.

    Attributes:
      generate: the segments. times: of the other modality, by time key.
      guided: whether there is anything to guide by.
    """

    generate: tuple[str, ...]
    times: dict[str, float]
    guided: bool


def passes(layout: Layout, mode: str) -> list[Pass]:
    """The runs of a mode, each of which is given what the one before has generated.

    Raises:
      UvitError: if the model cannot do it.
    """
    segments = modalities(layout, mode)
    keys = {name: own[0] for name, own in segments.items()}
    runs = []
    for generated in _PASSES[mode]:
        if generated == "both":
            names = tuple(s.name for s in layout.noisy)
            runs.append(Pass(names, {}, True))
            continue
        other = "text" if generated == "image" else "image"
        alone = mode in keys
        runs.append(Pass(segments[generated][1], {keys[other]: float(alone)}, not alone))
    return runs


def modalities(layout: Layout, mode: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The time key and the noisy segments of `image` and `text`.

    Raises:
      UvitError: if the model does not denoise images and texts with a time each.
    """
    by_key: dict[str, list] = {}
    for segment in layout.noisy:
        by_key.setdefault(segment.time_key, []).append(segment)
    images = [key for key, own in by_key.items() if any(s.kind == "patches" for s in own)]
    texts = [key for key in by_key if key not in images]
    if len(images) != 1 or len(texts) != 1:
        raise UvitError(
            f"mode={mode!r} needs a model that denoises images and texts at two times, and this "
            f"one denoises {', '.join(s.name for s in layout.noisy)}; leave out the mode"
        )
    found = {"image": images[0], "text": texts[0]}
    return {name: (key, tuple(s.name for s in by_key[key])) for name, key in found.items()}
