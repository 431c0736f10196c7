"""Exported models are imported again bit for bit; errors say why a model lacks a form."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import uvit_jax
from tests.helpers.weights import equal, random_params
from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models, files
from uvit_jax.interop.exporting import export
from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets import dit, unidiffuser, uvit


def small_uvit(**kwargs):
    options = dict(patch_size=2, num_classes=5, width=48, depth=4, num_heads=3) | kwargs
    return uvit.preset("S", (8, 8, 3), **options)


def small_dit(**kwargs):
    options = dict(patch_size=2, num_classes=10, width=48, depth=3, num_heads=3) | kwargs
    return dit.preset("S", (8, 8, 4), **options)


MODELS = {
    "label": small_uvit(),
    "unconditional": small_uvit(num_classes=0),
    "no null class": small_uvit(null_class=False),
    "time MLP, no convolution": small_uvit(time_mlp=True, final_conv="none"),
    "text": small_uvit(num_classes=0, text_shape=(77, 8)),
    "short text": small_uvit(num_classes=0, text_shape=(5, 8)),
    "bias, wider MLP": small_uvit(qkv_bias=True, mlp_ratio=2.5),
    "DiT, learned range": small_dit(),
    "DiT": small_dit(learned_range=False),
}


@pytest.mark.parametrize(
    "form, name",
    [
        ("own", "x.safetensors"),
        ("official", "x.safetensors"),
        ("official", "x.pth"),
        ("diffusers", "x.safetensors"),
        ("diffusers", "x"),
    ],
)
def test_every_form_round_trips_bit_for_bit(form, name, tmp_path):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    for number, (title, config) in enumerate(MODELS.items()):
        if form == "diffusers" and "DiT" not in title:
            continue
        model = uvit_jax.build(config)
        params = random_params(model, seed=number)
        out = tmp_path / str(number) / name
        export(out, model, params, form)
        hints = {}
        if form != "own" and out.suffix:  # not implied by shapes
            hints = dict(num_heads=3, num_classes=10, image_size=8)
            if "DiT" not in title:
                hints["num_classes"] = 0 if "text" in title or title == "unconditional" else 5
        loaded, again = uvit_jax.load(out, **hints)
        assert equal(params, again), title
        assert not compare_models.differences(loaded.config, model.config), title
        assert {p.name for p in out.parent.iterdir()} == {name}


def test_segments_may_have_other_names(tmp_path):
    config = small_uvit()
    names = {"time": "when", "image": "x", "label": "kind"}
    segments = {names[k]: dict(s) for k, s in config["segments"].items()}
    segments["when"]["time"] = "x"
    renamed = {**config, "segments": segments, "sequence": ("kind", "when", "x")}
    model = uvit_jax.build(renamed)
    params = random_params(model)
    export(tmp_path / "x.safetensors", model, params, "official")
    loaded, _ = uvit_jax.load(tmp_path / "x.safetensors", num_heads=3, num_classes=5)
    assert loaded.num_params == model.num_params


def changed(config, **segments):
    new = {**config["segments"]}
    for name, fields in segments.items():
        new[name] = {**new[name], **fields}
    return {**config, "segments": new}


@pytest.mark.parametrize(
    "config, form, message",
    [
        (
            changed(small_uvit(num_heads=4), image={"position": "rope"}),
            "official",
            r"not a U-ViT.*segments\.image\.position \('rope', not 'learned'\)",
        ),
        (small_uvit(skip="add"), "official", r"backbone\.skip \('add', not 'concat'\)"),
        (small_uvit(final_conv="before"), "official", r"final_conv \('before', not 'after'\)"),
        (small_uvit(norm_eps=1e-6), "official", r"backbone\.norm_eps"),
        (small_dit(conditioning="cross"), "official", r"not a DiT.*enter \('cross', not 'adaln'\)"),
        (
            small_uvit(num_classes=0, vocab_size=9, text_length=4),
            "official",
            r"segment 'text'",
        ),
        (small_uvit(), "diffusers", r"not a DiT"),
        (small_dit(mlp_ratio=2.0), "diffusers", r"mlp_ratio=4, not 2\.0"),
        (small_uvit(), "offical", r"did you mean 'official'"),
    ],
)
def test_why_a_model_has_no_such_form(config, form, message, tmp_path):
    model = uvit_jax.build(config)
    with pytest.raises(UvitError, match=message) as caught:
        export(tmp_path / "x.safetensors", model, {}, form)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_names_fit_their_form(tmp_path):
    model = uvit_jax.build(small_uvit())
    params = random_params(model)
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    for form in ("own", "official"):
        with pytest.raises(UvitError, match="exists already"):
            export(out, model, params, form)
    assert out.read_text() == "mine"
    for form, name in (("own", "x.pth"), ("official", "x.npz"), ("diffusers", "x.pth")):
        with pytest.raises(UvitError, match="form"):
            export(tmp_path / name, model, params, form)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_official_dit_file_holds_its_fixed_positions_and_they_are_checked(tmp_path):
    model = uvit_jax.build(small_dit())
    out = tmp_path / "dit.safetensors"
    export(out, model, random_params(model), "official")
    tensors = files.read_tensors(out)
    assert tensors["pos_embed"].shape == (1, 16, 48)
    uvit_jax.load(out, num_heads=3)  # they imply the image size, too
    with pytest.raises(UvitError, match="image_size=8, not 32"):
        uvit_jax.load(out, num_heads=3, image_size=32)
    tensors["pos_embed"][0, 3] += 0.1
    out.unlink()
    files.write_tensors(out, tensors)
    with pytest.raises(UvitError, match=r"pos_embed"):
        uvit_jax.load(out, num_heads=3)
    del tensors["pos_embed"]
    files.write_tensors(out, tensors)
    assert uvit_jax.load(out, num_heads=3, image_size=8)[0].config == model.config


def test_diffusers_takes_the_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the extra `test`")
    model = uvit_jax.build(small_dit())
    params = random_params(model)
    export(tmp_path / "dit", model, params, "diffusers")
    theirs, info = diffusers.DiTTransformer2DModel.from_pretrained(
        tmp_path / "dit", output_loading_info=True
    )
    assert not any(info.values())
    theirs.save_pretrained(tmp_path / "pipeline" / "transformer")
    loaded, again = uvit_jax.load(tmp_path / "pipeline")
    assert equal(params, again) and loaded.config == model.config
    settings = tmp_path / "dit" / "config.json"
    text = settings.read_text()
    for key, value in (("_class_name", "SD3"), ("norm_type", "ada_norm"), ("sample_size", "x")):
        settings.write_text(json.dumps({**json.loads(text), key: value}))
        with pytest.raises(UvitError, match=f"{value if key == '_class_name' else key}"):
            uvit_jax.load(tmp_path / "dit")


def test_what_does_not_change_the_function_is_no_difference():
    model = uvit_jax.build(small_uvit()).config
    how = dict(attention="xla", scan=False, unroll=2, remat="full", init="xavier")
    same = dataclasses.replace(
        model, dtype="bfloat16", backbone=dataclasses.replace(model.backbone, **how)
    )
    assert compare_models.differences(model, same) == {}
    other = dataclasses.replace(
        model, backbone=dataclasses.replace(model.backbone, activation="gelu_tanh", depth=6)
    )
    assert set(compare_models.differences(model, other)) == {
        "backbone.activation",
        "backbone.depth",
    }
    v0, v1 = (parse_model(unidiffuser.preset(version)) for version in ("v0", "v1"))
    different = compare_models.differences(v0, v1)
    assert different.pop("segments.data_type") == (None, "label") and [*different] == ["sequence"]


def test_copies_that_differ_are_refused(tmp_path):
    model = uvit_jax.build(small_dit())
    out = tmp_path / "dit.safetensors"
    export(out, model, random_params(model), "diffusers")
    tensors = {k: np.array(v) for k, v in files.read_tensors(out).items()}
    tensors["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] += 1
    files.write_tensors(out, tensors)
    with pytest.raises(
        UvitError, match=r"transformer_blocks\.1\..*differs from transformer_blocks\.0"
    ):
        uvit_jax.load(out, num_heads=3, image_size=8)


def test_bfloat16_is_rounded_and_half_as_large(tmp_path):
    model = uvit_jax.build(MODELS["label"])
    params = random_params(model, seed=0)
    sizes = []
    for dtype in ("float32", "bfloat16"):
        export(tmp_path / f"{dtype}.safetensors", model, params, dtype=dtype)
        sizes.append((tmp_path / f"{dtype}.safetensors").stat().st_size)
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    _, found = uvit_jax.load(tmp_path / "bfloat16.safetensors")
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=2**-8)
    for out, dtype, message in (
        ("x.safetensors", "bfloat", r"unknown dtype 'bfloat'.*'bfloat16'"),
        ("x.pth", "bfloat16", r"needs the suffix \.safetensors"),
    ):
        with pytest.raises(UvitError, match=message):
            export(tmp_path / out, model, params, "official", dtype=dtype)
