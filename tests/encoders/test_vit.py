"""DINO and DINOv2 compute what transformers' do, under each naming; the authors' interpolation."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx

from uvit_jax.encoders.vit import ViT, ViTConfig, ViTNetwork
from uvit_jax.encoders.vit_weights import load_vit
from uvit_jax.errors import UvitError
from uvit_jax.interop import files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=28)
SIZES |= dict(patch_size=7)
KINDS = {
    "dino": lambda: transformers.ViTModel(
        transformers.ViTConfig(**SIZES, intermediate_size=64, layer_norm_eps=1e-6),
        add_pooling_layer=False,
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3)
    ),
}
SHAPES = [(28, 28), (21, 49)]  # its own, and one that interpolates


@pytest.fixture(scope="module", params=KINDS)
def reference(request, tmp_path_factory):
    torch.manual_seed(0)
    model = KINDS[request.param]().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.3 if "embed" in name or "token" in name or p.ndim == 1 else 0.1
            p.add_(spread * torch.randn(p.shape))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def pictures(shape):
    return np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def expected(kind, model, x, **options):
    if kind == "dino":
        options["interpolate_pos_encoding"] = True
    with torch.no_grad():
        found = model(torch.tensor(x.transpose(0, 3, 1, 2)), **options)
    return found.last_hidden_state.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_are_those_of_transformers(reference, shape):
    kind, model, folder = reference
    tower, params = load_vit(folder)
    x, config = pictures(shape), tower.config
    wanted = expected(kind, model, x)
    found = tower.apply(params, x)
    close(found["hidden"], wanted)
    close(found["pooled"], wanted[:, 0])
    assert config.layer_scale == (kind != "dino")
    assert config.registers == 3 * (kind == "registers")
    # What exceeds a multiple of the patch is cut off.
    more = np.pad(x, ((0, 0), (0, 3), (0, 6), (0, 0)))
    assert np.array_equal(tower.apply(params, more)["pooled"], found["pooled"])


def authors(kind, state):
    """The names that the authors' programs give, queries, keys and values in one tensor."""
    found, layers = {}, {}
    for name, value in state.items():
        new = (
            name.removeprefix("encoder.").replace("layers.", "blocks.").replace("layer.", "blocks.")
        )
        for old, theirs in (
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.mask_token", "mask_token"),
            ("embeddings.register_tokens", "register_tokens"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("attention.o_proj", "attn.proj"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm", "norm"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
        ):
            new = new.replace(old, theirs)
        if "attention." in new:
            block, _, rest = new.partition("attention.")
            layers.setdefault(f"{block}attn.qkv.{rest.split('.')[1]}", {})[rest[0]] = value
        else:
            found[new] = value
    for name, parts in layers.items():
        found[name] = torch.cat([parts[k] for k in "qkv"])
    return found


def test_published_names_are_read(reference, tmp_path):
    kind, model, folder = reference
    published = [(r"attention\.o_proj", "attention.output.dense")]
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
        published.append((rf"attention\.{letter}_proj", f"attention.attention.{word}"))
    if kind == "dino":
        published += [(r"^layers", "encoder.layer"), (r"mlp\.fc1", "intermediate.dense")]
        published += [(r"mlp\.fc2", "output.dense")]
    state = {}
    for name, value in model.state_dict().items():
        for pattern, word in published:
            name = re.sub(pattern, word, name)
        state[f"vit.{name}"] = value.numpy()
    files.write_tensors(tmp_path / "model.safetensors", state)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load_vit(tmp_path)[1], load_vit(folder)[1])


def test_the_authors_files_are_read(reference, tmp_path):
    kind, model, folder = reference
    file = tmp_path / "theirs.pth"
    torch.save(authors(kind, model.state_dict()), file)
    tower, params = load_vit(file)
    x = pictures((28, 28))
    # The one head size of all published ones is 64; this network's is another.
    own = ViT(dataclasses.replace(tower.config, num_heads=3))
    close(own.apply(params, x)["hidden"], expected(kind, model, x))
    for name, value in load_vit(folder)[1].items():
        jax.tree.map(np.testing.assert_array_equal, params[name], value)
    assert tower.config.position_offset == (0 if kind == "registers" else 0.1)


def test_the_authors_interpolation():
    config = ViTConfig(
        width=8, depth=1, num_heads=1, mlp_width=8, image_size=37, patch_size=1,
        position_offset=0.1,
    )  # fmt: skip
    grid = np.random.default_rng(0).normal(size=(1 + 37 * 37, 8)).astype(np.float32)
    network = ViTNetwork(config, rngs=nnx.Rngs(0))
    network.positions[...] = grid
    # With the step that a scale factor of 16.1 / 37 stands for, as their programs ask for it.
    wanted = torch.nn.functional.interpolate(
        torch.tensor(grid[1:].reshape(1, 37, 37, 8).transpose(0, 3, 1, 2)),
        scale_factor=(16.1 / 37, 12.1 / 37),
        mode="bicubic",
    ).numpy()
    found = np.asarray(network._positions(16, 12))
    close(found[1:].reshape(16, 12, 8), wanted[0].transpose(1, 2, 0))
    assert np.array_equal(found[0], grid[0])


def test_other_files_are_refused(reference, tmp_path):
    _, model, _ = reference
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    for change, message in (
        (lambda s: s.pop("layernorm.weight"), "missing: norm.weight"),
        (lambda s: s.update({"extra.weight": np.zeros(1)}), "holds extra.weight"),
        (lambda s: s.pop("embeddings.position_embeddings"), "no DINO"),
    ):
        changed = dict(state)
        change(changed)
        files.write_tensors(tmp_path / "x.safetensors", changed)
        with pytest.raises(UvitError, match=message):
            load_vit(tmp_path / "x.safetensors")
