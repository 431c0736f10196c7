"""The vectors of subjects' own words: nothing at first, trained alone, and PEFT's names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from tests.models.test_lora import noise
from uvit_jax.data.tokenizer import Tokenizer
from uvit_jax.diffusion.objective import ObjectiveConfig
from uvit_jax.diffusion.schedule import ScheduleConfig
from uvit_jax.errors import UvitError
from uvit_jax.interop import adapters
from uvit_jax.interop.adapters import AdapterRecord
from uvit_jax.models import lora
from uvit_jax.models.lora import LoraConfig
from uvit_jax.models.presets import unified
from uvit_jax.training.examples import stacked
from uvit_jax.training.finetune import FinetuneConfig, Finetuner, tree_index

TEXT = dict(
    shape=(4,), vocab_size=270, names=(257, 258), attributes=(3, 2), encoder_depth=1,
    encoder_heads=2, encoder_width=8, enter="token",
)  # fmt: skip
MODEL = uvit_jax.build(
    unified.preset(
        "uvit", (8, 8, 3), patch_size=4, subjects=0, max_subjects=2, text=TEXT, width=16, depth=2,
        num_heads=2,
    )
)  # fmt: skip
PARAMS = noise(MODEL.abstract_params, 0)
WORDS = LoraConfig(targets=(), words=True)
TABLE = "embed/segments/text/described/table"


def ids(text):
    return Tokenizer(("@1", "@2"), (3, 2)).encode(text, 4)


@jax.jit
def outputs(params):
    texts = np.stack([ids("@1"), ids("@1*"), ids("@2*"), ids("@1#2-1")])
    inputs = {"image": np.ones((4, 8, 8, 3), np.float32), "text": texts}
    return MODEL.apply(params, inputs, {"image": np.full(4, 0.5, np.float32)})["image"]


def test_a_word_changes_what_its_own_name_gives_and_nothing_else():
    start = lora.init(jax.random.key(0), PARAMS, WORDS)
    assert set(start) == {TABLE} and not start[TABLE].delta.any()
    base = outputs(PARAMS)
    np.testing.assert_array_equal(outputs(lora.attach(PARAMS, start)), base)
    changed = {TABLE: start[TABLE]._replace(delta=start[TABLE].delta.at[0].add(1.0))}
    for function in (lora.attach, lora.merge):
        found = np.abs(outputs(function(PARAMS, changed)) - base).max(axis=(1, 2, 3))
        assert found[1] > 1e-5 and not found[[0, 2, 3]].any()
    both = lora.combined([changed, changed], [1.0, 0.5])
    np.testing.assert_allclose(both[TABLE].delta, 1.5 * changed[TABLE].delta)


def test_kaiming_is_of_one_size_at_all_ranks():
    for rank in (2, 16):
        config = LoraConfig(rank=rank, init="kaiming")
        pairs = lora.init(jax.random.key(0), PARAMS, config).values()
        scaled = [np.ravel(pair.a) * np.sqrt(3 * pair.a.shape[-2]) for pair in pairs]
        assert abs(np.std(np.concatenate(scaled)) - 1) < 0.05


DIFFUSION = ObjectiveConfig(schedule=ScheduleConfig(name="rectified_flow"))
OWN = {"image": np.ones((2, 8, 8, 3), np.float32), "text": np.stack([ids("@2*")] * 2)}


def test_only_the_words_of_the_examples_are_trained_at_their_own_rate():
    prior = stacked({"a": OWN | {"text": np.stack([ids("@1*")] * 2)}})
    config = LoraConfig(rank=2, words=True)
    recipe = FinetuneConfig(
        lora=config, word_rate=5.0, steps=1, batch_size=2, learning_rate=1e-3, weight_decay=0.0
    )
    tuner = Finetuner(MODEL, DIFFUSION, recipe)
    for weight, rows in ((0.0, [1]), (0.3, [0, 1])):
        tuned = tuner(PARAMS, stacked({"x": OWN}), prior=prior, prior_weight=weight)
        trained = tree_index(tuned.trained[1], 0)
        delta = trained.pop(TABLE).delta
        assert np.flatnonzero(np.abs(delta).sum(axis=1)).tolist() == rows
        # Adam's first step is as long as its rate.
        np.testing.assert_allclose(np.abs(delta[1]).max(), 5e-3, rtol=0.02)
        assert all(np.abs(pair.b).max() <= 1.01e-3 for pair in trained.values())


def test_a_share_of_texts_is_dropped():
    tuner = Finetuner(MODEL, DIFFUSION, FinetuneConfig(lora=WORDS, drop_text=0.25))
    texts = {"text": np.stack([ids("@2*")] * 400)}
    found = tuner._with_texts_dropped(jax.random.key(0), texts)["text"]
    lost = ~np.array(found).any(axis=1)
    assert 0.15 < lost.mean() < 0.35 and (found[~lost] == ids("@2*")).all()
    with pytest.raises(UvitError, match=r"drop_text must lie in \[0, 1\]"):
        FinetuneConfig(drop_text=2.0)


@pytest.mark.parametrize("config", [WORDS, LoraConfig(rank=2, words=True)])
@pytest.mark.parametrize("out", ["x.safetensors", "folder"])
def test_files_have_the_names_of_peft(config, out, tmp_path):
    ours = noise(lora.init(jax.random.key(0), PARAMS, config), 1)
    record = AdapterRecord(lora=config)
    adapters.save(tmp_path / out, MODEL, ours, record)
    found, stored = adapters.load(tmp_path / out, MODEL)
    assert stored == record and found.keys() == ours.keys()
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(ours))
    if out == "folder":
        settings = json.loads((tmp_path / out / "adapter_config.json").read_text())
        name = TABLE.replace("/", ".")
        assert settings["trainable_token_indices"] == {name: list(range(5, 13))}


def test_word_vectors_of_another_model_are_refused(tmp_path):
    ours = noise(lora.init(jax.random.key(0), PARAMS, WORDS), 1)
    adapters.save(tmp_path / "x", MODEL, ours, AdapterRecord(lora=WORDS))
    other = unified.preset(
        "uvit", (8, 8, 3), patch_size=4, subjects=0, max_subjects=2,
        text=TEXT | {"attributes": ()}, width=16, depth=2, num_heads=2,
    )  # fmt: skip
    plain = uvit_jax.build(other)
    with pytest.raises(UvitError, match=r"no words of subjects' own.*words=False"):
        adapters.load(tmp_path / "x", plain)
    with pytest.raises(UvitError, match=r"no words of subjects' own"):
        lora.init(jax.random.key(0), plain.abstract_params, WORDS)
    with pytest.raises(UvitError, match=r"it is another model"):
        wrong = {TABLE: ours[TABLE]._replace(delta=jnp.zeros((8, 4)))}
        lora.attach(PARAMS, wrong)
    with pytest.raises(UvitError, match=r"targets=\(\) leaves nothing to train"):
        LoraConfig(targets=())
