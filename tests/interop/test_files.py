"""Weights in and out: exact both ways, and refused with the key's name when they do not fit."""

import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy

import uvit_jax
from uvit_jax.errors import UvitError
from uvit_jax.interop import mapping, uvit
from uvit_jax.interop.files import save_safetensors
from uvit_jax.models.uvit import preset


def make(**kwargs):
    options = dict(patch_size=2, num_classes=5, width=48, depth=4, num_heads=3) | kwargs
    model = uvit_jax.build(preset("S", (8, 8, 3), **options))
    return model, jax.tree.map(np.asarray, model.init(jax.random.key(0)))


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(np.array_equal, a, b)
    )


def official(path, model, params):
    tensors = mapping.exported(uvit.entries(model.config), params)
    safetensors.numpy.save_file(tensors, path)
    return tensors


@pytest.mark.parametrize(
    "options",
    [{}, {"time_mlp": True, "final_conv": False}, {"num_classes": 0, "text_shape": (77, 8)}],
)
def test_official_names_round_trip_bit_for_bit(options, tmp_path):
    model, params = make(**options)
    official(tmp_path / "uvit.safetensors", model, params)
    classes = 5 if "num_classes" not in options else None
    loaded, again = uvit_jax.load(tmp_path / "uvit.safetensors", num_heads=3, num_classes=classes)
    assert equal(params, again)
    assert loaded.layout == model.layout and loaded.config.backbone == model.config.backbone


def test_our_own_file_round_trips_with_its_config(tmp_path):
    model, params = make()
    save_safetensors(tmp_path / "own.safetensors", model, params)
    loaded, again = uvit_jax.load(tmp_path / "own.safetensors")
    assert equal(params, again) and loaded.config == model.config


@pytest.mark.parametrize("size, entries", [("S", 164), ("M", 213), ("L", 261), ("H", 355)])
def test_as_many_tensors_as_the_official_files_hold(size, entries):
    # The numbers are of CIFAR-10 (S), ImageNet-64 (M) and ImageNet-256 (L and H).
    labels = {} if size == "S" else {"num_classes": 1000}
    config = preset(size, (32, 32, 4), patch_size=2, final_conv=size != "H", **labels)
    keys = {e.key for e in uvit.entries(uvit_jax.build(config).config)}
    assert len(keys) == entries


def test_a_published_size_needs_no_number_of_heads():
    shapes = {"in_blocks": 6}
    tensors = {
        "pos_embed": np.zeros((1, 257, 512)),
        "patch_embed.proj.weight": np.zeros((512, 3, 2, 2)),
        "mid_block.mlp.fc1.weight": np.zeros((2048, 512)),
    } | {f"in_blocks.{i}.x": np.zeros(()) for i in range(shapes["in_blocks"])}
    assert uvit.describe(tensors, "here")["backbone"]["num_heads"] == 8
    tensors["in_blocks.6.x"] = np.zeros(())
    with pytest.raises(UvitError, match="give num_heads="):
        uvit.describe(tensors, "here")


def test_what_does_not_fit_is_named(tmp_path):
    model, params = make()
    path = tmp_path / "uvit.safetensors"
    tensors = official(path, model, params)

    def load(changed):
        safetensors.numpy.save_file(changed, path)
        return uvit_jax.load(path, num_heads=3, num_classes=5)

    load(tensors)
    with pytest.raises(UvitError, match=r"missing: norm\.weight"):
        load({k: v for k, v in tensors.items() if k != "norm.weight"})
    with pytest.raises(UvitError, match=r"unexpected: surprise"):
        load(tensors | {"surprise": np.zeros(3, np.float32)})
    with pytest.raises(UvitError, match=r"in_blocks\.1\.attn\.qkv\.weight has shape \(144, 47\)"):
        key = "in_blocks.1.attn.qkv.weight"
        load(tensors | {key: np.ascontiguousarray(tensors[key][:, :-1])})
    with pytest.raises(UvitError, match="no model known here"):
        load({"weights": np.zeros(3, np.float32)})
    with pytest.raises(UvitError, match="table has 6 rows, not 3"):
        uvit.describe(tensors, "here", num_heads=3, num_classes=3)


def test_damaged_and_foreign_files(tmp_path):
    model, params = make()
    path = tmp_path / "own.safetensors"
    save_safetensors(path, model, params)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UvitError, match="no whole safetensors"):
        uvit_jax.load(path)
    with pytest.raises(UvitError, match="does not exist"):
        uvit_jax.load(tmp_path / "nowhere.safetensors")
    tensors = {"pos_embed": np.zeros((1, 5, 8)), "mid_block.norm1.weight": np.zeros(8)}
    safetensors.numpy.save_file(tensors | {"decoder_pred.weight": np.zeros((3, 8))}, path)
    with pytest.raises(UvitError, match=r"lacks the tensor 'patch_embed\.proj\.weight'"):
        uvit_jax.load(path)
    (tmp_path / "damaged").mkdir()
    for text in ("{", "[]", "{}"):
        (tmp_path / "damaged" / "config.json").write_text(text)
        with pytest.raises(UvitError, match=r"config\.json is damaged"):
            uvit_jax.load(tmp_path / "damaged")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(UvitError, match=r"expected a \.safetensors"):
        uvit_jax.load(tmp_path / "x.bin")
    with pytest.raises(UvitError, match="no workdir"):
        uvit_jax.load(tmp_path)


class Payload:
    """What a hostile file would hold: unpickling it writes a file."""

    def __reduce__(self):
        return (exec, ("open('/tmp/uvit_jax_payload', 'w')",))


def test_a_pickle_payload_is_refused_and_not_run(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    from pathlib import Path

    marker = Path("/tmp/uvit_jax_payload")
    marker.unlink(missing_ok=True)
    torch.save({"pos_embed": Payload()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(UvitError, match="cannot be read as weights only"):
            uvit_jax.load(tmp_path / name)
    torch.save({"nested": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(UvitError, match="no flat dict of tensors"):
        uvit_jax.load(tmp_path / "nested.pth")
    assert not marker.exists()
