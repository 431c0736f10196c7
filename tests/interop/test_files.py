"""Files of weights: exact both ways, and refused with the key's name when they do not fit."""

import pickle

import numpy as np
import pytest
import safetensors.numpy

import uvit_jax
from tests.helpers.weights import equal, random_params
from uvit_jax.errors import UvitError
from uvit_jax.interop import files, mapping, uvit_weights
from uvit_jax.interop.files import save_safetensors
from uvit_jax.models.presets.uvit import preset


def make(**kwargs):
    options = dict(patch_size=2, num_classes=5, width=48, depth=4, num_heads=3) | kwargs
    model = uvit_jax.build(preset("S", (8, 8, 3), **options))
    return model, random_params(model)


def official(path, model, params):
    tensors = mapping.exported(uvit_weights.entries(model.config), params)
    safetensors.numpy.save_file(tensors, path)
    return tensors


def test_our_own_file_round_trips_with_its_config(tmp_path):
    model, params = make()
    save_safetensors(tmp_path / "own.safetensors", model, params)
    loaded, again = uvit_jax.load(tmp_path / "own.safetensors")
    assert equal(params, again) and loaded.config == model.config
    assert [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]


@pytest.mark.parametrize("size, entries", [("S", 164), ("M", 213), ("L", 261), ("H", 355)])
def test_as_many_tensors_as_the_official_files_hold(size, entries):
    # The numbers are of CIFAR-10 (S), ImageNet-64 (M) and ImageNet-256 (L and H).
    labels = {} if size == "S" else {"num_classes": 1000}
    conv = "none" if size == "H" else "after"
    config = preset(size, (32, 32, 4), patch_size=2, final_conv=conv, **labels)
    keys = {e.key for e in uvit_weights.entries(uvit_jax.build(config).config)}
    assert len(keys) == entries


def test_mismatched_tensors_raise(tmp_path):
    model, params = make()
    path = tmp_path / "uvit.safetensors"
    tensors = official(path, model, params)

    def load(changed):
        safetensors.numpy.save_file(changed, path)
        return uvit_jax.load(path, num_heads=3, num_classes=5)

    def cut(*keys):
        return {k: np.ascontiguousarray(tensors[k][..., :-1]) for k in keys}

    load(tensors)
    without = {k: v for k, v in tensors.items() if k != "norm.weight"}
    surprise = {"surprise": np.zeros(3, np.float32)}
    key = "in_blocks.1.attn.qkv.weight"
    with pytest.raises(UvitError, match=r"tensors; missing: norm\.weight$"):
        load(without)
    with pytest.raises(UvitError, match=r"tensors; unexpected: surprise$"):
        load(tensors | surprise)
    with pytest.raises(UvitError, match=r"in_blocks\.1\.attn\.qkv\.weight has shape \(144, 47\)"):
        load(tensors | cut(key))
    # One error names everything.
    with pytest.raises(UvitError) as caught:
        load(without | surprise | cut(key, "decoder_pred.bias"))
    for name in ("missing: norm.weight", "unexpected: surprise", f"{key} has", "decoder_pred.bias"):
        assert name in str(caught.value)
    # A shape that our own array happens to have is not theirs.
    with pytest.raises(UvitError, match=r"patch_embed\.proj\.weight|impossible shape"):
        load(tensors | {"patch_embed.proj.weight": np.zeros((12, 48), np.float32)})
    with pytest.raises(UvitError, match=r"out_blocks\.0\.attn\.qkv\.bias|unexpected"):
        load(tensors | {"out_blocks.0.attn.qkv.bias": np.zeros(144, np.float32)})
    with pytest.raises(UvitError, match=r"tensors: weights$"):
        load({"weights": np.zeros(3, np.float32)})
    with pytest.raises(UvitError, match=r"6 rows.*num_classes=3"):
        uvit_weights.describe(tensors, "here", num_heads=3, num_classes=3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_raise_with_their_key(value, tmp_path):
    model, params = make()
    path = tmp_path / "uvit.safetensors"
    tensors = official(path, model, params)
    tensors["mid_block.mlp.fc2.bias"][7] = value
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UvitError, match=r"not finite .*: mid_block\.mlp\.fc2\.bias$"):
        uvit_jax.load(path, num_heads=3, num_classes=5)


def test_positions_beyond_those_of_the_tokens_are_refused():
    model, params = make()
    entries = list(uvit_weights.entries(model.config))
    tensors = mapping.exported(entries, params)
    tensors["pos_embed"] = np.concatenate([tensors["pos_embed"]] * 2, axis=1)
    with pytest.raises(UvitError, match=r"pos_embed has shape \(1, 36, 48\)"):
        mapping.imported(entries, tensors, model.abstract_params, "here")


def test_damaged_and_foreign_files(tmp_path):
    model, params = make()
    path = tmp_path / "own.safetensors"
    save_safetensors(path, model, params)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UvitError, match=r"own\.safetensors.*safetensors file"):
        uvit_jax.load(path)
    with pytest.raises(UvitError, match="does not exist"):
        uvit_jax.load(tmp_path / "nowhere.safetensors")
    tensors = {"pos_embed": np.zeros((1, 5, 8)), "mid_block.norm1.weight": np.zeros(8)}
    tensors |= {f"{k}.0.norm1.weight": np.zeros(8) for k in ("in_blocks", "out_blocks")}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UvitError, match=r"lacks the tensor 'patch_embed\.proj\.weight'"):
        uvit_jax.load(path)
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    torch.save({"pos_embed": torch.zeros(1000)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-500])
    (tmp_path / "page.pth").write_text("<html>404</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    reasons = {"cut": "it is truncated$", "page": "it is not a PyTorch file", "empty": "EOFError"}
    for name, reason in reasons.items():
        with pytest.raises(UvitError, match=f"cannot be read as weights only: {reason}") as caught:
            uvit_jax.load(tmp_path / f"{name}.pth")
        assert_one_clause(caught.value)


def test_folders_that_hold_nothing_known(tmp_path):
    (tmp_path / "damaged").mkdir()
    for text in ("{", "[]", "{}"):
        (tmp_path / "damaged" / "config.json").write_text(text)
        with pytest.raises(UvitError, match=r"config\.json is damaged"):
            uvit_jax.load(tmp_path / "damaged")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(UvitError, match=r"expected a \.safetensors"):
        uvit_jax.load(tmp_path / "x.bin")
    with pytest.raises(UvitError, match="not a workdir"):
        uvit_jax.load(tmp_path)


def assert_one_clause(error):
    """Neither torch's advice to trust the file, nor its colours and lines."""
    text = str(error).lower()
    assert not any(word in text for word in ("\n", "\x1b", "trust", "weights_only", ". ")), text


class Shell:
    """The same with a function that torch blocks by its module."""

    def __reduce__(self):
        import os

        return (os.system, ("touch /tmp/uvit_jax_payload",))


class Record:
    """What holds no code, but is no tensor."""


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
    for name, held in {"shell": Shell(), "record": Record()}.items():
        torch.save({"pos_embed": torch.zeros(2), "x": held}, tmp_path / f"{name}.pth")
    torch.save(Shell(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    shell = r"it holds (posix|nt)\.system, which is not a tensor$"
    reasons = {"evil": r"it holds (builtins\.)?exec, which", "plain": "it is not a PyTorch file"}
    reasons |= {"shell": shell, "old": shell, "record": r"it holds [\w.]*test_files\.Record, which"}
    for name, reason in reasons.items():
        with pytest.raises(UvitError, match=f"cannot be read as weights only: {reason}") as caught:
            uvit_jax.load(tmp_path / f"{name}.pth")
        assert_one_clause(caught.value)
    torch.save({"nested": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(UvitError, match="flat dict of tensors"):
        uvit_jax.load(tmp_path / "nested.pth")
    assert not marker.exists()


def test_a_dit_training_file_gives_its_average_or_its_network_and_runs_nothing(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    import argparse
    from pathlib import Path

    path = tmp_path / "0400000.pt"
    flags = argparse.Namespace(model="DiT-XL/2", lr=1e-4)
    weights = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(("model", "ema"))}
    torch.save({**weights, "opt": {"state": {}}, "args": flags}, path)
    assert files.read_tensors(path)["w"][0] == 1 and files.read_tensors(path, raw=True)["w"][0] == 0
    # What may stand in the flags is no more than numbers and texts.
    marker = Path("/tmp/uvit_jax_payload")
    marker.unlink(missing_ok=True)
    torch.save({**weights, "args": argparse.Namespace(evil=Payload())}, path)
    with pytest.raises(UvitError, match="cannot be read as weights only"):
        files.read_tensors(path)
    assert not marker.exists()
    torch.save({"model": weights["model"], "args": flags}, path)
    with pytest.raises(UvitError, match="'ema'"):
        files.read_tensors(path)
