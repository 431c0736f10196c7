"""PEFT's adapters: every setting and every tensor is applied, or refused by name."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import uvit_jax
from tests.helpers.weights import random_params
from tests.interop.test_adapters import FAMILIES, MODELS, made
from uvit_jax.errors import UvitError
from uvit_jax.interop import adapters, mapping
from uvit_jax.interop.adapters import PREFIX, SETTINGS, TENSORS, AdapterRecord
from uvit_jax.models import lora
from uvit_jax.models.lora import LoraConfig

UVIT, DIT = "official, U-ViT", "diffusers, DiT"
WIDTH = 24
# Names, inputs and outputs of layers.
FC1 = {f"in_blocks.{i}.mlp.fc1": (WIDTH, 4 * WIDTH) for i in range(2)}
QKV = {f"in_blocks.{i}.attn.qkv": (WIDTH, 3 * WIDTH) for i in range(2)}
NEUTRAL = {
    **dict(task_type=None, peft_type="LORA", auto_mapping=None, peft_version="0.21.2"),
    **dict(base_model_name_or_path=None, revision=None, inference_mode=True, lora_dropout=0.1),
    **dict(fan_in_fan_out=False, bias="none", use_rslora=False, modules_to_save=None),
    **dict(init_lora_weights="gaussian", layers_to_transform=None, layers_pattern=None),
    **dict(rank_pattern={}, alpha_pattern={}, megatron_config=None, megatron_core="megatron.core"),
    **dict(trainable_token_indices=None, loftq_config={}, eva_config=None, corda_config=None),
    **dict(use_dora=False, alora_invocation_tokens=None, use_qalora=False, qalora_group_size=16),
    **dict(layer_replication=None, lora_bias=False, target_parameters=None, arrow_config=None),
    **dict(exclude_modules=None, ensure_weight_tying=False, use_bdlora=None),
}


def write(folder, layers, *, ranks=None, tensors=(), drop=(), **settings):
    """A folder of PEFT's with random factors; returns them as {name: (A, B)}."""
    rng = np.random.default_rng(0)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": [*layers]} | settings
    factors, stored = {}, dict(tensors)
    for name, (inputs, outputs) in layers.items():
        rank = (ranks or {}).get(name, settings["r"])
        A, B = rng.normal(size=(rank, inputs)), rng.normal(size=(outputs, rank))
        factors[name] = A, B
        for letter, value in zip("AB", (A, B), strict=True):
            stored[f"{PREFIX}{name}.lora_{letter}.weight"] = value.astype(np.float32)
    stored = {key: value for key, value in stored.items() if key not in drop}
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(stored, folder / TENSORS)
    (folder / SETTINGS).write_text(json.dumps(NEUTRAL | settings))
    return factors


def effect(name, loaded):
    """How adapters change the original's weights, by layer."""
    found, record = loaded
    model = uvit_jax.build(MODELS[name])
    params = random_params(model, seed=1)
    entries = list(FAMILIES[name].entries(model.config, name.split(",")[0]))
    before = mapping.exported(entries, params)
    after = mapping.exported(entries, lora.merge(params, found, record.lora.scale))
    changed = {key: after[key] - before[key] for key in before}
    return {key.removesuffix(".weight"): value for key, value in changed.items() if value.any()}


def load(name, folder):
    return adapters.load(folder, uvit_jax.build(MODELS[name]))


@pytest.mark.parametrize(
    "scale, settings",
    [
        (6 / 4, {}),
        (6 / 2, {"use_rslora": True}),
        (-1.25, {"lora_alpha": -5}),
        (0.0, {"lora_alpha": 0}),
        (8 / 4, {"alpha_pattern": {"mlp.fc1": 8}}),
        (8 / 4, {"alpha_pattern": {r"in_blocks\.\d+\.mlp\.fc\d": 8, "fc1": 99}}),
        (9 / 3, {"use_rslora": True, "r": 9, "lora_alpha": 9.0}),
    ],
)
def test_the_scale_is_that_of_the_settings(tmp_path, scale, settings):
    factors = write(tmp_path, FC1, **settings)
    changed = effect(UVIT, load(UVIT, tmp_path))
    assert set(changed) == (set(factors) if scale else set())
    for name, change in changed.items():
        A, B = factors[name]
        np.testing.assert_allclose(change, scale * B @ A, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scales_may_differ_by_layer(tmp_path, rslora):
    ranks = {"in_blocks.0.mlp.fc1": 2, "in_blocks.1.mlp.fc1": 5, "in_blocks.1.attn.qkv": 3}
    alphas = {"in_blocks.1.mlp.fc1": 20}
    options = dict(rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora)
    factors = write(tmp_path, FC1 | QKV, ranks=ranks, **options)
    changed = effect(UVIT, load(UVIT, tmp_path))
    assert changed.keys() == factors.keys()
    for name, (A, B) in factors.items():
        scale = alphas.get(name, 6) / len(A) ** (0.5 if rslora else 1)
        np.testing.assert_allclose(changed[name], scale * B @ A, atol=1e-4)


def test_queries_and_values_alone_and_some_layers_alone(tmp_path):
    names = [f"transformer_blocks.1.attn1.to_{x}" for x in "qv"]
    layers = dict.fromkeys(names, (WIDTH, WIDTH))
    factors = write(tmp_path, layers, target_modules=["to_q", "to_v"], layers_to_transform=[1])
    changed = effect(DIT, load(DIT, tmp_path))
    assert changed.keys() == factors.keys()
    for name, (A, B) in factors.items():
        np.testing.assert_allclose(changed[name], 1.5 * B @ A, atol=1e-4)


def test_the_convolution_of_patches_has_an_adapter(tmp_path):
    A = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    B = np.random.default_rng(1).normal(size=(WIDTH, 4, 1, 1)).astype(np.float32)
    key = f"{PREFIX}patch_embed.proj.lora_"
    tensors = {f"{key}A.weight": A, f"{key}B.weight": B}
    write(tmp_path, {}, tensors=tensors, target_modules="patch_embed.proj")
    changed = effect(UVIT, load(UVIT, tmp_path))
    expected = 1.5 * np.einsum("or,rcij->ocij", B[..., 0, 0], A)
    np.testing.assert_allclose(changed.pop("patch_embed.proj"), expected, atol=1e-4)
    assert not changed
    model = uvit_jax.build(MODELS[UVIT])
    found, record = load(UVIT, tmp_path)
    adapters.save(tmp_path / "ours", model, found, record)
    again = safetensors.numpy.load_file(tmp_path / "ours" / TENSORS)
    assert all(np.array_equal(again[k], tensors[k]) for k in tensors | again)


@pytest.mark.parametrize(
    "key, value",
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["decoder_pred"]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("trainable_token_indices", [0]),
        ("target_parameters", ["mlp.fc1.weight"]),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("arrow_config", {"top_k": 3}),
        ("a_setting_of_next_year", 1),
        ("a_setting_of_next_year", 0.0),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("r", 0),
        ("r", True),
        ("r", 4.0),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", "16"),
        ("rank_pattern", {"fc1": 0}),
        ("rank_pattern", {"(": 4}),
        ("rank_pattern", [1]),
        ("rank_pattern", []),
        ("alpha_pattern", [["fc1", 8]]),
        ("alpha_pattern", "fc1"),
        ("alpha_pattern", 0),
        ("use_rslora", "false"),
        ("use_rslora", 1),
        ("use_rslora", []),
        ("r", 10**400),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e-43),
        ("target_modules", "("),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, key, value):
    write(tmp_path, FC1, **{key: value} if key != "r" else {}, ranks=None)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {key: value}))
    name = {"rank_pattern": "rank"}.get(key, key)
    with pytest.raises(UvitError, match=rf"{SETTINGS}.*\b{name}"):
        load(UVIT, tmp_path)


def test_ranks_other_than_those_of_the_settings_are_refused(tmp_path):
    write(tmp_path, FC1, ranks={"in_blocks.1.mlp.fc1": 3})
    with pytest.raises(UvitError, match=r"in_blocks\.1\.mlp\.fc1.*rank 3.*4"):
        load(UVIT, tmp_path)


@pytest.mark.parametrize(
    "key, reason",
    [
        (f"{PREFIX}in_blocks.0.mlp.fc1.lora_magnitude_vector", "DoRA"),
        (f"{PREFIX}in_blocks.0.mlp.fc1.lora_B.bias", "lora_bias"),
        (f"{PREFIX}label_emb.lora_embedding_A", "embedding"),
        (f"{PREFIX}decoder_pred.weight", "decoder_pred.weight.*merge"),
        (f"{PREFIX}in_blocks.0.mlp.fc1.base_layer.bias", "base_layer.bias.*merge"),
        ("lora_unet_in_blocks_0_attn_qkv.lora_down.weight", "kohya"),
        ("lora_unet_in_blocks_0_attn_qkv.alpha", "kohya"),
        ("transformer.in_blocks.0.mlp.fc1.lora_A.weight", "diffusers"),
        ("unet.down.0.attn1.processor.to_q_lora.down.weight", "diffusers"),
        ("lycoris_in_blocks_0_mlp_fc1.hada_w1_a", "LoHa"),
        ("lycoris_in_blocks_0_mlp_fc1.lokr_w1", "LoKr"),
        (f"{PREFIX}in_blocks.0.mlp.fc1.lora_A.default.weight", "both"),
        (f"{PREFIX}final_layer.lora_A.weight", "final_layer"),
        (f"{PREFIX}in_blocks.0.norm1.lora_A.weight", "in_blocks.0.norm1"),
    ],
)
def test_tensors_without_a_use_are_refused_with_the_reason(tmp_path, key, reason):
    write(tmp_path, FC1, tensors={key: np.ones((4, 4), np.float32)})
    with pytest.raises(UvitError, match=reason):
        load(UVIT, tmp_path)


def kohya(name):
    key = f"lora_unet_{name.replace('.', '_')}"
    return f"{key}.lora_down.weight", f"{key}.lora_up.weight", {f"{key}.alpha": np.float32(6)}


def with_prefix(name):
    key = f"transformer.{name}"
    return f"{key}.lora_A.weight", f"{key}.lora_B.weight", {f"{key}.alpha": np.float32(6)}


def without_alpha(name):
    key = f"transformer.{name}"
    return f"{key}.lora.down.weight", f"{key}.lora.up.weight", {}


def by_processor(name):
    attention, _, projection = name.removesuffix(".0").rpartition(".")
    key = f"unet.{attention}.processor.{projection}_lora"
    return f"{key}.down.weight", f"{key}.up.weight", {}


ATTN = "transformer_blocks.1.attn1"
LAYERS = {
    UVIT: FC1 | QKV,
    DIT: {f"{ATTN}.{p}": (WIDTH, WIDTH) for p in ("to_q", "to_v", "to_out.0")},
}


@pytest.mark.parametrize(
    "name, names",
    [(m, n) for m in LAYERS for n in (kohya, with_prefix, without_alpha)] + [(DIT, by_processor)],
)
def test_files_with_the_names_of_kohya_and_diffusers_are_read(tmp_path, name, names):
    rng, stored, expected = np.random.default_rng(0), {}, {}
    for rank, (layer, (inputs, outputs)) in enumerate(LAYERS[name].items(), start=2):
        A, B = rng.normal(size=(rank, inputs)), rng.normal(size=(outputs, rank))
        down, up, alphas = names(layer)
        stored |= {down: A.astype(np.float32), up: B.astype(np.float32), **alphas}
        expected[layer] = (6 / rank if alphas else 1) * B @ A
    stored = {key: np.asarray(value) for key, value in stored.items()}
    safetensors.numpy.save_file(stored, tmp_path / "x.safetensors")
    found = effect(name, load(name, tmp_path / "x.safetensors"))
    assert found.keys() == expected.keys()
    for layer, change in expected.items():
        np.testing.assert_allclose(found[layer], change, atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lora_te_text_model_0.lora_down.weight": (2, 4)}, "text encoder"),
        ({"lora_unet_down_blocks_0.alpha": ()}, "lacks the factors of down_blocks_0"),
        ({"lora_unet_in_blocks_0_mlp_fc1.alpha": (2,)}, "alpha must be one finite number"),
        (
            {f"lora_unet_mid_0.lora_{k}.weight": (4, 4) for k in ("down", "up")},
            "another model: it has mid_0",
        ),
        ({"lora_unet_in_blocks_0_mlp_fc1.lora_up.weight": None}, r"lacks .*fc1\.lora_B"),
    ],
)
def test_such_files_of_other_networks_are_refused(tmp_path, changes, message):
    down, up, _ = kohya("in_blocks.0.mlp.fc1")
    shapes = {down: (4, WIDTH), up: (4 * WIDTH, 4)} | changes
    stored = {k: np.ones(shape, np.float32) for k, shape in shapes.items() if shape is not None}
    safetensors.numpy.save_file(stored, tmp_path / "x.safetensors")
    with pytest.raises(UvitError, match=message):
        load(UVIT, tmp_path / "x.safetensors")


def test_all_linear_layers_are_those_of_the_model(tmp_path):
    model = uvit_jax.build(MODELS[UVIT])
    linear = {}
    for path, matrix in lora.matrices(model.abstract_params).items():
        for layer in adapters._peft_layers(model, {path: None}, "official"):
            if layer.convolution is None:
                parts = matrix.parts if layer.part is None else 1
                linear[layer.name] = (matrix.inputs, parts * matrix.outputs)
    factors = write(tmp_path, linear, target_modules="All-Linear")
    assert effect(UVIT, load(UVIT, tmp_path)).keys() == factors.keys()
    # PEFT leaves out the last layer of some models.
    del linear["decoder_pred"]
    write(tmp_path, linear, target_modules="all-linear")
    load(UVIT, tmp_path)
    write(tmp_path, FC1, target_modules="all-linear")
    with pytest.raises(UvitError, match=r"lacks .*attn\.proj"):
        load(UVIT, tmp_path)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_refused_without_a_warning(tmp_path):
    write(tmp_path, FC1, lora_alpha=1e-30, alpha_pattern={"fc1": 9e29})
    with pytest.raises(UvitError, match=r"in_blocks\.\d\.mlp\.fc1 is not finite.*lora_alpha"):
        load(UVIT, tmp_path)
    write(tmp_path, FC1)
    stored = safetensors.numpy.load_file(tmp_path / TENSORS)
    large = {key: value.astype(np.float64) * 1e60 for key, value in stored.items()}
    safetensors.numpy.save_file(large, tmp_path / TENSORS)
    with pytest.raises(UvitError, match="not finite"):
        load(UVIT, tmp_path)


def test_settings_with_a_byte_order_mark_are_read(tmp_path):
    write(tmp_path, FC1)
    expected, _ = load(UVIT, tmp_path)
    (tmp_path / SETTINGS).write_bytes(b"\xef\xbb\xbf" + (tmp_path / SETTINGS).read_bytes())
    found, _ = load(UVIT, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(expected))


@pytest.mark.parametrize("name", ["mine", "mine.safetensors", "new/mine"])
def test_a_full_disk_names_the_adapter(name, small_disk):
    model, _, ours, record = made(UVIT)
    (small_disk / "filler").write_bytes(b"\0" * (2 * 2**20 - 4 * 4096))
    with pytest.raises(UvitError, match=rf"disk/{name} cannot be written.*make space"):
        adapters.save(small_disk / name, model, ours, record)
    assert {p.name for p in small_disk.iterdir()} <= {"filler", "new"}


def test_incomplete_and_damaged_adapters_are_refused(tmp_path):
    fc1 = f"{PREFIX}in_blocks.1.mlp.fc1.lora_"
    write(tmp_path, FC1, drop=[f"{fc1}B.weight"])
    with pytest.raises(UvitError, match=rf"lacks {fc1}B.weight"):
        load(UVIT, tmp_path)
    write(tmp_path, FC1, drop=[f"{fc1}A.weight", f"{fc1}B.weight"])
    with pytest.raises(UvitError, match=r"lacks in_blocks\.1\.mlp\.fc1"):
        load(UVIT, tmp_path)
    write(tmp_path, FC1, tensors={}, target_modules=["fc1"])
    with pytest.raises(UvitError, match=r"lacks .*mid_block\.mlp\.fc1"):
        load(UVIT, tmp_path)
    for value, problem in ((np.full((4, WIDTH), np.nan, np.float32), "finite"), (1, "int64")):
        write(tmp_path, FC1)
        stored = safetensors.numpy.load_file(tmp_path / TENSORS)
        stored[f"{fc1}A.weight"] = np.array(value)
        safetensors.numpy.save_file(stored, tmp_path / TENSORS)
        with pytest.raises(UvitError, match=rf"{fc1}A\.weight.*{problem}"):
            load(UVIT, tmp_path)
    write(tmp_path, FC1)
    for text in ("[1]", "{", "[" * 100_000):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(UvitError, match=SETTINGS):
            load(UVIT, tmp_path)


def test_files_of_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    write(tmp_path, FC1)
    expected, _ = load(UVIT, tmp_path)
    stored = safetensors.numpy.load_file(tmp_path / TENSORS)
    (tmp_path / TENSORS).unlink()
    torch.save({k: torch.tensor(v) for k, v in stored.items()}, tmp_path / "adapter_model.bin")
    found, _ = load(UVIT, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(expected))


def test_copies_of_a_layer_have_equal_adapters(tmp_path):
    name = "norm1.emb.timestep_embedder.linear_2"
    layers = {f"transformer_blocks.{i}.{name}": (WIDTH, WIDTH) for i in range(2)}
    write(tmp_path, layers)
    with pytest.raises(UvitError, match=r"transformer_blocks\.1.*copy"):
        load(DIT, tmp_path)
    model = uvit_jax.build(MODELS[DIT])
    config = LoraConfig(targets=(r"segments/time/fc2$",))
    ours = lora.init(jax.random.key(0), model.abstract_params, config)
    adapters.save(tmp_path / "x", model, ours, AdapterRecord(lora=config), form="diffusers")
    found, _ = load(DIT, tmp_path / "x")
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(ours))


# With PEFT itself.


def original(name):
    """The original network in PyTorch, with `random_params`."""
    torch = pytest.importorskip("torch")
    model = uvit_jax.build(MODELS[name])
    entries = FAMILIES[name].entries(model.config, name.split(",")[0])
    weights = mapping.exported(entries, random_params(model, seed=1))
    network = torch.nn.Module()
    for key, value in weights.items():
        *path, kind = key.split(".")
        parent = network
        for part in path[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        if not path:
            network.register_parameter(kind, torch.nn.Parameter(torch.tensor(value)))
        elif not hasattr(parent, path[-1]) and kind == "weight":
            if value.ndim == 4:
                layer = torch.nn.Conv2d(*value.shape[1::-1], value.shape[2:], value.shape[2:])
            elif value.ndim == 2 and "emb" not in path[-1]:
                layer = torch.nn.Linear(*value.shape[::-1], f"{key[:-6]}bias" in weights)
            else:
                layer = torch.nn.Module()
                layer.weight = torch.nn.Parameter(torch.tensor(value))
            parent.add_module(path[-1], layer)
    network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=False)
    return network


@pytest.mark.parametrize("name", [UVIT, DIT])
@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules=r".*(qkv|to_q|to_v|fc1|ff\.net\.2|skip_linear)"),
        dict(target_modules=["fc1", "to_q", "to_v"], use_rslora=True, r=4),
        dict(target_modules=r"(pos_embed|patch_embed)\.proj|.*\.attn1?\.(to_k|qkv)", r=3),
        dict(
            target_modules=r".*(qkv|to_k|fc2|to_out\.0)",
            rank_pattern={"qkv|to_k": 6, r"[a-z_]+s\.0\..*(fc2|0)": 2},
            alpha_pattern={r"[a-z_]+s\.1\..*": 5},
        ),
    ],
    ids=["layers", "rslora", "convolution", "patterns"],
)
def test_peft_merges_the_same_weights(name, options, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    network = original(name)
    before = {k: v.numpy().copy() for k, v in network.state_dict().items()}
    wrapped = peft.get_peft_model(network, peft.LoraConfig(**{"lora_alpha": 3} | options))
    torch.manual_seed(0)
    for key, value in wrapped.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(value)
    wrapped.save_pretrained(tmp_path)
    changed = effect(name, load(name, tmp_path))
    after = {k: v.numpy() for k, v in wrapped.merge_and_unload().state_dict().items()}
    differing = {k.removesuffix(".weight") for k in before if not np.allclose(after[k], before[k])}
    assert changed.keys() == differing
    for key, change in changed.items():
        difference = after[f"{key}.weight"] - before[f"{key}.weight"]
        np.testing.assert_allclose(change, difference, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_our_export_saved_again_by_peft_loads(name, tmp_path):
    peft = pytest.importorskip("peft")
    model, _, ours, record = made(name)
    adapters.save(tmp_path / "ours", model, ours, record, form=name.split(",")[0])
    wrapped = peft.PeftModel.from_pretrained(original(name), tmp_path / "ours")
    wrapped.save_pretrained(tmp_path / "theirs")
    found, stored = load(name, tmp_path / "theirs")
    assert stored.lora.scale == record.lora.scale
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(ours))
