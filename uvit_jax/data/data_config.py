"""`DataConfig`: which data set is read, and how its records become images, labels and texts."""

import dataclasses
import math
from typing import Literal

from uvit_jax.config import Config, brief
from uvit_jax.errors import UvitError, nearest
from uvit_jax.paths import local_path
from uvit_jax.remote import is_gs

EMOJI_LABELS = ("group", "vendor", "subgroup")
EMOJI_VENDORS = ("noto", "twemoji", "fluent_flat", "fluent_3d")
WORLDS = ("totems", "emoji_scenes")
"""Rendered scenes with reference images of their subjects (`uvit_jax.data.sources.worlds`)."""
VIDEOS = ("totem_videos", "clips", "animated_emoji")
"""Sources of videos."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """A data set and its preprocessing.

    Attributes:
      name: "emoji" (embedded), "folder" (of images), "webdataset" (tar files), "huggingface" (a
        folder that `datasets.save_to_disk` has written), "latents" (written by
        `experiments.encode_latents`), "subjects" (images with reference images of their subjects,
        from a manifest or a folder, see `uvit_jax.data.sources.subjects`), "totems" or
        "emoji_scenes" (rendered scenes with reference images of their subjects), "totem_videos"
        (rendered scenes in motion), "clips" (a folder of videos, or a manifest of them),
        "animated_emoji" (embedded), any other key of `SOURCES` in
        `uvit_jax.data.sources.registry`, or the name of a TFDS data set such as "cifar10" or
        "imagenet2012", with or without the prefix "tfds:".
      path: the folder, for "folder", "latents" and further sources of files; for "subjects" and
        "clips" the folder or the manifest.
      data_dir: the folder of prepared TFDS data sets; "" is the default of TFDS.
      split: "train", "test", or a TFDS split such as "train[:10%]"; of totems and emoji scenes also
        "validation", and "test_pairs" (totems) or "test_vendor" (emoji scenes); of emoji with
        `hold_out` also "held_out".
      image_size: height and width in pixels. The short side is resized and the centre is cropped; 0
        keeps the images as they are, which must be of one size then.
      sizes: (H, W) in pixels, in place of `image_size`, for images that are not square or not of
        one size: each is cropped to the nearest of them (`uvit_jax.data.buckets`), and every batch
        is of one size. The model's shape is the first. Several are for "folder", "subjects",
        "clips", "webdataset" and "huggingface".
      channels: 3, or 1 for greyscale.
      flip: mirror training images horizontally with probability 1/2. Latents use the stored latents
        of mirrored images, which `--mirror` has encoded.
      background: a colour name or "#rrggbb", behind transparent images.
      labels: "" for none; "group", "vendor" or "subgroup" for emoji; "label" for the sub-folders of
        a folder; the name of a ClassLabel feature, mostly "label", for TFDS; "label" for latents,
        whatever the labels of their images were called; the `label_names` of further sources.
      text: whether to load captions as token ids.
      features: for latents, whether to load captions as the features of a text encoder, which
        `experiments.encode_text` has written.
      image_features: for latents, whether to load the images' features of a frozen encoder, which
        `experiments.encode_image_features` has written, as `clip_image`.
      text_length: tokens per caption, padding included.
      vocabulary: a file with a tokenizer's JSON; "" takes the known words from the captions of
        the source (of a TFDS data set, the class names).
      keep_vendors, keep_groups, keep_subgroups, keep_labels: for emoji, keep only these; empty
        keeps all. `keep_labels` has concepts, such as "grinning face".
      hold_out: of emoji, a vendor whose images of a fifth of the concepts are kept out of training,
        for the split "held_out"; other vendors' images of these concepts are trained on.
      max_subjects, max_views: the most subjects per image (1 to 7; of totems and emoji scenes 1 to
        3), and the most references per subject (0 to 16; of these worlds 0 to 4); the numbers are
        random, from 1 up to these.
      places: of data with references, the most references of all subjects together: an example
        has one subject with many of them or several with fewer, and the model takes `places`
        subjects with one view each. 0 has a reference for every view of every subject.
      portraits: of totems and emoji scenes, the share of training images that show one subject on
        plain ground, as references do, to prepare a model for fine-tuning on references.
      distractors: of totems and emoji scenes, the share of training images that have, if there is
        room for one, a reference of a subject that neither image nor caption has: what tells it
        from the others is its name alone.
      described: of totems and emoji scenes, the share of training images whose captions say who a
        subject is (`@1#3-7-2`, see `uvit_jax.described_names`), for a network that has no
        references to learn it from.
      frames: of videos, T, the frames of a clip; 0 for images. A TFDS data set with frames needs
        the prefix of its name, "tfds:".
      first_frames, last_frames: of videos, how many frames at the start and the end are inputs of
        their own, `first` and `last`, which a model can be given; of latents, latent frames.
      stills: of clips, whether images are mixed in as videos of one frame, in batches of their own:
        they train the segment `first` alone. Without it, they are skipped as too short.
      fps: of clips, frames per second; 0 keeps each file's own.
      autoencoder: the file of a frozen autoencoder in whose latents the model takes images,
        references and clips: they are encoded as batches are read, to mean latents (see
        `uvit_jax.autoencoders.encoded_dataset`). "" for pixels, and for latents encoded ahead.
      latent_scale: the factor of these latents; Stable Diffusion's is 0.18215.
      workers: threads that prepare batches; 0 prepares them in the caller's thread.
      processes: processes that prepare batches, each with `workers` threads, for when decoding is
        the bottleneck (large images and many cores); 0 for none.

    Raises:
      UvitError: on an impossible value, naming the key.
    """

    name: str = "emoji"
    path: str = ""
    data_dir: str = ""
    split: str = "train"
    image_size: int = 0
    sizes: tuple[tuple[int, ...], ...] = ()
    channels: Literal[1, 3] = 3
    flip: bool = False
    background: str = "white"
    labels: str = ""
    text: bool = False
    features: bool = False
    image_features: bool = False
    text_length: int = 16
    vocabulary: str = ""
    keep_vendors: tuple[str, ...] = ()
    keep_groups: tuple[str, ...] = ()
    keep_subgroups: tuple[str, ...] = ()
    keep_labels: tuple[str, ...] = ()
    hold_out: str = ""
    max_subjects: int = 2
    max_views: int = 3
    places: int = 0
    portraits: float = 0.0
    distractors: float = 0.0
    described: float = 0.0
    frames: int = 0
    first_frames: int = 0
    last_frames: int = 0
    stills: bool = False
    fps: float = 0.0
    autoencoder: str = ""
    latent_scale: float = 1.0
    workers: int = 2
    processes: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not self.name:
            raise UvitError(
                "name is empty; set it to a data set, such as 'emoji', 'folder', 'latents' or "
                "'tfds:cifar10'"
            )
        for key in ("path", "data_dir", "vocabulary", "autoencoder"):
            if key in ("data_dir", "autoencoder") or not is_gs(getattr(self, key)):
                local_path(getattr(self, key))  # raises for other URLs
        for key in ("image_size", "workers", "processes"):
            if getattr(self, key) < 0:
                raise UvitError(f"{key} must not be negative, got {getattr(self, key)}")
        self._check_sizes()
        for key in ("workers", "processes"):
            if getattr(self, key) > 1024:
                raise UvitError(f"{key} must be at most 1024, got {getattr(self, key)}")
        if not 0 < self.latent_scale < math.inf:
            raise UvitError(f"latent_scale must be positive and finite, got {self.latent_scale}")
        if self.text and self.text_length < 1:
            raise UvitError(f"text_length must be at least 1, got {self.text_length}")
        for key in ("features", "image_features"):
            if getattr(self, key) and self.name != "latents":
                raise UvitError(f"{key}=True needs name='latents', got {self.name!r}")
        if self.features and self.text:
            raise UvitError("text and features are two forms of the same captions; set only one")
        parse_colour(self.background)
        if self.name in ("folder", "latents", "subjects", "clips", "webdataset", "huggingface"):
            self._check_folder()
        elif self.path and self.name in ("emoji", "totem_videos", "animated_emoji", *WORLDS):
            raise UvitError(
                f"path needs name='folder' or 'latents', got name={self.name!r} and "
                f"path={self.path!r}"
            )
        if self.name == "emoji":
            if self.labels not in ("", *EMOJI_LABELS):
                hint = nearest(self.labels, EMOJI_LABELS)
                raise UvitError(f"labels={self.labels!r} is unknown for emoji{hint}")
            if self.hold_out not in ("", *EMOJI_VENDORS):
                hint = nearest(self.hold_out, EMOJI_VENDORS)
                raise UvitError(f"hold_out={self.hold_out!r} is not a vendor of emoji{hint}")
        else:
            self._check_no_emoji_filters()
        if self.name in WORLDS or self.name == "totem_videos":
            self._check_references(subjects=3, views=4)
            self._check_world()
        elif self.name == "subjects":
            self._check_references(subjects=7, views=16)
        self._check_frames()

    @property
    def target_sizes(self) -> tuple[tuple[int, int], ...]:
        """(H, W) that images are cropped to the nearest of; empty keeps them as they are."""
        return self.sizes or ((self.image_size, self.image_size),) * bool(self.image_size)

    def _check_sizes(self) -> None:
        if self.sizes and self.image_size:
            raise UvitError(f"sizes take the place of image_size={self.image_size}; set it to 0")
        if any(len(size) != 2 or min(size) < 1 for size in self.sizes):
            raise UvitError(f"sizes must be pairs (height, width), got {brief(self.sizes)}")
        if len(set(self.sizes)) < len(self.sizes):
            raise UvitError(f"sizes must be different, got {brief(self.sizes)}")
        if self.sizes and self.name in ("latents", "totem_videos", *WORLDS):
            raise UvitError(f"{self.name} do not support sizes; set sizes=()")

    def _check_frames(self) -> None:
        if self.name == "latents":
            if self.frames or self.last_frames or self.fps or self.first_frames < 0:
                raise UvitError(
                    "frames, last_frames and fps have no effect on latents, whose clips were cut "
                    "when they were encoded; set them to 0, and first_frames to at least 0"
                )
            return
        tfds = self.name.startswith("tfds:")
        if self.name not in VIDEOS and not (tfds and self.frames):
            if self.frames or self.first_frames or self.last_frames or self.fps:
                raise UvitError(
                    f"frames, first_frames, last_frames and fps are for videos "
                    f"({', '.join(VIDEOS)}, tfds:NAME with frames), but name={self.name!r}; set "
                    "them to 0"
                )
            return
        given = self.first_frames + self.last_frames
        if self.frames < 1 or min(self.first_frames, self.last_frames) < 0 or given >= self.frames:
            raise UvitError(
                f"frames={self.frames} must be at least 1, and more than first_frames + "
                f"last_frames, got {self.first_frames} + {self.last_frames}"
            )
        if self.stills and (self.name != "clips" or self.first_frames != 1 or self.last_frames):
            raise UvitError(
                "stills=True is for name='clips', whose first frame is a segment of its own: set "
                "first_frames to 1 and last_frames to 0"
            )
        if not 0 <= self.fps < 1000 or (self.fps and (tfds or self.name == "totem_videos")):
            raise UvitError(f"fps must lie in [0, 1000), and is for name='clips', got {self.fps}")

    def _check_folder(self) -> None:
        if not self.path:
            raise UvitError(f"name={self.name!r} needs path, the folder to read")
        if self.name in ("subjects", "clips") and self.labels:
            raise UvitError(f"{self.name} have no classes: leave labels empty, use text")
        if self.name == "huggingface":
            return
        if self.labels not in ("", "label"):
            raise UvitError(f"labels of a folder must be '' or 'label', got {self.labels!r}")
        if self.split != "train":
            raise UvitError(f"a folder has only the split 'train', got {self.split!r}")
        if self.name == "latents" and self.image_size:
            raise UvitError(
                f"image_size={self.image_size} has no effect on latents, whose size was set when "
                "they were encoded; set it to 0"
            )

    def _check_no_emoji_filters(self) -> None:
        filters = ("keep_vendors", "keep_groups", "keep_subgroups", "keep_labels", "hold_out")
        if keys := [key for key in filters if getattr(self, key)]:
            hint = nearest(self.name, ("emoji",))
            clear = " and ".join(f"{key}={type(getattr(self, key))()!r}" for key in keys)
            hint = hint if "mean" in hint else f"; clear them with {clear}"
            raise UvitError(f"{', '.join(keys)}: filters of emoji, but name={self.name!r}{hint}")

    def _check_references(self, *, subjects: int, views: int) -> None:
        shares = [(key, 0, 1) for key in ("portraits", "distractors", "described")]
        for key, least, most in (("max_subjects", 1, subjects), ("max_views", 0, views), *shares):
            if not least <= getattr(self, key) <= most:
                raise UvitError(f"{key} must lie in [{least}, {most}], got {getattr(self, key)}")
        if self.places and not (self.max_views and self.places >= self.max_subjects):
            raise UvitError(
                f"places={self.places} must be 0, or at least max_subjects={self.max_subjects} "
                "with max_views of 1 or more"
            )

    def _check_world(self) -> None:
        if self.channels != 3:
            raise UvitError(f"{self.name} need channels=3, got {self.channels}")
        if self.flip:
            raise UvitError(f"captions of {self.name} mention left and right: set flip to False")
        if self.labels:
            raise UvitError(f"{self.name} have no classes: leave labels empty, use text")
        if 0 < self.image_size < 16:
            raise UvitError(f"{self.name} need image_size of 16 or more, got {self.image_size}")


def parse_colour(name: str) -> tuple[int, int, int]:
    """A colour name or "#rrggbb" as red, green, blue in 0 to 255.

    Raises:
      UvitError: if it is neither.
    """
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UvitError(
            f"background={name!r} is not a colour; use a name such as 'white', or '#rrggbb'"
        ) from None
