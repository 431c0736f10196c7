"""Scenes as a data source: names and shapes of a model's inputs, hosts, resuming."""

import itertools

import numpy as np
import pytest

from uvit_jax.data.batches import batches
from uvit_jax.data.pipeline import DataConfig, dataset
from uvit_jax.data.sources.worlds import backgrounds, evaluation_sets, scenes
from uvit_jax.errors import UvitError


@pytest.fixture(scope="module", params=["totems", "emoji_scenes"])
def data(request):
    return dataset(
        DataConfig(
            name=request.param, image_size=16, text=True, text_length=24, max_views=2, workers=0
        )
    )


def take(data, count, **arguments):
    return list(itertools.islice(batches(data, **{"seed": 0, **arguments}), count))


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


def test_inputs(data):
    batch = take(data, 1, batch_size=6)[0]
    described = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    image = ((6, 16, 16, 3), "float32")
    assert described == {
        "image": image,
        **{f"ref_{s}_{v}": image for s in (1, 2) for v in (1, 2)},
        "refs_present": ((6, 2, 2), "bool"),
        "text": ((6, 24), "int32"),
        "index": ((6,), "int64"),
    }
    for s, v in itertools.product((0, 1), (0, 1)):
        shown = np.abs(batch[f"ref_{s + 1}_{v + 1}"]).max(axis=(1, 2, 3)) > 0
        assert (shown == batch["refs_present"][:, s, v]).all()
    assert batch["refs_present"][:, 0, 0].all()
    for row in range(6):
        caption = data.tokenizer.decode(batch["text"][row])
        assert caption.replace(" ,", ",") == data.source[batch["index"][row]]["captions"][0]
        assert ("@2" in caption) == batch["refs_present"][row, 1].any()


def test_captions_are_known_words_and_fit(data):
    longest = 0
    config = DataConfig(name=data.config.name, max_subjects=3)
    for index in range(300):
        (caption,) = dataset(config).source[index]["captions"]
        ids = data.tokenizer.encode(caption, 24)
        assert (ids[ids > 0] > 256).all(), caption
        longest = max(longest, (ids > 0).sum())
    assert longest <= 24


def test_hosts_divide_the_same_batches_and_resuming_is_exact(data):
    whole = take(data, 3, batch_size=4)
    parts = [take(data, 3, batch_size=4, rows=rows) for rows in ((0, 1), (2, 3))]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert_same(whole, joined)
    assert_same(whole[1:], take(data, 2, batch_size=4, start=1))


def test_a_setting_is_a_batch_too(data):
    case = evaluation_sets.cases(data.config.name, "two_subjects", subjects=1)[0]
    assert data.inputs(case.scene)["refs_present"].tolist() == [[True, True], [True, True]]
    three = evaluation_sets.cases(data.config.name, "three_subjects", subjects=1)[0]
    with pytest.raises(UvitError, match=r"3 subjects.* 2"):
        data.inputs(three.scene)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_subjects": 4}, r"max_subjects must lie in \[1, 3\]"),
        ({"max_views": 5}, r"max_views must lie in \[0, 4\]"),
        ({"flip": True}, "set flip to False"),
        ({"labels": "group"}, "leave labels empty"),
        ({"channels": 1}, "channels=3"),
        ({"distractors": 2.0}, r"distractors must lie in \[0, 1\]"),
        ({"split": "trian"}, "did you mean 'train'"),
        ({"text": True}, "text_length 16 is too small"),
    ],
)
def test_errors_name_the_key(wrong, message):
    with pytest.raises(UvitError, match=message):
        dataset(DataConfig(name="totems", **wrong))


def test_reference_slots_number_the_references_of_all_subjects():
    config = dict(name="totems", image_size=16, text=True, text_length=24, max_subjects=2)
    packed = dataset(DataConfig(**config, max_views=2, places=2))
    batch = packed.batch(range(60))
    assert {"ref_1_1", "ref_2_1"} <= set(batch) and "ref_1_2" not in batch
    whose = batch["subject_slots"][batch["refs_present"][:, 1, 0]]
    assert {tuple(row) for row in whose.tolist()} == {(0, 0), (0, 1)}
    for i in range(60):
        scene = packed.source[i]["scene"]
        for p in range(2):
            s, v = batch["subject_slots"][i, p], batch["view_slots"][i, p, 0]
            here = batch[f"ref_{p + 1}_1"][i]
            if batch["refs_present"][i, p, 0]:
                assert (here == scenes.render(scene, 16).references[s, v]).all()
            else:
                assert not here.any()


def test_distractors_are_references_and_nothing_else():
    config = dict(name="totems", image_size=16, text=True, text_length=24, max_subjects=2)
    options = dict(max_views=2, places=2)
    plain = dataset(DataConfig(**config, **options)).batch(range(40))
    data = dataset(DataConfig(**config, **options, distractors=1.0))
    batch = data.batch(range(40))
    assert (batch["image"] == plain["image"]).all() and (batch["text"] == plain["text"]).all()
    added = batch["refs_present"] & ~plain["refs_present"]
    assert (added[:, :, 0] == [0, 1]).all(axis=1).sum() > 5
    for i in range(40):
        scene = data.source[i]["scene"]
        room = len(scene.subjects) == 1 and plain["refs_present"][i].sum() == 1
        assert added[i].any() == room == bool(scene.distractors)
        if room:
            assert batch["subject_slots"][i].tolist() == [0, 1] and "@2" not in scene.caption
            assert scene.distractors[0].identity != scene.subjects[0].identity
            assert (batch["ref_2_1"][i] != batch["ref_1_1"][i]).any()
            assert (batch["ref_1_1"][i] == plain["ref_1_1"][i]).all()
    held_out = dataset(DataConfig(**config, **options, distractors=1.0, split="validation"))
    assert not any(held_out.source[i]["scene"].distractors for i in range(20))


def test_portraits_are_alone_on_plain_ground_and_views_may_be_none():
    config = dict(name="totems", image_size=32, text=True, text_length=24, max_subjects=2)
    with_them = dataset(DataConfig(**config, max_views=0, portraits=1.0))
    scene = with_them.source[3]["scene"]
    assert len(scene.subjects) == 1 and scene.facts.background == "plain"
    assert scene.caption.endswith("in the middle on plain grey")
    row = with_them.inputs(scene)
    assert set(row) == {"image", "text"}
    assert np.allclose(row["image"][0], 2 * backgrounds.PLAIN_COLOUR - 1, atol=1e-5)
    alone = scenes.portrait("totems", scene.subjects[0].identity, scene.subjects[0].pose, 32)
    assert np.abs(alone - row["image"])[:20].max() < 1e-4  # below is the shadow that scenes have
    # Without references, the targets are the same.
    plain = dataset(DataConfig(**config, max_views=0))
    other = dataset(DataConfig(**config, max_views=1))
    for i in range(5):
        assert (plain.batch([i])["image"] == other.batch([i])["image"]).all()
