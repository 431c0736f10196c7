"""Opens data sets: `dataset(config)` finds the source that `config.name` names.

    data = dataset(config)                               # random access, classes, tokenizer
    for batch in batches(data, batch_size=64, seed=0):   # {"image", "index", ["label", "text"]}

`batches` is in `batches.py`. `sources/source.py` says how to add a source.
"""

import dataclasses
import os

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import Dataset, ImageDataset
from uvit_jax.data.sources.registry import open_source
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.errors import UvitError
from uvit_jax.remote import fetched, is_gs

__all__ = ["DataConfig", "Dataset", "dataset"]


def dataset(config: DataConfig) -> Dataset:
    """Opens a data set. The embedded emoji are prepared on first use; nothing is downloaded but a
    `path` in `gs://`, into the cache (see `remote.fetched`).

    Raises:
      UvitError: if the data set is unknown, not prepared, empty or broken, or lacks what the config
        asks for.
    """
    if is_gs(config.path):
        config = dataclasses.replace(config, path=os.fspath(fetched(config.path)))
    source = open_source(config)
    tokenizer = None
    if config.text:
        tokenizer = _read_tokenizer(config.vocabulary) if config.vocabulary else source.tokenizer()
        for caption in source.captions or ():
            try:
                tokenizer.encode(caption, config.text_length)
            except UvitError as error:
                raise UvitError(f"text_length {config.text_length} is too small: {error}") from None
    return (source.dataset_class or ImageDataset)(config, source, tokenizer)


def _read_tokenizer(path: str) -> Tokenizer:
    try:
        return Tokenizer.from_json(fetched(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UvitError(f"cannot read the vocabulary {path}: {error.strerror}") from None
