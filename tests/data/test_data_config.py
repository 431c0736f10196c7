"""Impossible data configs raise an error that names the key."""

import pytest

from uvit_jax.config import parse, to_dict
from uvit_jax.data.data_config import DataConfig
from uvit_jax.errors import UvitError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "name is empty"),
        ({"name": "folder"}, "needs path"),
        ({"path": "/x"}, "path needs name='folder'"),
        ({"image_size": -1}, "image_size must not be negative, got -1"),
        ({"workers": -2}, "workers must not be negative, got -2"),
        ({"channels": 4}, "config.data.channels=4 is not a known value; known: 1, 3"),
        ({"text": True, "text_length": 0}, "text_length must be at least 1"),
        ({"labels": "grup"}, "labels='grup' is unknown for emoji; did you mean 'group'"),
        ({"name": "cifar10", "keep_groups": ["x"]}, "clear them with keep_groups=()"),
        ({"name": "emojis", "keep_groups": ["x"]}, "did you mean 'emoji'"),
        ({"name": "folder", "path": "/x", "labels": "group"}, "must be '' or 'label'"),
        ({"name": "folder", "path": "/x", "split": "test"}, "only the split 'train'"),
        ({"background": "whit"}, "background='whit'"),
        ({"imagesize": 3}, "config.data.imagesize is not a known key; did you mean 'image_size'"),
        ({"keep_vendors": "noto"}, "config.data.keep_vendors must be a list"),
    ],
)
def test_errors_name_the_key(values, message):
    with pytest.raises(UvitError) as error:
        parse(DataConfig, values, "config.data")
    assert message in str(error.value) and "config.data" in str(error.value)


def test_a_config_survives_its_mapping():
    config = DataConfig(labels="vendor", keep_groups=("objects",), background="#102030")
    assert parse(DataConfig, to_dict(config)) == config
