"""`DataConfig`: which pictures, at which size, with which labels and texts."""

import dataclasses

from uvit_jax.errors import UvitError, nearest

EMOJI_LABELS = ("group", "vendor", "subgroup")
WORLDS = ("totems", "emoji_scenes")
"""Pictures of subjects with references, drawn on the fly (`uvit_jax.data.subjects`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set and what is made of its pictures.

    Attributes:
      name: "emoji" (embedded), "folder" (of pictures), "latents" (that `experiments.encode_latents`
        has made), "totems" or "emoji_scenes" (subjects with references, drawn on the fly), or
        the name of a TFDS data set such as "cifar10" or "imagenet2012", with or without "tfds:"
        before it.
      path: the folder, for "folder" and "latents".
      data_dir: where TFDS keeps prepared data sets; "" is its default.
      split: "train", "test", or a TFDS split such as "train[:10%]"; of subjects also "validation",
        and "test_pairs" (totems) or "test_vendor" (emoji scenes).
      image_size: side in pixels. The short side is resized to it and the centre is cut out; 0
        keeps the pictures as they are, which have to be of one size then.
      channels: 3, or 1 for grey.
      flip: mirror each training picture with probability 1/2. For latents: take the encoding of
        the mirrored picture, which `--mirror` has stored.
      background: a colour name or "#rrggbb", put behind transparent pictures.
      labels: "" for none; "group", "vendor" or "subgroup" for emoji; "label" for the sub-folders of
        a folder; the name of a ClassLabel feature, mostly "label", for TFDS; for latents "label",
        whatever the labels were when they were made.
      text: whether to yield captions as token ids.
      features: for latents, whether to yield captions as the features of a text encoder, with which
        `experiments.encode_text` has encoded them.
      text_length: tokens in a caption, padding included.
      vocabulary: a file with a tokenizer's JSON; "" derives the known words from the captions (or
        the class names) of an emoji set or a folder, and from the class names of a TFDS set.
      keep_vendors, keep_groups, keep_subgroups, keep_labels: for emoji, keep only these; empty
        keeps all. The labels are concepts, such as "grinning face".
      max_subjects, max_views: of totems and emoji scenes, how many subjects a picture may have (1
        to 3), and how many references each of them (0 to 4); 1 up to these are drawn.
      places: of totems and emoji scenes, so many references in all, whosever they are: an example
        has one subject with more of them or several with fewer, and the model is one of `places`
        subjects of one view. 0 keeps a place for every view of every subject.
      portraits: of totems and emoji scenes, the share of training pictures that show one subject
        on plain ground, as references do; what is fine-tuned to references has then seen such.
      workers: threads that prepare batches; 0 prepares them in the caller's thread.
      processes: processes that do so instead, each with its own threads, where decoding is the
        bottleneck (large pictures and many cores); 0 for none.

    Raises:
      UvitError: on an impossible value, naming the key.
    """

    name: str = "emoji"
    path: str = ""
    data_dir: str = ""
    split: str = "train"
    image_size: int = 0
    channels: int = 3
    flip: bool = False
    background: str = "white"
    labels: str = ""
    text: bool = False
    features: bool = False
    text_length: int = 16
    vocabulary: str = ""
    keep_vendors: tuple[str, ...] = ()
    keep_groups: tuple[str, ...] = ()
    keep_subgroups: tuple[str, ...] = ()
    keep_labels: tuple[str, ...] = ()
    max_subjects: int = 2
    max_views: int = 3
    places: int = 0
    portraits: float = 0.0
    workers: int = 2
    processes: int = 0

    def __post_init__(self):
        if not self.name:
            known = ", ".join(map(repr, ("emoji", "folder", "latents", *WORLDS)))
            raise UvitError(f"name is empty; known: {known}, or a TFDS name")
        if self.name in ("folder", "latents") and not self.path:
            raise UvitError(f"name {self.name!r} needs a path, the folder to read")
        if self.path and self.name not in ("folder", "latents"):
            raise UvitError(
                f"path goes with name 'folder' or 'latents', got name {self.name!r} and path "
                f"{self.path!r}"
            )
        for key in ("image_size", "workers", "processes"):
            if getattr(self, key) < 0:
                raise UvitError(f"{key} must not be negative, got {getattr(self, key)}")
        if self.channels not in (1, 3):
            raise UvitError(f"channels must be 1 or 3, got {self.channels}")
        if self.text and self.text_length < 1:
            raise UvitError(f"text_length must be at least 1, got {self.text_length}")
        if self.name == "emoji":
            if self.labels not in ("", *EMOJI_LABELS):
                hint = nearest(self.labels, EMOJI_LABELS)
                raise UvitError(f"labels {self.labels!r} is unknown for emoji{hint}")
        else:
            for key in ("keep_vendors", "keep_groups", "keep_subgroups", "keep_labels"):
                if getattr(self, key):
                    hint = nearest(self.name, ("emoji",))
                    raise UvitError(
                        f"{key} filters emoji, and name is {self.name!r}"
                        f"{hint if 'mean' in hint else f'; clear the filter with {key}=()'}"
                    )
        if self.path and self.labels not in ("", "label"):
            raise UvitError(f"labels of a folder is '' or 'label', got {self.labels!r}")
        if self.path and self.split != "train":
            raise UvitError(f"a folder has the one split 'train', got {self.split!r}")
        if self.features and self.name != "latents":
            raise UvitError(f"features belong to name 'latents' only, got {self.name!r}")
        if self.features and self.text:
            raise UvitError("text and features are the same captions in two forms; set only one")
        if self.name == "latents" and self.image_size:
            raise UvitError(
                f"image_size of latents was settled when they were made, got {self.image_size}"
            )
        if self.name in WORLDS:
            self._check_world()
        colour(self.background)

    def _check_world(self) -> None:
        for key, least, most in (("max_subjects", 1, 3), ("max_views", 0, 4), ("portraits", 0, 1)):
            if not least <= getattr(self, key) <= most:
                raise UvitError(f"{key} must lie in [{least}, {most}], got {getattr(self, key)}")
        if self.places and not (self.max_views and self.places >= self.max_subjects):
            raise UvitError(
                f"places={self.places} must be 0, or at least max_subjects={self.max_subjects} "
                "with max_views of 1 or more"
            )
        if self.channels != 3:
            raise UvitError(f"{self.name} are in colour, got channels {self.channels}")
        if self.flip:
            raise UvitError(f"captions of {self.name} tell left from right: set flip to False")
        if self.labels:
            raise UvitError(f"{self.name} have no classes: leave labels empty, use text")
        if 0 < self.image_size < 16:
            raise UvitError(f"{self.name} need at least 16 pixels, got {self.image_size}")


def colour(name: str) -> tuple[int, int, int]:
    """A colour name or "#rrggbb" as red, green, blue in 0 to 255.

    Raises:
      UvitError: if it is neither.
    """
    from PIL import ImageColor

    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UvitError(
            f"background {name!r} is no colour; use a name such as 'white', or '#rrggbb'"
        ) from None
