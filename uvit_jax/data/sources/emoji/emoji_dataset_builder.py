"""The TFDS builder of the embedded emoji; open it with `prepared.builder`.

It needs no download and no TensorFlow. Images are re-encoded as PNG, which keeps the alpha channel
of fully opaque images and which every TFDS reader can decode.
"""

import io
import zipfile
from importlib import resources

import tensorflow_datasets as tfds
from PIL import Image

from uvit_jax.data.sources import emoji

# A new images.zip needs a new VERSION, or machines with the old one prepared would keep it.
IMAGES_SHA256 = "e39613fc85b406d43228ac5d9f1ab755c8ef34e1f77f10ca96fba25fd90e8f66"


class Builder(tfds.core.GeneratorBasedBuilder):
    """Emoji of four vendors. `test` holds about 5% of the concepts, by all vendors."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Noto, Twemoji, Fluent flat and Fluent 3D."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        subgroups = sorted({record["subgroup"] for record in emoji.index()})
        return self.dataset_info_from_configs(
            description="Emoji images with captions, for experiments that need no download.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 4), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(emoji.GROUPS)),
                    "vendor": tfds.features.ClassLabel(names=list(emoji.VENDORS)),
                    "subgroup": tfds.features.ClassLabel(names=subgroups),
                    "caption": tfds.features.Text(),
                    "concept": tfds.features.Text(),
                    "key": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://emojibase.dev",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str):
        with (resources.files(emoji) / "images.zip").open("rb") as file:
            archive = zipfile.ZipFile(file)
            for record in emoji.index():
                if record["split"] != split:
                    continue
                webp = archive.read(record["key"] + ".webp")
                png = io.BytesIO()
                Image.open(io.BytesIO(webp)).convert("RGBA").save(png, "PNG", compress_level=3)
                yield (
                    record["key"],
                    {
                        "image": png.getvalue(),
                        "label": record["group"],
                        "vendor": record["vendor"],
                        "subgroup": record["subgroup"],
                        "caption": record["caption"],
                        "concept": record["label"],
                        "key": record["key"],
                    },
                )
