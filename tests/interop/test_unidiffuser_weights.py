"""UniDiffuser's files: recognised by their keys, read and written bit for bit."""

import numpy as np
import pytest

import uvit_jax
from experiments.cli import read_config
from tests.helpers import unidiffusers
from tests.helpers.running import ROOT
from tests.helpers.weights import equal, random_params
from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models, files, mapping, unidiffuser_weights
from uvit_jax.interop.exporting import export
from uvit_jax.interop.recognise import recognise, title
from uvit_jax.interop.weight_files import WeightFile
from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets.unidiffuser import preset
from uvit_jax.training.run_config import parse_run

HINTS = dict(num_heads=2, text_tokens=5)


@pytest.mark.parametrize(("version", "count"), [("v0", 416), ("v1", 418)])
def test_published_files(version, count):
    """The shapes of all tensors, of arrays that take no memory."""
    config = parse_model(preset(version))
    model = uvit_jax.build(config)
    shapes = {}
    for entry in unidiffuser_weights.entries(config):
        shapes.setdefault(entry.key, None)
    assert len(shapes) == count
    outside = {
        "pos_embed": (1, 1104, 1536),
        "text_embed.weight": (1536, 64),
        "text_out.weight": (64, 1536),
        "clip_img_embed.weight": (1536, 512),
        "clip_img_out.weight": (512, 1536),
        "patch_embed.proj.weight": (1536, 4, 2, 2),
        "mid_block.mlp.fc1.weight": (6144, 1536),
    }
    if version == "v1":
        outside |= {"pos_embed_token": (1, 1, 1536), "token_embedding.weight": (2, 1536)}
    assert outside.keys() <= shapes.keys()
    tensors = {k: np.broadcast_to(np.float32(0), outside.get(k, ())) for k in shapes}
    found = recognise(WeightFile("here", tensors))
    assert found.config == config and found.style == "official"
    assert title(found.config) == "UniDiffuser/2"
    run = parse_run(read_config(str(ROOT / f"configs/unidiffuser.py:{version}-512"), {}))
    assert compare_models.differences(found.config, run.model) == {}
    assert uvit_jax.build(found.config).num_params == model.num_params


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("official", "x.pth"),
        ("official", "x.safetensors"),
        ("diffusers", "x"),
        ("own", "x.safetensors"),
    ],
)
def test_round_trips_are_exact(tmp_path, version, form, name):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    model = uvit_jax.build(unidiffusers.config(version))
    params = random_params(model)
    export(tmp_path / name, model, params, form)
    hints = HINTS if form == "official" else {}
    loaded, again = uvit_jax.load(tmp_path / name, **hints)
    assert loaded.config == model.config and equal(params, again)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_diffusers_reads_and_writes_the_folder(tmp_path, version):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the extra `test`")
    theirs = unidiffusers.network(version)
    theirs.save_pretrained(tmp_path / "pipeline" / "unet")
    model, params = uvit_jax.load(tmp_path / "pipeline")
    export(tmp_path / "again", model, params, "diffusers")
    ours, info = diffusers.UniDiffuserModel.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(info.values())
    before, after = theirs.state_dict(), ours.state_dict()
    used = [name for name in before if not name.startswith(unidiffuser_weights._UNUSED)]
    assert len(before) - len(used) == 2
    for name in used:
        assert np.array_equal(before[name].numpy(), after[name].numpy()), name


def test_official_and_diffusers_names_are_one_model(tmp_path):
    model = uvit_jax.build(unidiffusers.config("v1"))
    params = random_params(model)
    official, theirs = (
        mapping.exported(unidiffuser_weights.entries(model.config, form), params)
        for form in ("official", "diffusers")
    )
    assert np.array_equal(official["text_embed.weight"], theirs["text_in.weight"])
    last = "transformer.transformer_out_blocks.1"
    qkv = [theirs[f"{last}.block.attn1.to_{letter}.weight"] for letter in "qkv"]
    assert np.array_equal(official["out_blocks.1.attn.qkv.weight"], np.concatenate(qkv))
    for ours, name in (("norm1", "skip.norm"), ("norm2", "block.norm1"), ("norm3", "block.norm3")):
        assert np.array_equal(
            official[f"out_blocks.1.{ours}.weight"], theirs[f"{last}.{name}.weight"]
        )


def test_what_shapes_do_not_imply_is_an_argument(tmp_path):
    model = uvit_jax.build(unidiffusers.config("v0"))
    path = tmp_path / "x.safetensors"
    export(path, model, random_params(model), "official")
    with pytest.raises(UvitError, match=r"width 16.*num_heads="):
        uvit_jax.load(path)
    with pytest.raises(UvitError, match=r"77 text tokens.*text_tokens="):
        uvit_jax.load(path, num_heads=2)
    with pytest.raises(UvitError, match=r"image_size=10, not 8"):
        uvit_jax.load(path, image_size=8, **HINTS)
    with pytest.raises(UvitError, match=r"no classes.*num_classes=2"):
        uvit_jax.load(path, num_classes=2, **HINTS)
    assert uvit_jax.load(path, num_heads=2, image_size=10)[0].config == model.config


def test_models_of_other_kinds_are_not_exported(tmp_path):
    other = unidiffusers.config("v1")
    other["segments"]["clip_image"]["time"] = ""
    other["segments"]["clip_time"] = dict(kind="time", time="clip_image")
    other["sequence"] = ("clip_time", *other["sequence"])
    model = uvit_jax.build(other)
    with pytest.raises(UvitError, match="UniDiffuser"):
        export(tmp_path / "x", model, random_params(model), "diffusers")
    pre = uvit_jax.build(unidiffusers.config("v1", norm="pre"))
    with pytest.raises(UvitError, match=r"backbone.norm.*--format=own"):
        export(tmp_path / "x.safetensors", pre, random_params(pre), "official")


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    model = uvit_jax.build(unidiffusers.config("v1"))
    path = tmp_path / "x.safetensors"
    export(path, model, random_params(model), "official")
    tensors = dict(files.read_tensors(path))
    del tensors["token_embedding.weight"]  # so it looks like v0, with a position too many
    path.unlink()
    files.write_tensors(path, tensors)
    with pytest.raises(UvitError, match="unexpected: pos_embed_token"):
        uvit_jax.load(path, **HINTS)
