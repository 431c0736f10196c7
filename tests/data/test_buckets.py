"""Images of several sizes: every example once an epoch, in batches of one size."""

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.batches import batches
from uvit_jax.data.buckets import BucketOrder, nearest_sizes
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.dataset import ImageDataset, SourceSubset
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError

SIZES = ((16, 16), (12, 20), (20, 12))
SHAPES = [(40, 40)] * 7 + [(30, 50)] * 5 + [(50, 30), (64, 20)]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    """14 images of three aspect ratios, the last of which no batch of 4 is full of in an epoch."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SHAPES):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return DataConfig(name="folder", path=str(folder), sizes=SIZES, workers=0, flip=True)


@pytest.fixture(scope="module")
def data(config):
    return dataset(config)


def take(data, count, **arguments):
    return list(itertools.islice(batches(data, **{"seed": 0, **arguments}), count))


def test_images_get_the_nearest_ratio_and_then_a_resolution_that_does_not_enlarge_them():
    assert nearest_sizes([(99, 101), (30, 99), (90, 60)], SIZES).tolist() == [0, 1, 2]
    sizes = [(32, 32), (64, 64), (48, 80), (128, 128)]
    shapes = [(31, 31), (60, 63), (64, 64), (500, 500), (40, 66)]
    assert nearest_sizes(shapes, sizes).tolist() == [0, 0, 1, 3, 2]


@pytest.mark.parametrize("counts", [(7, 5, 2), (1, 8), (40, 3, 3), (4, 4), (1,)])
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_every_record_is_used_once_an_epoch_whatever_fills_a_batch(counts, batch_size):
    buckets = np.repeat(np.arange(len(counts)), counts)
    order, N, epochs = BucketOrder(buckets, batch_size=batch_size, seed=0), len(buckets), 12
    used = {}  # position in the sequence of all epochs → record
    for number in range(order.batches_before(epochs)):
        indices, positions = order[number]
        assert len(indices) == batch_size and len(set(buckets[indices])) == 1
        assert not used.keys() & set(positions.tolist())  # no position twice
        assert positions.max() < epochs * N
        used |= dict(zip(positions.tolist(), indices.tolist(), strict=True))
    waiting = epochs * N - len(used)
    assert waiting < batch_size * len(counts)
    for epoch in range(epochs):
        seen = [used[p] for p in range(epoch * N, (epoch + 1) * N) if p in used]
        assert len(set(seen)) == len(seen)  # no record twice in an epoch
    # What is not used yet is the end of the sequence of each size.
    for bucket, count in enumerate(counts):
        own = [i for i in used.values() if buckets[i] == bucket]
        assert len(own) == epochs * count // batch_size * batch_size
        times = np.bincount([i - sum(counts[:bucket]) for i in own], minlength=count)
        assert times.max() - times.min() <= max(1, -(-batch_size // count))


def test_epochs_differ_and_the_order_follows_from_the_seed_alone():
    buckets = np.arange(60) % 3

    def order(seed):
        return BucketOrder(buckets, batch_size=4, seed=seed)

    one, again, other = order(1), order(1), order(2)
    batches = [one[k] for k in range(30)]
    for k in (29, 3, 17):  # in any order, as threads and resumed runs ask
        assert np.array_equal(pickle.loads(pickle.dumps(again))[k], batches[k])
    assert any(not np.array_equal(other[k], batches[k]) for k in range(15))
    assert [b[0].tolist() for b in batches[:15]] != [b[0].tolist() for b in batches[15:]]


def test_batches_have_the_pixels_of_their_size_on_any_number_of_hosts(data):
    taken = take(data, 12, batch_size=4)
    assert {batch["image"].shape[1:3] for batch in taken} == set(SIZES)
    for batch in taken:
        for index, image in zip(batch["index"], batch["image"], strict=True):
            plain = data.decode(data.source[int(index)])["image"]
            assert (image == plain).all() or (image == plain[:, ::-1]).all()
    halves = [take(data, 5, batch_size=4, rows=rows) for rows in ((0, 1), (2, 3))]
    for whole, *parts in zip(taken, *halves, strict=False):
        assert np.array_equal(whole["image"], np.concatenate([p["image"] for p in parts]))
    resumed = take(data, 3, batch_size=4, start=9)
    assert all((a["image"] == b["image"]).all() for a, b in zip(taken[9:], resumed, strict=True))


def test_the_examples_of_a_size_are_a_data_set_and_one_pass_reads_each(data):
    parts = data.by_size()
    assert [(size, len(part)) for size, part in parts.items()] == list(
        zip(SIZES, (7, 5, 2), strict=True)
    )
    names = []
    for size, part in parts.items():
        got = list(batches(part, batch_size=3, seed=0, train=False))
        assert all(batch["image"].shape[1:3] == size for batch in got)
        names += [part.source[i]["name"] for b in got for i in b["index"] if i >= 0]
    assert sorted(names) == sorted(data.source[i]["name"] for i in range(len(data)))
    assert len(pickle.loads(pickle.dumps(data)).one_size((12, 20))) == 5
    with pytest.raises(UvitError, match="by_size"):
        batches(data, batch_size=4, seed=0, train=False)


def test_one_size_that_is_not_square(config):
    data = dataset(dataclasses.replace(config, sizes=((12, 20),)))
    batch = take(data, 1, batch_size=4)[0]
    assert data.buckets is None and batch["image"].shape == (4, 12, 20, 3)


def test_subjects_have_targets_of_several_sizes_and_references_of_the_first(config, tmp_path):
    rows = [
        {"image": f"{config.path}/{i:02}.png", "caption": "@1", "references": {"@1": ["r.png"]}}
        for i in range(len(SHAPES))
    ]
    Image.new("RGB", (9, 7)).save(tmp_path / "r.png")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    data = dataset(dataclasses.replace(config, name="subjects", path=str(manifest), max_views=1))
    for batch in take(data, 9, batch_size=3):
        assert batch["image"].shape[1:3] == data.size_of(int(batch["index"][0]))
        assert batch["ref_1_1"].shape == (3, 16, 16, 3)


def test_clips_of_several_sizes(tmp_path):
    for i, (height, width) in enumerate(SHAPES):
        (tmp_path / f"{i:02}.frames").mkdir()
        for t in range(3):
            Image.new("RGB", (width, height)).save(tmp_path / f"{i:02}.frames" / f"{t}.png")
    data = dataset(
        DataConfig(
            name="clips", path=str(tmp_path), frames=3, first_frames=1, sizes=SIZES, workers=0
        )
    )
    for batch in take(data, 6, batch_size=3):
        size = data.size_of(int(batch["index"][0]))
        assert {k: v.shape[1:] for k, v in batch.items() if k != "index"} == data.shapes_at(size)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image_size=16), "image_size=16; set it to 0"),
        (dict(sizes=((16,),)), r"sizes must be pairs \(height, width\)"),
        (dict(sizes=((0, 4),)), r"sizes must be pairs \(height, width\)"),
        (dict(sizes=((4, 4), (4, 4))), "sizes must be different"),
        (dict(name="totems", path=""), "totems do not support sizes"),
    ],
)
def test_impossible_sizes(config, changes, message):
    with pytest.raises(UvitError, match=message):
        dataclasses.replace(config, **changes)


def test_sources_without_shapes_take_one_size(config, data):
    class Plain(SourceSubset):
        shapes = None

    source = Plain(data.source, np.arange(2))
    with pytest.raises(UvitError, match=r"sizes: .*set one"):
        ImageDataset(config, source, None)
    small = ImageDataset(dataclasses.replace(config, sizes=SIZES[1:2]), source, None)
    assert small.batch([0, 1])["image"].shape == (2, 12, 20, 3)
