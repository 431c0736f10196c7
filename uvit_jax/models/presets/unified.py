"""Models that are shown their subjects: reference pictures as tokens beside the target.

    [text | ref_1_1, ref_1_2, …, ref_S_V | time | image]

`ref_{s}_{v}` is view v of subject s, both from 1, and captions call subject s `@s`. The backbone is
a U-ViT (all tokens, long skips) or a DiT (time and text by adaLN-Zero, references in context).

Plain nested dicts with nothing heavy behind them, so that config files can call `preset`.
"""

from collections.abc import Mapping
from typing import Any

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import dit, uvit

# What references may see, by name; everything else sees everything.
VISIBILITIES = ("full", "ref_isolated", "ref_joint")
STYLES = ("uvit", "dit")


def preset(
    style: str,
    image_shape: tuple[int, int, int],
    *,
    patch_size: int,
    subjects: int,
    views: int = 1,
    max_subjects: int = 0,
    max_views: int = 0,
    visibility: str = "ref_joint",
    text_length: int = 0,
    vocab_size: int = 0,
    text_enter: str = "",
    encoder_depth: int = 0,
    num_classes: int = 0,
    positions: str = "",
    offset: str = "none",
    axes: tuple[str, ...] = ("row", "column"),
    **backbone: Any,
) -> dict[str, Any]:
    """The model config of a unified sequence.

    Args:
      style: `uvit` or `dit`, whose published settings the backbone takes (U-ViT-S, DiT-S).
      image_shape: (H, W, C) of the target and of every reference. patch_size: of both.
      subjects, views: S and V; an example may have fewer, and `refs_present` says which. With 0
        subjects it is the style's text-to-image model.
      max_subjects, max_views: slots to be trained, 0 for as many as there are. With more, the same
        parameters serve layouts of more subjects and views.
      visibility: `full`; `ref_isolated`, a subject's views see only one another; or `ref_joint`,
        references see only references. The last two allow to cache them.
      text_length, vocab_size: of captions, 0 for none. text_enter: `token`, `cross`, or, the
        default of `dit`, `adaln`, as one vector. encoder_depth: of the text's own transformer.
      num_classes: of a label, 0 for none.
      positions: of all pictures, `learned`, `sincos2d` or `rotary`; by default the style's.
      offset: `diagonal` puts references apart by their rotary positions, as UNO does.
      axes: of rotary positions; with `segment`, references turn by their number.
      backbone: any other key of `BackboneConfig`.

    Raises:
      UvitError: for a name that is not known, or fewer slots than subjects or views.
    """
    for key, value, known in (
        ("style", style, STYLES),
        ("visibility", visibility, VISIBILITIES),
    ):
        if value not in known:
            raise UvitError(f"unknown {key} {value!r}{nearest(value, known)}")
    if subjects < 0 or views < 1:
        raise UvitError(f"subjects must be at least 0 and views 1, got {subjects} and {views}")
    max_subjects, max_views = max_subjects or subjects, max_views or views
    for key, count, slots in (("subjects", subjects, max_subjects), ("views", views, max_views)):
        if count > slots:
            raise UvitError(
                f"{key}={count}, but the model has max_{key}={slots} slots; raise max_{key} before "
                f"training, or take fewer {key}"
            )
    if style == "uvit":
        model = uvit.preset("S", image_shape, patch_size=patch_size, **backbone)
    else:
        model = dit.preset("S", image_shape, patch_size=patch_size, learned_range=False, **backbone)
        del model["segments"]["label"]
    segments = model["segments"]
    time, image = segments.pop("time"), segments.pop("image")
    if positions:
        image["positions"] = positions

    given: dict[str, Any] = {}
    if num_classes:
        given["label"] = dict(modality="label", num_classes=num_classes)
        if style == "dit":
            given["label"] |= dict(enter="adaln", positions="none", init_std=0.02)
    if text_length:
        enter = text_enter or {"uvit": "token", "dit": "adaln"}[style]
        given["text"] = dict(
            modality="text",
            shape=(text_length,),
            vocab_size=vocab_size,
            enter=enter,
            pooled=enter == "adaln",
            encoder_depth=encoder_depth,
        )
        if enter == "adaln":
            given["text"]["positions"] = "none"

    one = dict(
        modality="image",
        role="clean",
        shape=tuple(image_shape),
        patch_size=patch_size,
        positions=image.get("positions", "learned"),
        like="image",
        type="reference",
        optional=True,
        offset=offset,
        modulated_at="zero" if style == "dit" else "target",
    )
    references = _references(one, subjects, views, visibility)
    return model | dict(
        sequence=(*given, *references, "time", "image"),
        segments=dict(**given, **references, time=time, image=image),
        max_subjects=max_subjects,
        max_views=max_views,
        axes=tuple(axes),
    )


def with_references(model: Mapping[str, Any], subjects: int, views: int) -> dict[str, Any]:
    """The model config with references of so many subjects and views, of the same parameters.

    Args:
      model: a config that has `ref_1_1`, such as `to_dict(model.config)`; the others are made like
        it, and see one another as those that there are do.

    Raises:
      UvitError: if it has no such reference, or too few slots.
    """
    segments = dict(model["segments"])
    if "ref_1_1" not in segments:
        raise UvitError("the model takes no references (it has no segment 'ref_1_1')")
    for key, count in (("max_subjects", subjects), ("max_views", views)):
        if not 1 <= count <= model[key]:
            raise UvitError(f"the model has {key}={model[key]} slots, got {count}")
    old = [name for name in segments if name.startswith("ref_")]
    seen = set(segments["ref_1_1"]["sees"])
    apart = len({name.split("_")[1] for name in old}) > 1
    alone = apart and not any(name.split("_")[1] != "1" for name in seen)
    visibility = "full" if not seen else "ref_isolated" if alone else "ref_joint"
    new = _references(segments["ref_1_1"], subjects, views, visibility)
    sequence = [name for name in model["sequence"] if name not in old]
    at = model["sequence"].index(old[0])
    kept = {name: segment for name, segment in segments.items() if name not in old}
    return {
        **model,
        "sequence": (*sequence[:at], *new, *sequence[at:]),
        "segments": kept | new,
    }


def _references(
    one: Mapping[str, Any], subjects: int, views: int, visibility: str
) -> dict[str, dict[str, Any]]:
    """A segment for every view of every subject, like `one`."""
    grid = [(s, v) for s in range(1, subjects + 1) for v in range(1, views + 1)]
    names = {(s, v): f"ref_{s}_{v}" for s, v in grid}
    found = {}
    for s, v in grid:
        sees = {
            "full": (),
            "ref_isolated": tuple(names[pair] for pair in grid if pair[0] == s),
            "ref_joint": tuple(names.values()),
        }[visibility]
        found[names[s, v]] = dict(one) | dict(subject=s - 1, view=v - 1, sees=sees)
        if "name" in one:  # a parsed config's segments know theirs
            found[names[s, v]]["name"] = names[s, v]
    return found
