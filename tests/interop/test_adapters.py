"""Adapter files: ours bit for bit, PEFT's by name and effect, none of another model."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import uvit_jax
from tests.helpers.weights import random_params
from tests.models.test_lora import noise
from uvit_jax.errors import UvitError
from uvit_jax.interop import adapters, mapping
from uvit_jax.interop import dit_weights as dit_family
from uvit_jax.interop import uvit_weights as uvit_family
from uvit_jax.interop.adapters import PREFIX, AdapterRecord
from uvit_jax.models import lora
from uvit_jax.models.lora import LoraConfig
from uvit_jax.models.presets import dit, uvit

SIZE = dict(patch_size=2, num_classes=5, width=24, num_heads=3)
MODELS = {
    "official, U-ViT": uvit.preset("S", (8, 8, 3), depth=4, **SIZE),
    "official, DiT": dit.preset("S", (8, 8, 4), depth=2, **SIZE),
    "diffusers, DiT": dit.preset("S", (8, 8, 4), depth=2, **SIZE),
    "own, U-ViT of another skip": uvit.preset("S", (8, 8, 3), depth=4, skip="add", **SIZE),
}
FAMILIES = {
    "official, U-ViT": uvit_family,
    "official, DiT": dit_family,
    "diffusers, DiT": dit_family,
}
CONFIG = LoraConfig(rank=3, alpha=6.0)


def made(name):
    """(model, base, adapters, record)."""
    model = uvit_jax.build(MODELS[name])
    params = random_params(model, seed=1)
    found = noise(lora.init(jax.random.key(0), params, CONFIG), 2)
    return (
        model,
        params,
        found,
        AdapterRecord(lora=CONFIG, base="b" * 64, training={"prompt": "@1"}),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("out", ["x.safetensors", "folder"])
def test_files_round_trip_bit_for_bit(name, out, tmp_path):
    model, _, ours, record = made(name)
    form = name.split(",")[0]
    assert adapters.save(tmp_path / out, model, ours, record, form=form) == form
    found, stored = adapters.load(tmp_path / out, model, base=record.base)
    assert stored == record and found.keys() == ours.keys()
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(ours))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tensors_do_in_the_original_what_ours_do_here(name, tmp_path):
    """B A alpha/r of every layer is how its exported weight changes when ours is merged."""
    model, params, ours, record = made(name)
    form = name.split(",")[0]
    adapters.save(tmp_path / "folder", model, ours, record, form=form)
    tensors = safetensors.numpy.load_file(tmp_path / "folder" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    entries = list(FAMILIES[name].entries(model.config, form))
    before = mapping.exported(entries, params)
    after = mapping.exported(entries, lora.merge(params, ours, CONFIG.scale))
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {f"{layer}.weight" for layer in settings["target_modules"]}
    for layer in settings["target_modules"]:
        A, B = (tensors[f"{PREFIX}{layer}.lora_{x}.weight"] for x in "AB")
        rank = settings["rank_pattern"].get(layer, settings["r"])
        alpha = settings["alpha_pattern"].get(layer, settings["lora_alpha"])
        assert A.shape[0] == B.shape[1] == rank
        difference = after[f"{layer}.weight"] - before[f"{layer}.weight"]
        np.testing.assert_allclose(alpha / rank * B @ A, difference, atol=1e-5)


def test_an_adapter_of_peft_with_one_a_for_queries_keys_and_values(tmp_path):
    """A fused qkv of PEFT's own making has no block-diagonal B, and is read all the same."""
    model = uvit_jax.build(MODELS["official, U-ViT"])
    params = random_params(model, seed=1)
    rng = np.random.default_rng(0)
    tensors = {}
    for block in ("in_blocks.0", "in_blocks.1"):
        for letter, shape in (("A", (2, 24)), ("B", (72, 2))):
            key = f"{PREFIX}{block}.attn.qkv.lora_{letter}.weight"
            tensors[key] = rng.normal(size=shape).astype(np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    found, record = adapters.load(tmp_path, model)
    assert set(found) == {"backbone/in_blocks/attention/qkv"} and record.lora.scale == 2
    entries = list(uvit_family.entries(model.config))
    before = mapping.exported(entries, params)
    after = mapping.exported(entries, lora.merge(params, found, record.lora.scale))
    for block in ("in_blocks.0", "in_blocks.1"):
        A, B = (tensors[f"{PREFIX}{block}.attn.qkv.lora_{x}.weight"] for x in "AB")
        key = f"{block}.attn.qkv.weight"
        np.testing.assert_allclose(after[key] - before[key], 2 * B @ A, atol=1e-5)
    with pytest.raises(UvitError, match="an unknown base"):
        adapters.load(tmp_path, model, base="b" * 64)


def test_adapters_of_other_models_are_refused(tmp_path):
    model, _, ours, record = made("official, U-ViT")
    out = tmp_path / "x.safetensors"
    adapters.save(out, model, ours, record)
    with pytest.raises(UvitError, match="exists already"):
        adapters.save(out, model, ours, record)
    with pytest.raises(UvitError, match=r"trained for parameters bbbbbbbbbbbb…, .*--any_base"):
        adapters.load(out, model, base="c" * 64)
    adapters.load(out, model, base="c" * 64, any_base=True)
    wider = uvit.preset("S", (8, 8, 3), depth=4, **SIZE | dict(width=48))
    with pytest.raises(UvitError, match=r"x.safetensors: the adapter of .*another model"):
        adapters.load(out, uvit_jax.build(wider))
    deeper = uvit.preset("S", (8, 8, 3), depth=2, **SIZE)
    with pytest.raises(UvitError, match=r"another model: it has in_blocks.1.attn.proj"):
        adapters.load(out, uvit_jax.build(deeper))
    shallower = uvit.preset("S", (8, 8, 3), depth=6, **SIZE)
    with pytest.raises(UvitError, match=r"not of every layer"):
        adapters.load(out, uvit_jax.build(shallower))
    (tmp_path / "y.safetensors").write_bytes(out.read_bytes()[:-9])
    with pytest.raises(UvitError, match=r"y\.safetensors.*safetensors file"):
        adapters.load(tmp_path / "y.safetensors", model)
    with pytest.raises(UvitError, match="does not exist"):
        adapters.load(tmp_path / "none.safetensors", model)
    config = LoraConfig(targets=(r"heads.*proj$",))
    head = lora.init(jax.random.key(0), model.abstract_params, config)
    adapters.save(tmp_path / "e.safetensors", model, head, AdapterRecord(lora=config))
    found, _ = adapters.load(tmp_path / "e.safetensors", model)
    assert found["heads/segments/image/proj"].a.shape == head["heads/segments/image/proj"].a.shape
