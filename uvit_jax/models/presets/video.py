"""Video models with references, camera and amplitude in their sequence, as model configs.

    [text | ref_1_1, … | camera | amplitude | times | first | video | last]

The clip is the noisy segments `first`, `video` and `last`, which share their parameters and have a
time each. What is asked of one network follows from which of them are given (at time 0) and which
are generated:

    text → video                 generate all
    image → video                give `first`
    start and end → video        give `first` and `last`
    extension                    give the last frames of a clip as `first`, see `sampling.video`
    reference → video            all of these with `ref_{s}_{v}`, view v of the subject `@s`

`config.train.given` says how often each is given in training. An image is a video of one frame.
The backbone is a U-ViT (everything a token, long skips) or a DiT (time, amplitude and text by
adaLN-Zero, the others in context).
"""

from collections.abc import Mapping
from typing import Any

from uvit_jax.errors import UvitError
from uvit_jax.models.presets import unified

VIDEO_SEGMENTS = ("first", "video", "last")


def preset(
    style: str,
    shape: tuple[int, int, int, int],
    *,
    patch_size: int,
    patch_size_t: int = 1,
    first: int = 1,
    last: int = 1,
    camera: int = 0,
    follow_camera: bool = False,
    amplitude: int = 0,
    window: int = 0,
    subjects: int = 0,
    views: int = 1,
    position: str = "rope",
    text: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The model config of a video model.

    Args:
      style: `uvit` or `dit`.
      shape: (T, H, W, C) of the whole clip, in pixels or latents.
      patch_size, patch_size_t: of the clip's tubelets. References are images, and with
        patch_size_t > 1 have an embedding of their own.
      first, last: how many frames at the start and end are segments of their own, which can be
        given; multiples of patch_size_t, 0 for none.
      camera: numbers in each frame's camera token, 0 for none; 5 of a planar one, such as that of
        totems (`camera.PLANAR`). The token is added to the frame's patches as well; otherwise a
        network has to learn which token is of which patches.
      follow_camera: whether the clip's patches have the positions of the points that a planar
        camera shows (`Patches.follow_camera`).
      amplitude: numbers of the motion's amplitude (`Motion.size`), 0 for none.
      window: frames of a window of attention, a multiple of patch_size_t: a token of the clip sees
        the tokens of its own window of so many frames and of the two beside it, and all that is not
        of the clip; 0 for all frames.
      subjects, views: of the references (H, W, C).
      position: of the clip and the references, `rope` (on frames, rows and columns), `sincos` (the
        same, or with a camera, which brings the frame's, on rows and columns) or `learned`.
      text: fields of the text segment, as for `unified.preset`.
      options: the further arguments of `unified.preset`, such as `visibility`, `offset`,
        `max_subjects` and the keys of `BackboneConfig`.

    Raises:
      UvitError: as `unified.preset`, or if no frame is left for `video`, or follow_camera has no
        camera.
    """
    frames, *image_shape = shape
    if min(first, last) < 0 or first + last >= frames:
        raise UvitError(
            f"first={first} and last={last} must be at least 0, and less than the {frames} frames "
            "together"
        )
    if follow_camera and not camera:
        raise UvitError("follow_camera=True needs a camera; give camera=5, or leave it out")
    model = unified.preset(
        style,
        tuple(image_shape),
        patch_size=patch_size,
        subjects=subjects,
        views=views,
        position=position,
        text=text,
        **options,
    )
    segments = dict(model["segments"])
    time, image = segments.pop("time"), segments.pop("image")
    for number, name in enumerate(n for n in segments if n.startswith("ref_")):
        # Images have no tubelets of several frames; the first reference's embedding serves all.
        share = "video" if patch_size_t == 1 else "ref_1_1" if number else ""
        segments[name] = segments[name] | dict(share=share)
    if camera:
        own = "rope" if position == "rope" else "learned"
        segments["camera"] = dict(kind="camera", shape=(frames, camera), position=own)
    if amplitude:
        enter = dict(enter="token") if style == "uvit" else dict(enter="adaln", position="none")
        segments["amplitude"] = dict(kind="scalars", shape=(amplitude,)) | enter
    lengths = dict(first=first, video=frames - first - last, last=last)
    starts = dict(first=0, video=first, last=frames - last)
    parts = [name for name in VIDEO_SEGMENTS if lengths[name]]
    for name in parts:
        segments["time" if name == "video" else f"time_{name}"] = time | dict(time=name)
    for name in parts:
        segments[name] = image | dict(
            shape=(lengths[name], *image_shape), patch_size_t=patch_size_t, start=starts[name]
        )
        if camera:
            follow = dict(follow_camera=True) if follow_camera else {}
            segments[name] |= dict(frames_from="camera") | follow
        segments[name] |= dict(window=window) if name == "video" else dict(share="video")
    return model | dict(sequence=tuple(segments), segments=segments)
