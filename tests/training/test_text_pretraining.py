"""An encoder that has read captions tells the place of every name, and a run leaves it alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import uvit_jax
from uvit_jax.data import pipeline
from uvit_jax.data.data_config import DataConfig
from uvit_jax.errors import UvitError
from uvit_jax.models.presets import unified
from uvit_jax.tokens.modalities.text import Text
from uvit_jax.training import text_pretraining
from uvit_jax.training.loop import train
from uvit_jax.training.run_config import TextPretrainingConfig, parse_run, pretraining_data

NAMES = (257, 258, 259)
TEXT = dict(shape=(24,), vocab_size=320, encoder_depth=2, encoder_width=32, names=NAMES)
DATA = dict(name="totems", image_size=16, text=True, text_length=24, workers=0, max_views=1)


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    monkeypatch.setattr(text_pretraining, "CAPTIONS", 512)


def config(**pretraining):
    return dict(
        model=unified.preset(
            "uvit", (16, 16, 3), patch_size=8, subjects=2, max_subjects=3, text=TEXT, width=32,
            depth=2, num_heads=2,
        ),
        data=DATA,
        optimizer=dict(warmup_steps=0, learning_rate=1e-2, weight_decay=0.5),
        train=dict(steps=2, batch_size=2, checkpoint_every=1),
        sample=dict(sampler=dict(name="ddim", steps=1), count=1),
        text_pretraining=dict(steps=3, batch_size=4) | pretraining,
    )  # fmt: skip


def shares_read(steps):
    """How often a linear map of the output at a name tells that subject's place in two-subject
    scenes, on captions that it was not fitted to."""
    dataset = pipeline.dataset(DataConfig(**DATA))
    segment = Text(name="text", **TEXT)
    pretraining = TextPretrainingConfig(steps=steps, batch_size=64)
    if steps:
        params, _ = text_pretraining.pretrained(pretraining, segment, dataset, seed=0)
    embedding = segment.embedding(32, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(embedding)
    if steps:
        full = nnx.to_pure_dict(state)
        params["encoder"]["proj"] = full["encoder"]["proj"]
        nnx.replace_by_pure_dict(state, params)
    embedding = nnx.merge(graph, state)
    scenes = [dataset.source[i]["scene"] for i in range(600)]
    scenes = [scene for scene in scenes if len(scene.subjects) == 2]
    ids = jnp.stack([dataset.tokenizer.encode(scene.caption, 24) for scene in scenes])
    features_BTE = embedding.encoder.features(embedding.table(ids))
    names_BST = segment.names_in({"text": ids})[:, :2]
    x = np.asarray(jnp.einsum("bst,bte->bse", names_BST, features_BTE)).reshape(-1, 32)
    y = np.array([1 if p == "left" else -1 for scene in scenes for p in scene.facts.places])
    half = len(x) // 2
    weights = np.linalg.lstsq(np.c_[x, np.ones(len(x))][:half], y[:half], rcond=None)[0]
    return np.mean(np.sign(np.c_[x, np.ones(len(x))][half:] @ weights) == y[half:])


def test_the_place_of_every_name_can_be_read_from_its_vector():
    assert shares_read(200) > 0.97
    assert shares_read(0) < 0.8


def test_neighbours_are_the_words_on_either_side():
    """The loss is 0 for the exact distributions, and positive for those of the other side."""
    V, ids = 6, jnp.array([[4, 5, 5, 0]])
    before, after = ([0], [4], [4, 5]), ([5], [5], [0])

    def logits(*sides):
        shares = np.full((1, 4, 2, V), 1e-9)
        for d, side in enumerate(sides):
            for t, words in enumerate(side):
                shares[0, t, d, words] = 1 / len(words)
        return jnp.log(shares.reshape(1, 4, 2 * V))

    assert text_pretraining.neighbours_loss(logits(before, after), ids) < 1e-6
    assert text_pretraining.neighbours_loss(logits(after, before), ids) > 1


def test_the_encoder_does_not_depend_on_the_models_width():
    dataset = pipeline.dataset(DataConfig(**DATA))
    pretraining = parse_run(config()).text_pretraining
    segment = Text(name="text", **TEXT)
    one, _ = text_pretraining.pretrained(pretraining, segment, dataset, seed=1)
    assert "proj" not in one["encoder"]
    params = uvit_jax.build(config()["model"]).init(jax.random.key(0))
    merged = text_pretraining.with_encoder(params, "text", one)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    named = unified.preset("uvit", (16, 16, 3), patch_size=8, subjects=1, text=TEXT, width=64)
    wide = uvit_jax.build(named).abstract_params["embed"]["segments"]["text"]["encoder"]
    assert jax.tree.map(jnp.shape, wide["blocks"]) == jax.tree.map(
        jnp.shape, one["encoder"]["blocks"]
    )
    again, _ = text_pretraining.pretrained(pretraining, segment, dataset, seed=1)
    jax.tree.map(np.testing.assert_array_equal, one, again)


def test_a_run_starts_with_the_encoder(tmp_path):
    run = parse_run(config())
    train(run, tmp_path / "run")
    params = uvit_jax.load(tmp_path / "run", ema=False)[1]["embed"]["segments"]["text"]
    encoder, _ = text_pretraining.pretrained(
        run.text_pretraining,
        run.model.segments["text"],
        pipeline.dataset(run.data),
        seed=run.seed,
    )
    for name, value in encoder["encoder"].items():
        jax.tree.map(np.testing.assert_array_equal, params["encoder"][name], value)
    fresh = uvit_jax.build(run.model).init(jax.random.split(jax.random.key(run.seed))[0])
    proj = fresh["embed"]["segments"]["text"]["encoder"]["proj"]["kernel"]
    assert not np.array_equal(params["encoder"]["proj"]["kernel"], proj)
    # A resumed run is not pretrained again: it continues to the losses of an undisturbed one.
    half = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=1))
    train(half, tmp_path / "two")
    train(run, tmp_path / "two")
    two = uvit_jax.load(tmp_path / "two", ema=False)[1]["embed"]["segments"]["text"]
    jax.tree.map(np.testing.assert_array_equal, params, two)


def test_captions_may_be_of_other_scenes_than_the_images():
    run = parse_run(config(data=dict(max_subjects=3)))
    segment = run.model.segments["text"]
    counts = []
    for data in (run.data, pretraining_data(run)):
        dataset = pipeline.dataset(data)
        captions = text_pretraining.read_captions(run.text_pretraining, segment, dataset)
        named_NS = captions.named_NST.sum(-1) > 0
        assert ((captions.facts_NSF[..., 0] >= 0) == named_NS).all()
        counts.append(set(named_NS.sum(1).tolist()))
    assert counts == [{1, 2}, {1, 2, 3}]


def test_its_flops_are_counted():
    pretraining = TextPretrainingConfig(steps=10, batch_size=8)
    flops = text_pretraining.flops(pretraining, Text(name="text", **TEXT))
    T, E = 24, 32
    macs = 2 * (12 * T * E * E + 2 * T * T * E)
    assert flops == 6 * 80 * (macs + T * E)


def test_pretraining_without_an_encoder_raises():
    def fails(message, change):
        given = config()
        change(given)
        with pytest.raises(UvitError, match=message):
            parse_run(given)

    fails(
        r"text_pretraining\.segment='txt' is not a text.*did you mean 'text'",
        lambda c: c["text_pretraining"].update(segment="txt"),
    )
    fails(
        r"set encoder_depth and encoder_width",
        lambda c: c["model"]["segments"]["text"].update(encoder_width=0),
    )
    fails(
        r"text_pretraining\.data\.max_subject is not a known key.*'max_subjects'",
        lambda c: c["text_pretraining"].update(data=dict(max_subject=3)),
    )
    fails("learning_rate positive", lambda c: c["text_pretraining"].update(learning_rate=0))
    dataset = pipeline.dataset(DataConfig(**(DATA | dict(text=False))))
    nameless = Text(name="text", **(TEXT | dict(names=())))
    with pytest.raises(UvitError, match=r"facts=True needs .*names in .*set it to False"):
        named = pipeline.dataset(DataConfig(**DATA))
        text_pretraining.read_captions(TextPretrainingConfig(), nameless, named)
    with pytest.raises(UvitError, match=r"config\.data\.text=True"):
        text_pretraining.pretrained(
            TextPretrainingConfig(steps=1), Text(name="text", **TEXT), dataset, seed=0
        )
