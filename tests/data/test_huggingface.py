"""Saved data sets of Hugging Face, read through pyarrow without `datasets`."""

import json
import pickle

import numpy as np
import pytest

from tests.data.test_webdataset import image
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError

pa = pytest.importorskip("pyarrow")

CLASSES = {"_type": "ClassLabel", "names": ["grey_cat", "dog"]}
TEXT = {"_type": "Value", "dtype": "string"}


def columns(values, **more):
    images = [{"bytes": image(v, (8 + 4 * (v > 99), 8)), "path": None} for v in values]
    labels = [i % 2 for i in range(len(values))]
    return {"image": images, "label": labels, **more}


def save(folder, shards, features=None, **state):
    """The files that `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        table = pa.table(shard)
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    kinds = {"image": {"_type": "Image"}, "label": CLASSES, "caption": TEXT}
    info = {"features": {k: v for k, v in kinds.items() if k in shards[0]} | (features or {})}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None} | state))
    return folder


def config(path, **more):
    options = {"image_size": 8, "workers": 0, **more}
    return DataConfig(name="huggingface", path=str(path), **options)


def test_rows_of_all_shards_in_order(tmp_path):
    shards = [columns([0, 51], caption=["a", "b"]), columns([102], caption=["c"])]
    data = dataset(config(save(tmp_path / "d", shards), text=True, labels="label"))
    data = pickle.loads(pickle.dumps(data))
    batch = data.batch([2, 0, 1])
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], [-0.2, -1, -0.6], atol=1e-6)
    assert data.class_names == ("grey_cat", "dog") and batch["label"].tolist() == [0, 0, 1]
    assert [data.tokenizer.decode(t) for t in batch["text"]] == ["c", "a", "b"]
    sized = dataset(config(tmp_path / "d", image_size=0, sizes=((8, 8), (8, 12))))
    assert sized.buckets.tolist() == [0, 0, 1]


def test_splits_lists_of_captions_and_names_of_classes(tmp_path):
    save(tmp_path / "d" / "train", [columns([0, 0])])
    texts = {"texts": [["a", "b"], ["c"]]}
    listed = {"texts": {"_type": "List", "feature": TEXT}}
    save(tmp_path / "d" / "test", [columns([0, 0], **texts)], listed)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    train = dataset(config(tmp_path / "d", text=True))
    assert [train.source[i]["captions"] for i in range(2)] == [("grey cat",), ("dog",)]
    test = dataset(config(tmp_path / "d", text=True, split="test"))
    assert [test.source[i]["captions"] for i in range(2)] == [("a", "b"), ("c",)]
    with pytest.raises(UvitError, match="no split 'tset'; did you mean 'test'"):
        dataset(config(tmp_path / "d", split="tset"))


@pytest.mark.parametrize(
    "shard, more, state, message",
    [
        ({"caption": ["x"]}, {}, {}, "no column of images, but caption"),
        (columns([0]), dict(labels="lable"), {}, "did you mean 'label'"),
        (columns([0], caption=[None]), dict(text=True), {}, "row 0 has no text.*'caption'"),
        ({"image": columns([0])["image"]}, dict(text=True), {}, "neither captions"),
        (columns([0]), dict(split="test"), {}, "has no splits"),
        (columns([0]), {}, {"_data_files": [{"filename": "../x.arrow"}]}, "damaged; save"),
        (columns([0]), {}, {"_data_files": [{"filename": "gone.arrow"}]}, r"gone\.arrow .*save"),
        (columns([0]), {}, {"_data_files": []}, "no rows"),
        ({**columns([0]), "image": [{"bytes": None, "path": "/etc/passwd"}]}, {}, {}, "no bytes"),
    ],
)
def test_what_is_missing_is_named(tmp_path, shard, more, state, message):
    folder = save(tmp_path / "d", [shard], **state)
    with pytest.raises(UvitError, match=message):
        dataset(config(folder, **more)).batch([0])


def test_folders_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(UvitError, match="nowhere does not exist"):
        dataset(config(tmp_path / "nowhere"))
    with pytest.raises(UvitError, match=r"no state\.json.*name='folder'"):
        dataset(config(tmp_path))
    folder = save(tmp_path / "d", [columns([0])])
    (folder / "data-00000-of-00001.arrow").write_bytes(b"x" * 40)
    with pytest.raises(UvitError, match=r"arrow cannot be read.*save the data set again"):
        dataset(config(folder))
