"""The embedded data set: 6474 emoji of four vendors, 64x64 RGBA, with captions and classes.

    images.zip                   lossless WebP, one file per image, `VENDOR/CODE.webp`
    index.json                   one record per image, in the order of the zip
    emoji_source.py              the data source
    emoji_dataset_builder.py     the TFDS builder over the zip and the index
    prepared.py                  prepares it on first use, also when many processes start at once
    ATTRIBUTION.md               sources, licences and notices

`tools/build_emoji.py` writes the zip and the index from pinned packages.
"""

VENDORS = ("noto", "twemoji", "fluent_flat", "fluent_3d")

GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
)


def index() -> list[dict]:
    """The records of both splits: key, vendor, code, label, group, subgroup, caption, split, tags.

    `label` is the concept in words, unique among concepts; `code` is the same in code points.
    """
    import json
    from importlib import resources

    text = (resources.files(__name__) / "index.json").read_text(encoding="utf-8")
    return json.loads(text)
