"""Batches are a pure function of (seed, position), whatever the hosts, workers, interruptions."""

import collections
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data import dataset as dataset_module
from uvit_jax.data.batches import BatchLoader, batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.errors import UvitError

COUNT = 23


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    """23 images of 4x6 random pixels in two classes, with captions, mirrored at random."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        name = folder / "ab"[i % 2] / f"{i:02}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).save(name)
        name.with_suffix(".txt").write_text(f"number {i}")
    return DataConfig(
        name="folder", path=str(folder), flip=True, labels="label", text=True, text_length=12
    )


@pytest.fixture(scope="module")
def data(config):
    return dataset(config)


def take(data, count, **arguments):
    return list(itertools.islice(batches(data, **{"seed": 0, **arguments}), count))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype and (a[key] == b[key]).all(), key


def test_shapes_dtypes_and_ranges(data):
    batch = take(data, 1, batch_size=8)[0]
    described = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert described == {
        "image": ((8, 4, 6, 3), "float32"),
        "label": ((8,), "int32"),
        "text": ((8, 12), "int32"),
        "index": ((8,), "int64"),
    }
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1


def test_rows_are_the_decoded_records_mirrored_or_not(data):
    mirrored = 0
    for batch in take(data, 40, batch_size=8):
        for image, label, text, index in zip(
            *(batch[k] for k in ("image", "label", "text", "index")), strict=True
        ):
            record = data.decode(data.source[int(index)])
            same, flipped = (
                (image == record["image"]).all(),
                (image == record["image"][:, ::-1]).all(),
            )
            assert same != flipped
            mirrored += flipped
            assert label == record["label"] and (text == record["text"]).all()
    assert abs(mirrored - 160) < 5 * np.sqrt(80)


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("train", [True, False])
def test_hosts_divide_the_same_global_batches(data, hosts, train):
    whole = take(data, 7, batch_size=8, train=train)
    parts = [
        take(data, 7, batch_size=8, train=train, rows=range(first, first + 8 // hosts))
        for first in range(0, 8, 8 // hosts)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("position", [0, 1, 2, 3, 7, 11])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resuming_is_exact(data, position, workers):
    data = dataset(dataclasses.replace(data.config, workers=workers))
    iterator = batches(data, batch_size=5, seed=3)
    for _ in range(position):
        next(iterator)
    assert iterator.position == position
    wanted = list(itertools.islice(iterator, 4))
    resumed = batches(data, batch_size=5, seed=3, start=position)
    assert_same(wanted, list(itertools.islice(resumed, 4)))
    assert iterator.position == resumed.position == position + 4


def test_a_position_is_valid_on_another_number_of_hosts(data):
    two = batches(data, batch_size=8, seed=0, rows=range(4, 8))
    next(two), next(two), next(two)
    four = [
        batches(data, batch_size=8, seed=0, rows=r, start=two.position) for r in ((4, 5), (6, 7))
    ]
    half, quarters = next(two), [next(iterator) for iterator in four]
    for key in half:
        assert (half[key] == np.concatenate([q[key] for q in quarters])).all()


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_closing_ends_an_iterator_without_moving_it(config, processes):
    data = dataset(dataclasses.replace(config, processes=processes))
    iterator = batches(data, batch_size=5, seed=3)
    wanted = [next(iterator), next(iterator)]
    iterator.close()
    iterator.close()
    assert iterator.position == 2
    assert_same(wanted, take(data, 2, batch_size=5, seed=3))


def test_a_pass_can_be_resumed_up_to_its_end(data):
    whole = list(batches(data, batch_size=8, seed=0, train=False))
    for start in range(len(whole) + 1):
        rest = batches(data, batch_size=8, seed=0, train=False, start=start)
        assert_same(whole[start:], list(rest))
        assert rest.position == len(whole)


def test_every_epoch_is_another_permutation_and_nothing_is_dropped(data):
    indices = np.concatenate([b["index"] for b in take(data, 4 * COUNT, batch_size=5)])
    epochs = indices[: 5 * 4 * COUNT // COUNT * COUNT].reshape(-1, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_every_record_comes_first_about_equally_often(data):
    first = collections.Counter(
        int(data_index) for seed in range(COUNT * 40) for data_index in [_order(data, seed)]
    )
    assert len(first) == COUNT
    assert max(first.values()) < 40 + 6 * np.sqrt(40) and min(first.values()) > 40 - 6 * np.sqrt(40)


def _order(data, seed):
    return BatchLoader(data, batch_size=1, seed=seed, rows=[0], train=True).order[0]


def test_the_seed_decides_order_and_mirroring(data):
    one, again, other = (take(data, 6, batch_size=8, seed=s) for s in (1, 1, 2))
    assert_same(one, again)
    assert any((a["index"] != b["index"]).any() for a, b in zip(one, other, strict=True))
    # The epoch is part of the order, and seed 2 is no later epoch of seed 1.
    order = {s: [_order_of_epoch(data, s, e) for e in range(4)] for s in range(4)}
    flat = [tuple(o) for orders in order.values() for o in orders]
    assert len(set(flat)) == len(flat)


def _order_of_epoch(data, seed, epoch):
    batch = take(data, 1, batch_size=COUNT, seed=seed, start=epoch)[0]
    return batch["index"].tolist()


def test_mirroring_differs_between_epochs_and_is_off_without_flip(data, config):
    seen = collections.defaultdict(set)
    for batch in take(data, 30, batch_size=COUNT):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            seen[int(index)].add(image.tobytes())
    assert all(len(images) == 2 for images in seen.values())
    plain = dataset(dataclasses.replace(config, flip=False))
    for batch in take(plain, 5, batch_size=8):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            assert (image == plain.decode(plain.source[int(index)])["image"]).all()


def test_one_pass_in_order_without_training(data):
    got = list(batches(data, batch_size=8, seed=0, train=False))
    indices = np.concatenate([batch["index"] for batch in got])
    assert indices.tolist() == [*range(COUNT), -1]
    for batch in got:
        for image, index in zip(batch["image"], batch["index"], strict=True):
            record = data.source[max(int(index), 0)]
            assert (image == data.decode(record)["image"]).all()  # -1 repeats the first


def test_batches_larger_than_the_data_set(data):
    indices = take(data, 2, batch_size=3 * COUNT)[1]["index"]
    assert collections.Counter(indices.tolist()) == dict.fromkeys(range(COUNT), 3)
    padded = list(batches(data, batch_size=3 * COUNT, seed=0, train=False))
    assert len(padded) == 1 and (padded[0]["index"] >= 0).sum() == COUNT


def test_caching_changes_nothing(config, data, monkeypatch):
    monkeypatch.setattr(dataset_module, "CACHE_BYTES", 0)
    uncached = dataset(config)
    assert uncached._cached_pixels is None
    assert_same(take(data, 12, batch_size=8), take(uncached, 12, batch_size=8))


def test_a_data_set_can_be_pickled_without_its_cache(data):
    take(data, 6, batch_size=8)
    copy = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 10_000
    assert_same(take(data, 6, batch_size=8), take(copy, 6, batch_size=8))


@pytest.mark.slow
def test_worker_processes_change_nothing(config, data):
    forked = dataclasses.replace(config, processes=2, workers=1)
    assert_same(take(data, 9, batch_size=8, start=2), take(forked, 9, batch_size=8, start=2))


def test_impossible_arguments(data):
    with pytest.raises(UvitError, match="batch_size must be at least 1, got 0"):
        batches(data, batch_size=0, seed=0)
    for rows in ([8], [-1], []):
        with pytest.raises(UvitError, match=r"rows of a batch of 8 must lie in \[0, 8\)"):
            batches(data, batch_size=8, seed=0, rows=rows)
    with pytest.raises(UvitError, match="must not be negative"):
        batches(data, batch_size=8, seed=-1)
    for start in (-1, 4):
        with pytest.raises(UvitError, match=rf"start={start} must lie in \[0, 3\]"):
            batches(data, batch_size=8, seed=0, train=False, start=start)
