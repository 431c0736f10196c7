"""What the contract of a data source promises is checked, whatever the source."""

from typing import ClassVar

import numpy as np
import pytest

from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.sources import registry
from uvit_jax.data.sources.source import Source
from uvit_jax.errors import UvitError


class Squares(Source):
    """Grey squares; `record` overrides what a record holds."""

    native_shape = (8, 8)
    label_names = ("shade",)
    record: ClassVar[dict] = {}

    def __init__(self, config):
        self.class_names = ("dark", "bright") if config.labels else ()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        pixels = np.full((8, 8, 3), 60 * index, np.uint8)
        record = {"image": pixels, "name": f"square {index}", "label": index // 2}
        return record | {"captions": ("a square",)} | self.record


@pytest.fixture
def open_squares(monkeypatch):
    def opened(record=None, **config):
        monkeypatch.setattr(Squares, "record", record or {})
        monkeypatch.setitem(registry.SOURCES, "squares", Squares)
        return dataset(DataConfig(name="squares", workers=0, **config))

    return opened


def test_images_may_be_arrays(open_squares):
    data = open_squares(labels="shade")
    batch = data.batch([0, 3])
    assert batch["image"].shape == (2, 8, 8, 3) and batch["label"].tolist() == [0, 1]
    np.testing.assert_allclose(batch["image"][1], 180 / 127.5 - 1, atol=1e-6)
    assert open_squares(image_size=4).batch([0])["image"].shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(labels="shape"), r"data\.labels='shape'.*did you mean 'shade'"),
        (dict(split="test"), r"data\.split='test'.*'?train"),
    ],
)
def test_values_that_the_source_does_not_declare_are_refused(open_squares, config, message):
    with pytest.raises(UvitError, match=message):
        open_squares(**config)


@pytest.mark.parametrize(
    "record, message",
    [
        ({"label": 2}, "square 1 has label=2.*class_names"),
        ({"label": None}, "square 1 has label=None.*class_names"),
        ({"label": -1}, "square 1 has label=-1.*class_names.*split"),
        ({"label": 0.5}, "square 1 has label=0.5.*class_names"),
        ({"label": float("nan")}, "square 1 has label=nan.*class_names"),
        ({"label": 2**40}, "square 1 has label=1099511627776.*class_names"),
        ({"captions": "a square"}, "square 1 has captions='a square'.*tuple"),
        ({"captions": None}, r"square 1 has captions=None.*data\.text=False"),
    ],
)
def test_a_wrong_record_is_named(open_squares, record, message):
    data = open_squares(record, labels="shade", text=True)
    with pytest.raises(UvitError, match=message):
        data.batch([1])


def test_a_record_may_have_no_caption(open_squares):
    data = open_squares({"captions": ()}, text=True)
    assert not data.batch([0])["text"].any()
