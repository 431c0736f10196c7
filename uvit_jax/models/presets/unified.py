"""Models with reference images in their sequence, as model configs.

    [text | ref_1_1, ref_1_2, …, ref_S_V | time | image]

`ref_{s}_{v}` is view v of subject s, both from 1; captions call subject s `@s`. The backbone is a
U-ViT (everything a token, long skips) or a DiT (time and text by adaLN-Zero, references in
context).

Plain nested dicts: config files call `preset` without importing JAX.
"""

from collections.abc import Mapping
from typing import Any

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import dit, uvit

# What references attend to, by name; all other tokens attend to everything.
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
    text: Mapping[str, Any] | None = None,
    position: str = "",
    offset: str = "none",
    axes: tuple[str, ...] = (),
    reference_patch_size: int = 0,
    **backbone: Any,
) -> dict[str, Any]:
    """The model config of a unified sequence.

    Args:
      style: `uvit` or `dit`; the backbone has the published settings of U-ViT-S or DiT-S.
      image_shape: (H, W, C) of the target and of every reference. patch_size: of both, unless
        `reference_patch_size` gives the references another, with an embedding of their own.
      subjects, views: S and V; an example may have fewer (`refs_present`). With 0 subjects it is
        the style's text-to-image model.
      max_subjects, max_views: trained slots; 0 for S and V. With more, the same parameters support
        layouts of more subjects and views.
      visibility: `full`; `ref_isolated`, a subject's views attend only to one another; or
        `ref_joint`, references attend only to references. The last two can be cached.
      text: fields of the text segment (`dict(shape=(24,), vocab_size=320)`), None for no text. By
        default it enters as tokens in a U-ViT and, pooled, by adaLN in a DiT. If it has `names`,
        references take the vector of their subject's name from it.
      position: of all images, `learned`, `sincos` or `rope`; "" for the style's.
      offset: `diagonal` offsets the RoPE position ids of references, as UNO does.
      axes: of RoPE; with `segment`, references are rotated by their number as well.
      backbone: any other key of `BackboneConfig`.

    Raises:
      UvitError: for an unknown name, or fewer slots than subjects or views.
    """
    for key, value, known in (
        ("style", style, STYLES),
        ("visibility", visibility, VISIBILITIES),
    ):
        if value not in known:
            raise UvitError(f"{key}={value!r} is not a known value{nearest(value, known)}")
    if subjects < 0 or views < 1:
        raise UvitError(f"subjects must be at least 0 and views 1, got {subjects} and {views}")
    max_subjects, max_views = max_subjects or subjects, max_views or views
    for key, count, slots in (("subjects", subjects, max_subjects), ("views", views, max_views)):
        if count > slots:
            raise UvitError(
                f"{key}={count}, but the model has max_{key}={slots} slots; raise max_{key} before "
                f"training, or use fewer {key}"
            )
    if style == "uvit":
        model = uvit.preset("S", image_shape, patch_size=patch_size)
    else:
        model = dit.preset("S", image_shape, patch_size=patch_size, learned_range=False)
        del model["segments"]["label"]
    model["backbone"] |= backbone
    time, image = (model["segments"][name] for name in ("time", "image"))
    if position:
        image["position"] = position

    conditions: dict[str, Any] = {}
    if text:
        conditions["text"] = dict(kind="text", enter="token" if style == "uvit" else "adaln") | text
        if conditions["text"]["enter"] == "adaln":
            conditions["text"] |= dict(pooled=True, position="none")

    reference = dict(
        kind="patches",
        role="clean",
        shape=tuple(image_shape),
        patch_size=reference_patch_size or patch_size,
        position=image.get("position", "learned"),
        share="image" if reference_patch_size in (0, patch_size) else "ref_1_1",
        names_from="text" if text and text.get("names") else "",
        type="reference",
        optional=True,
        offset=offset,
        modulation="clean" if style == "dit" else "time",
    )
    references = _references(reference, subjects, views, visibility)
    return model | dict(
        sequence=(*conditions, *references, "time", "image"),
        segments=dict(**conditions, **references, time=time, image=image),
        max_subjects=max_subjects,
        max_views=max_views,
        axes=tuple(axes),
    )


def add_references(
    model: Mapping[str, Any],
    subjects: int,
    views: int = 1,
    *,
    visibility: str = "ref_joint",
    image: str = "image",
) -> dict[str, Any]:
    """The config of a trained model without references, with references at the end of its sequence.

    References are embedded like the image. All other tokens attend to them through gates that start
    closed (see `Segment.gated`): with the trained parameters, and any values for the new ones, the
    model predicts what it did. The gates open in training.

    Args:
      model: such as `to_dict(model.config)`.
      subjects, views, visibility: as of `preset`.
      image: the segment of patches that references look like.

    Raises:
      UvitError: if the model has references or no such segment, there is no subject or view, or
        the visibility is unknown.
    """
    segments = dict(model["segments"])
    if visibility not in VISIBILITIES:
        hint = nearest(visibility, VISIBILITIES)
        raise UvitError(f"visibility={visibility!r} is not a known value{hint}")
    if min(subjects, views) < 1:
        raise UvitError(f"subjects and views must be at least 1, got {subjects} and {views}")
    if model.get("max_subjects") or any(name.startswith("ref_") for name in segments):
        raise UvitError("the model has references already; see `with_references`")
    if segments.get(image, {}).get("kind") != "patches":
        known = [name for name, segment in segments.items() if segment["kind"] == "patches"]
        raise UvitError(f"{image!r} is not a segment of patches{nearest(image, known)}")
    reference = dict(segments[image]) | dict(
        role="clean", time="", share=image, type="reference", optional=True, gated=True
    )
    if model["backbone"].get("modulation", "none") != "none":
        reference["modulation"] = "clean"
    references = _references(reference, subjects, views, visibility)
    return {
        **model,
        "sequence": (*model["sequence"], *references),
        "segments": segments | references,
        "max_subjects": subjects,
        "max_views": views,
    }


def with_references(model: Mapping[str, Any], subjects: int, views: int) -> dict[str, Any]:
    """The model config with another number of references, for the same parameters.

    Args:
      model: a config with a segment `ref_1_1`, such as `to_dict(model.config)`; the new references
        have its fields and the visibility of the existing ones.

    Raises:
      UvitError: if it has no references, or too few slots.
    """
    segments = dict(model["segments"])
    if "ref_1_1" not in segments:
        raise UvitError("the model takes no references: it has no segment 'ref_1_1'")
    for key, count in (("max_subjects", subjects), ("max_views", views)):
        if not 1 <= count <= model[key]:
            raise UvitError(f"the model has {key}={model[key]} slots, got {count}")
    old = [name for name in segments if name.startswith("ref_")]
    seen = set(segments["ref_1_1"]["sees"])
    several = len({name.split("_")[1] for name in old}) > 1
    isolated = several and not any(name.split("_")[1] != "1" for name in seen)
    visibility = "full" if not seen else "ref_isolated" if isolated else "ref_joint"
    new = _references(segments["ref_1_1"], subjects, views, visibility)
    sequence = [name for name in model["sequence"] if name not in old]
    at = model["sequence"].index(old[0])
    others = {name: segment for name, segment in segments.items() if name not in old}
    return {
        **model,
        "sequence": (*sequence[:at], *new, *sequence[at:]),
        "segments": others | new,
    }


def _references(
    reference: Mapping[str, Any], subjects: int, views: int, visibility: str
) -> dict[str, dict[str, Any]]:
    """A segment like `reference` for every view of every subject."""
    grid = [(s, v) for s in range(1, subjects + 1) for v in range(1, views + 1)]
    names = {(s, v): f"ref_{s}_{v}" for s, v in grid}
    references = {}
    for s, v in grid:
        sees = {
            "full": (),
            "ref_isolated": tuple(names[pair] for pair in grid if pair[0] == s),
            "ref_joint": tuple(names.values()),
        }[visibility]
        name = names[s, v]
        references[name] = dict(reference) | dict(slot=(s - 1, v - 1), sees=sees, name=name)
        if reference["share"] in ("", "ref_1_1"):  # the first one has their parameters
            references[name]["share"] = "ref_1_1" if (s, v) != (1, 1) else ""
    return references
