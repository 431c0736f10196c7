"""Conditions by flag and by data: every record once, and in the model's own terms."""

import numpy as np
import pytest

import uvit_jax
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.data.vocabulary import TextFeatures, Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import unified
from uvit_jax.models.presets.uvit import preset
from uvit_jax.sampling.conditions import (
    check_names,
    conditions_for,
    conditions_like,
    uniform_labels,
    with_features,
)
from uvit_jax.sampling.sampler import SampleConfig


def model(channels=3, **options):
    sizes = dict(patch_size=4, width=16, depth=2, num_heads=2) | options
    return uvit_jax.build(preset("S", (8, 8, channels), **sizes))


class Data:
    """Ten records of two classes and two captions each; as another split, numbered in reverse."""

    class_names = ("cat", "dog")

    def __init__(self):
        self.source = [{"label": int(i < 3), "captions": (f"a {i}", f"b {i}")} for i in range(10)]

    def __len__(self):
        return len(self.source)

    def label(self, record):
        return record["label"]


def test_labels_are_distributed_as_the_datas_and_mean_the_models_classes():
    net, vocabulary = model(num_classes=3), Vocabulary(("bird", "dog", "cat"))
    found = conditions_like(net, Data(), vocabulary, 40, seed=1)
    assert np.bincount(found["label"], minlength=3).tolist() == [0, 12, 28]
    other = conditions_like(net, Data(), vocabulary, 40, seed=2)
    assert not np.array_equal(found["label"], other["label"])
    # Fewer samples than records: a random choice among all of them.
    few = [conditions_like(net, Data(), vocabulary, 2, seed)["label"] for seed in range(40)]
    assert {1, 2} <= set(np.ravel(few))
    with pytest.raises(UvitError, match="not trained on the class 'dog'"):
        conditions_like(net, Data(), Vocabulary(("cat",)), 40, seed=1)


def test_without_class_names_labels_are_the_datas_numbers():
    found = conditions_like(model(num_classes=2), Data(), Vocabulary(), 40, seed=1)
    assert np.bincount(found["label"]).tolist() == [28, 12]
    with pytest.raises(UvitError, match="class 'dog' has index 1"):
        conditions_like(model(num_classes=1), Data(), Vocabulary(), 40, seed=1)
    nameless = Data()
    nameless.class_names = ()
    with pytest.raises(UvitError, match=r"config\.data\.labels"):
        conditions_like(model(num_classes=2), nameless, Vocabulary(), 4, seed=1)


def test_classes_that_the_model_lacks_are_refused():
    net, names = model(num_classes=2), Vocabulary(("cat", "dog", "bird"))
    for label in ("-1", "2", "-0", "1.0", "9" * 5000):
        with pytest.raises(UvitError, match="is not a class"):
            conditions_for(net, Vocabulary(), SampleConfig(count=1, labels=(label,)))
    for labels in ((), ("bird",)):
        with pytest.raises(UvitError, match=r"3 classes.*num_classes=2.*vocabulary\.json"):
            conditions_for(net, names, SampleConfig(count=1, labels=labels))
    with pytest.raises(UvitError, match=r"num_classes=2.*vocabulary\.json"):
        uniform_labels(net, names, 4, seed=0)
    assert names.class_name(-1) == "-1"


def test_uniform_labels_are_each_class_equally_often_in_random_order():
    net = model(num_classes=5)
    found = uniform_labels(net, Vocabulary(), 52, seed=0)["label"]
    assert sorted(np.bincount(found)) == [10, 10, 10, 11, 11] and found.dtype == np.int32
    assert not np.array_equal(found, uniform_labels(net, Vocabulary(), 52, seed=1)["label"])
    # Of the classes that were trained, where it is known which.
    named = uniform_labels(net, Vocabulary(("cat", "dog")), 10, seed=0)["label"]
    assert np.bincount(named).tolist() == [5, 5]
    with pytest.raises(UvitError, match=r"--labels=uniform.*no condition"):
        uniform_labels(model(), Vocabulary(), 10, seed=0)


def test_features_of_another_encoder_are_refused():
    null = np.arange(6, dtype=np.float32).reshape(2, 3)
    known = with_features(Vocabulary(("cat",)), TextFeatures(null))
    assert known.classes == ("cat",) and known.features.null is null
    assert with_features(known, TextFeatures(null.astype(np.float16))) is known
    for other in (null + 1, null[:1]):
        with pytest.raises(UvitError, match="not the one that the model was trained with"):
            with_features(known, TextFeatures(other))


def test_captions_are_the_datas_in_the_models_tokens():
    tokenizer = Tokenizer(("a", "b", "5"))
    net = model(vocab_size=300, text_length=6)
    found = conditions_like(net, Data(), Vocabulary((), tokenizer), 20, seed=0)
    texts = [tokenizer.decode(row) for row in found["text"]]
    assert found["text"].shape == (20, 6)
    assert sorted(t[2:] for t in texts) == sorted(2 * [str(i) for i in range(10)])
    assert {t[0] for t in texts} == {"a", "b"}


class Shown(Data):
    """Ten examples, each of which says in every input which it is."""

    def batch(self, indices):
        numbers = np.asarray(indices, np.float32)
        pictures = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 8, 8, 3))
        refs = {"ref_1_1": pictures, "refs_present": np.ones((len(numbers), 1, 1), bool)}
        return {"image": pictures, "text": numbers.astype(np.int32)[:, None], **refs}


@pytest.fixture(scope="module")
def unified_model():
    sizes = dict(patch_size=4, width=16, depth=2, num_heads=2, text=dict(shape=(1,), vocab_size=12))
    return uvit_jax.build(unified.preset("uvit", (8, 8, 3), subjects=1, **sizes))


def test_all_conditions_of_a_sample_are_of_one_example(unified_model):
    found = conditions_like(unified_model, Shown(), Vocabulary(), 20, seed=0)
    assert found.keys() == {"ref_1_1", "refs_present", "text"}
    parts = [np.array([3, 1]), np.arange(4, 20)]  # in whatever parts they are asked for
    for rows in parts:
        assert np.array_equal(found["ref_1_1"][rows][:, 0, 0, 0], found["text"][rows][:, 0])
    everyone = found["text"][np.arange(20)][:, 0]
    assert np.bincount(everyone).tolist() == [2] * 10  # each once before any comes twice
    assert sorted(everyone[:10]) == list(range(10)) and everyone[:10].tolist() != list(range(10))


def test_conditions_that_the_data_lack_raise(unified_model):
    plain = Shown()
    plain.batch = lambda indices: {"image": np.zeros((len(indices), 8, 8, 3), np.float32)}
    with pytest.raises(UvitError, match=r"segment 'ref_1_1'.*--images"):
        conditions_like(unified_model, plain, Vocabulary(), 4, seed=0)
    tokenizer = Tokenizer(("@1",))
    with pytest.raises(UvitError, match="--references=FOLDER"):
        conditions_for(unified_model, Vocabulary((), tokenizer), SampleConfig(count=2))


@pytest.mark.parametrize(
    "prompt, subjects, message",
    [
        ("@1 beside @3", 2, "names @3, which has no references"),
        ("@2 from behind", 2, "does not name @1, which has references"),
        ("a beach", 1, "does not name @1"),
        ("mail me@2", 1, "does not name @1"),
    ],
)
def test_prompts_name_the_subjects_that_have_references(prompt, subjects, message):
    with pytest.raises(UvitError, match=message):
        check_names(prompt, subjects)


@pytest.mark.parametrize("prompt", ["@1, @2 and @1", "@2* on the left of @1#3-1"])
def test_prompts_that_name_all_subjects_are_taken(prompt):
    check_names(prompt, 2)
