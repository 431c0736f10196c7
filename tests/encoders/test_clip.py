"""CLIP's towers compute what transformers' do, from whatever file they are loaded."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from uvit_jax.encoders import clip_weights as interop
from uvit_jax.encoders.clip import Clip, TextConfig, VisionConfig, prepare
from uvit_jax.errors import UvitError

TEXT = TextConfig(
    width=32, depth=3, num_heads=4, mlp_width=48, projection=24, vocab_size=60, length=11, eos=59
)
VISION = VisionConfig(
    width=48, depth=2, num_heads=3, mlp_width=64, projection=24, image_size=28, patch_size=7
)


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.fixture(scope="module")
def reference():
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)

    def settings(config, **more):
        shared = dict(hidden_size="width", intermediate_size="mlp_width")
        shared |= dict(num_hidden_layers="depth", num_attention_heads="num_heads")
        shared |= dict(projection_dim="projection")
        return {k: getattr(config, v) for k, v in shared.items()} | more

    text = settings(
        TEXT, vocab_size=60, max_position_embeddings=11, bos_token_id=58, eos_token_id=59
    )
    vision = settings(VISION, image_size=28, patch_size=7)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # biases begin at zero and norms at one
            spread = 0.3 if "embed" in name or p.ndim == 1 else 0.1
            p.add_(spread * torch.randn(p.shape))
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 58, (4, 11))
    ids[:, 0] = 58
    for row, end in enumerate((3, 10, 5, 1)):
        ids[row, end:] = 59
    return ids


def test_texts(reference, folder, ids):
    import torch

    tower, params = interop.load_text(folder)
    assert tower.config == TEXT
    apply = jax.jit(tower.apply)
    ours = apply(params, ids)
    with torch.no_grad():
        theirs = reference.text_model(torch.tensor(ids))
        embeds = reference.text_projection(theirs.pooler_output)
    close(ours["hidden"], theirs.last_hidden_state)
    close(ours["pooled"], theirs.pooler_output)
    close(ours["embeds"], embeds)
    # A token never sees what comes after it.
    changed = ids.copy()
    changed[:, 6:] = 7
    other = apply(params, changed)["hidden"]
    assert np.abs(other - ours["hidden"])[:, :6].max() < 1e-5 < np.abs(other - ours["hidden"]).max()


def test_images(reference, folder):
    import torch

    tower, params = interop.load_vision(folder)
    assert tower.config == VISION
    x = np.random.default_rng(1).normal(size=(3, 28, 28, 3)).astype(np.float32)
    ours = jax.jit(tower.apply)(params, x)
    with torch.no_grad():
        theirs = reference.vision_model(torch.tensor(x.transpose(0, 3, 1, 2)))
        embeds = reference.visual_projection(theirs.pooler_output)
    close(ours["hidden"], theirs.last_hidden_state)
    close(ours["pooled"], theirs.pooler_output)
    close(ours["embeds"], embeds)


def test_the_oldest_checkpoints_end_a_text_at_the_greatest_id(ids):
    tower = Clip(dataclasses.replace(TEXT, eos=None))
    params = tower.init(jax.random.key(0))
    out = jax.jit(tower.apply)(params, ids)
    ends = ids.argmax(axis=1)
    assert ends.tolist() == [3, 10, 5, 1]
    assert np.array_equal(out["pooled"], out["hidden"][np.arange(4), ends])


def test_activation_and_precision_are_heeded(ids):
    tower = Clip(TEXT)
    params = tower.init(jax.random.key(0))

    def hidden(**changes):
        return jax.jit(Clip(dataclasses.replace(TEXT, **changes)).apply)(params, ids)["hidden"]

    exact, half = hidden(), hidden(dtype="bfloat16")
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - exact).max() < 0.1
    assert np.abs(hidden(activation="gelu") - exact).max() > 1e-4


def test_what_is_exported_is_what_is_read_from_any_file(folder, tmp_path):
    torch = pytest.importorskip("torch")
    (text, ours), (vision, seen) = interop.load_text(folder), interop.load_vision(folder)
    both = {**interop.export(text, ours), **interop.export(vision, seen)}
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    assert both.keys() == stored.keys() - {"logit_scale"}
    assert all(np.array_equal(both[name], stored[name]) for name in both)
    # One tower alone, without its prefix, as a .bin; the positions' numbers of old files.
    bare = {n.removeprefix("text_model."): torch.tensor(a) for n, a in stored.items()}
    bare = {n: a for n, a in bare.items() if n.split(".")[0] not in ("vision_model", "logit_scale")}
    bare = {n: a for n, a in bare.items() if "projection" not in n}
    bare["embeddings.position_ids"] = torch.arange(11)[None]
    torch.save(bare, tmp_path / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower, params = interop.load_text(tmp_path)
    assert tower.config == dataclasses.replace(TEXT, projection=0)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params["blocks"], ours["blocks"])))
    with pytest.raises(UvitError, match=r"no CLIP vision tower: embeddings\.patch_embedding"):
        interop.load_vision(tmp_path / "pytorch_model.bin")


def test_published_sizes():
    text = dict(depth=12, vocab_size=49408, length=77, eos=49407)
    large = Clip(TextConfig(width=768, num_heads=12, mlp_width=3072, projection=768, **text))
    assert large.num_params == 123_060_480 + 768 * 768
    options = dict(depth=24, width=1024, num_heads=16, mlp_width=4096, projection=768)
    vision = Clip(VisionConfig(**options, image_size=224, patch_size=14))
    assert vision.num_params == 303_179_776 + 1024 * 768


@pytest.mark.parametrize("shape", [(30, 40), (61, 28), (28, 28), (19, 50)])
def test_images_are_prepared_as_by_transformers(shape):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    size = dict(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    pixels = np.asarray(coarse.resize(shape[::-1], Image.BICUBIC))
    theirs = kind(**size)(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    ours = np.asarray(prepare(pixels[None].astype(np.float32), 28))[0]
    assert ours.shape == (28, 28, 3)
    # One of 256 levels: Pillow computes with whole numbers.
    assert np.abs(ours - theirs.transpose(1, 2, 0)).max() < 1.1 / 255 / 0.26


def test_bad_files_and_inputs_raise(tmp_path, ids):
    tower = Clip(TEXT)
    params = tower.init(jax.random.key(0))
    with pytest.raises(UvitError, match=r"ids \(B, T\), T up to 11, got \(4, 12\)"):
        tower.apply(params, np.zeros((4, 12), int))
    with pytest.raises(UvitError, match=r"\(B, 28, 28, 3\), got \(1, 14, 14, 3\)"):
        Clip(VISION).apply({}, np.zeros((1, 14, 14, 3)))
    with pytest.raises(UvitError, match="does not divide"):
        dataclasses.replace(TEXT, num_heads=5)
    with pytest.raises(UvitError, match="did you mean 'quick_gelu'"):
        dataclasses.replace(TEXT, activation="quick_gel")
    with pytest.raises(UvitError, match=r"no model.safetensors or pytorch_model.bin"):
        interop.load_text(tmp_path)
    tensors = interop.export(tower, params)
    del tensors["text_model.final_layer_norm.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UvitError, match=r"missing: final_layer_norm\.bias"):
        interop.load_text(tmp_path)
    with pytest.raises(UvitError, match=r"has no tokenizer\.json"):
        safetensors.numpy.save_file(interop.export(tower, params), tmp_path / "model.safetensors")
        interop.load_text_encoder(tmp_path)
