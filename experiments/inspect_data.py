"""Checks a run's data before training, and shows examples.

    python -m experiments.inspect_data --config=configs/own_subjects.py:photos --out=examples.png

It opens everything that training would read. What cannot be read, a caption that does not name its
subjects, and a caption of too many tokens are errors, with the files; nothing is written then.
Otherwise it prints numbers, and writes a sheet with an example in each row: its references, the
target and the caption.
"""

import collections
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments import cli

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from uvit_jax.data.dataset import Dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    from uvit_jax import io
    from uvit_jax.config import parse
    from uvit_jax.data import pipeline
    from uvit_jax.data.data_config import DataConfig
    from uvit_jax.errors import UvitError

    parser = cli.Parser(__doc__, example="--config.data.path=photos")
    parser.add_argument(
        "--out", metavar="FILE", default="examples.png", help="the sheet (default: %(default)s)"
    )
    parser.add_argument("--count", metavar="N", type=int, default=8, help="of examples on it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse(argv)
    if args.count < 1 or args.seed < 0:
        raise UvitError("--count must be at least 1, and --seed not negative")
    config = cli.read_config(args.config, args.overrides)
    data = pipeline.dataset(parse(DataConfig, config.get("data", {}), "config.data"))
    facts = summary(data)
    for key, value in facts.items():
        print(f"{key}: {value}")
    io.save_png(sheet(data, args.count, args.seed), args.out)
    print(f"{args.out}: {args.count} examples")
    cli.write_json(args.json, facts)
    return 0


def summary(data: "Dataset") -> dict[str, Any]:
    """What a user checks before training, by a description of it."""

    from uvit_jax.data.sources.subjects import SubjectSource

    source = data.source
    facts: dict[str, Any] = {
        "examples per epoch": len(data),
        "image": "×".join(map(str, data.image_shape)),
    }
    if data.buckets is not None:
        counts = data.counts().items()
        facts["examples by size"] = ", ".join(f"{'×'.join(map(str, s))}: {n}" for s, n in counts)
    if data.class_names:
        facts["classes"] = f"{data.num_classes}: {', '.join(data.class_names[:8])}"
    if data.tokenizer is not None and source.captions:
        counts = [_tokens(data, c) for c in source.captions]
        facts["captions"] = (
            f"{len(counts)} different, of {min(counts)} to {max(counts)} tokens (text_length "
            f"{data.config.text_length})"
        )
        facts["ids of words"] = f"{data.tokenizer.vocab_size} (the text segment's vocab_size)"
    if isinstance(source, SubjectSource):
        by_count = collections.Counter(len(e.references) for e in source.examples)
        views = [len(files) for e in source.examples for files in e.references]
        copies = sum(e.image in sum(e.references, ()) for e in source.examples)
        facts["files"] = len(source.files)
        facts["images by number of subjects"] = ", ".join(
            f"{number}: {count}" for number, count in sorted(by_count.items())
        )
        facts["references per subject"] = (
            f"{min(views)} to {max(views)}, median {statistics.median(views):g}"
        )
        if copies:
            facts["images among their own references"] = f"{copies}; the model learns to copy them"
    return facts


def _tokens(data: "Dataset", caption: str) -> int:
    return int((data.tokenizer.encode(caption, data.config.text_length) != 0).sum())


def sheet(data: "Dataset", count: int, seed: int) -> "Image.Image":
    """Random examples as training sees them, one in each row: references, then the target."""
    import itertools

    import numpy as np

    from uvit_jax import io
    from uvit_jax.data.batches import batches

    examples = list(itertools.islice(batches(data, batch_size=1, seed=seed), count))
    batch = examples[0]
    names = [*sorted(name for name in batch if _is_image(name, batch[name], data)), "image"]
    images = [_as_images(example[name])[0] for example in examples for name in names]
    captions = [""] * len(images)
    if "text" in batch and data.tokenizer is not None:
        texts = [data.tokenizer.decode(example["text"][0]) for example in examples]
        captions[len(names) - 1 :: len(names)] = texts
    shape = np.max([image.shape for image in images], axis=0)
    sheet = np.ones((len(images), *shape), np.float32)
    for cell, image in zip(sheet, images, strict=True):
        if image.any():  # absent references are blank
            cell[: image.shape[0], : image.shape[1]] = image
    return io.grid(sheet, columns=len(names), captions=captions)


def _is_image(name: str, value: "np.ndarray", data: "Dataset") -> bool:
    return name.startswith("ref_") and value.shape[1:] == tuple(data.image_shape)


def _as_images(values: "np.ndarray") -> "np.ndarray":
    """Images, or the first three channels of latents, clipped to [-1, 1]."""
    return values.copy() if values.shape[-1] in (1, 3) else values[..., :3].clip(-1, 1)


if __name__ == "__main__":
    cli.run(main)
