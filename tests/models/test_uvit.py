"""U-ViT against its publication: sizes, and the outputs of an independent implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from uvit_jax.models.presets.uvit import preset

# Bao et al. 2023, appendix, and the official checkpoints: parameters in millions.
PUBLISHED = {
    "CIFAR-10 S/2": (preset("S", (32, 32, 3), patch_size=2), 44.26),
    "CelebA-64 S/4": (preset("S", (64, 64, 3), patch_size=4), 44.29),
    "ImageNet-64 M/4": (
        preset("M", (64, 64, 3), patch_size=4, num_classes=1000, null_class=False),
        130.94,
    ),
    "ImageNet-64 L/4": (
        preset("L", (64, 64, 3), patch_size=4, num_classes=1000, null_class=False),
        286.83,
    ),
    "ImageNet-256 L/2": (preset("L", (32, 32, 4), patch_size=2, num_classes=1000), 286.76),
    "ImageNet-256 H/2": (
        preset("H", (32, 32, 4), patch_size=2, num_classes=1000, final_conv="none"),
        500.83,
    ),
    "ImageNet-512 L/4": (preset("L", (64, 64, 4), patch_size=4, num_classes=1000), 286.86),
    "ImageNet-512 H/4": (
        preset("H", (64, 64, 4), patch_size=4, num_classes=1000, final_conv="none"),
        500.94,
    ),
    "MS-COCO S/2": (preset("S", (32, 32, 4), patch_size=2, text_shape=(77, 768)), 44.69),
    "MS-COCO S/2 deep": (preset("S-deep", (32, 32, 4), patch_size=2, text_shape=(77, 768)), 58.35),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name):
    config, millions = PUBLISHED[name]
    assert round(uvit_jax.build(config).num_params / 1e6, 2) == millions


VARIANTS = {
    "unconditional": {},
    "labels": {"rows": 11},
    "text": {"context": 24},
    "time_mlp": {"time_mlp": True},
    "no_conv": {"rows": 11, "conv": False},
    "qkv_bias": {"qkv_bias": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_pytorchs(variant, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    from tests.helpers import torch_uvit

    options = VARIANTS[variant]
    torch.manual_seed(0)
    theirs = torch_uvit.UViT(8, 2, 3, width=48, depth=4, heads=3, **options).eval()
    # At initialisation biases and norms are trivial and would hide a misplaced one.
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "nnet_ema.pth"
    torch.save(theirs.state_dict(), path)
    model, params = uvit_jax.load(path, num_heads=3, num_classes=10 if "rows" in options else None)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    t = np.array([3.5, 700.0], np.float32)
    inputs, extra = {"image": x}, {}
    if "rows" in options:
        inputs["label"] = np.array([4, 10], np.int32)
        extra["y"] = torch.tensor([4, 10])
    if "context" in options:
        inputs["text"] = rng.normal(size=(2, 77, 24)).astype(np.float32)
        extra["context"] = torch.tensor(inputs["text"])
    ours = jax.jit(model.apply)(params, inputs, {"image": t})["image"]
    with torch.no_grad():
        image = torch.tensor(x).permute(0, 3, 1, 2)
        expected = theirs(image, torch.tensor(t), **extra).permute(0, 2, 3, 1).numpy()
    scale = np.abs(expected).max()
    assert np.abs(ours - expected).max() <= 1e-5 * scale
    assert scale > 0.1  # or the comparison would say nothing


def test_scan_and_loop_are_one_function():
    config = preset("S", (8, 8, 3), patch_size=2, num_classes=5, width=32, depth=6, num_heads=2)
    looped = {**config, "backbone": {**config["backbone"], "scan": False}}
    model = uvit_jax.build(config)
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    inputs = {"image": x, "label": jnp.array([0, 1, 5])}
    times = {"image": jnp.array([0.0, 10.0, 999.0])}

    def loss(params, model):
        return jnp.square(model.apply(params, inputs, times)["image"] - x).mean()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    one = gradient(params, model)
    for backbone in (
        {"scan": False},
        {"unroll": 2},
        {"remat": "full"},
        {"remat": "dots"},
        {"scan": False, "remat": "full"},
    ):
        looped = {**config, "backbone": {**config["backbone"], **backbone}}
        other = gradient(params, uvit_jax.build(looped))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other
        )
