"""Every published size is recognised from names and shapes alone; nothing large is allocated."""

import jax
import numpy as np
import pytest

import uvit_jax
from tests.helpers.weights import random_params
from uvit_jax.errors import UvitError
from uvit_jax.interop import dit_weights, uvit_weights
from uvit_jax.interop.exporting import export
from uvit_jax.interop.recognise import recognise, title
from uvit_jax.interop.weight_files import WeightFile
from uvit_jax.models.presets import dit

# name: (pixels, patch, channels), (width, depth, heads), the options of the PyTorch model
UVITS = {
    "U-ViT-S/2": ((32, 2, 3), (512, 12, 8), {}),
    "U-ViT-S/4": ((64, 4, 3), (512, 12, 8), {}),
    "U-ViT-M/4": ((64, 4, 3), (768, 16, 12), {"rows": 1000}),
    "U-ViT-L/4": ((64, 4, 3), (1024, 20, 16), {"rows": 1000}),
    "U-ViT-L/2": ((32, 2, 4), (1024, 20, 16), {"rows": 1001}),
    "U-ViT-H/2": ((32, 2, 4), (1152, 28, 16), {"rows": 1001, "conv": False}),
    "U-ViT-L/4 of 512": ((64, 4, 4), (1024, 20, 16), {"rows": 1001}),
    "U-ViT-H/4": ((64, 4, 4), (1152, 28, 16), {"rows": 1001, "conv": False}),
    "U-ViT-S/2 of COCO": ((32, 2, 4), (512, 12, 8), {"context": 768}),
    "U-ViT-S/2 deep": ((32, 2, 4), (512, 16, 8), {"context": 768}),
}


def virtual(shapes):
    """Arrays of these shapes with one number of memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", UVITS)
def test_published_uvits(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    from tests.helpers import torch_uvit

    image, sizes, options = UVITS[name]
    with torch.device("meta"):
        theirs = torch_uvit.UViT(*image, *sizes, **options)
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    found = recognise(WeightFile("here", virtual(shapes)))
    assert title(found.config) == name.split(" of ")[0]
    assert found.config.backbone.num_heads == sizes[2]
    assert found.config.layout().num_tokens == shapes["pos_embed"][1]
    label = found.config.segments.get("label")
    rows = options.get("rows", 0)
    assert (label.num_classes, label.null_class) == (1000, rows == 1001) if rows else label is None
    assert found.config.segments["image"].shape == (image[0], image[0], image[2])


def official_dit(width, depth, patch, side):
    shapes = {
        "pos_embed": (1, (side // patch) ** 2, width),
        "x_embedder.proj.weight": (width, 4, patch, patch),
        "y_embedder.embedding_table.weight": (1001, width),
        "final_layer.linear.weight": (patch * patch * 8, width),
    }
    shapes |= {f"blocks.{i}.mlp.fc1.weight": (4 * width, width) for i in range(depth)}
    return virtual(shapes)


DITS = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@pytest.mark.parametrize("size", DITS)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_published_dits(size, patch):
    width, depth, heads = DITS[size]
    for side in (32, 64):
        found = recognise(WeightFile("here", official_dit(width, depth, patch, side)))
        assert title(found.config) == f"DiT-{size}/{patch}"
        assert found.config.backbone.num_heads == heads
        image = found.config.segments["image"]
        assert image.shape == (side, side, 4) and image.learned_range


def test_diffusers_dit():
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the extra `test`")
    with torch.device("meta"):
        theirs = diffusers.DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=64, out_channels=8, num_layers=12
        )
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    found = recognise(WeightFile("here", virtual(shapes), hints={"image_size": 64}))
    assert title(found.config) == "DiT-S/2" and found.style == "diffusers"
    assert found.config.segments["image"].shape == (64, 64, 4)


def test_what_shapes_do_not_imply_is_an_argument():
    with pytest.raises(UvitError, match=r"width 1152 and depth 27.*num_heads="):
        recognise(WeightFile("here", official_dit(1152, 27, 2, 32)))
    found = recognise(WeightFile("here", official_dit(1152, 27, 2, 32)), num_heads=8)
    assert title(found.config) == "DiT/2 of width 1152, depth 27 and 8 heads"
    with pytest.raises(UvitError, match=r"1001 rows.*num_classes=10"):
        recognise(WeightFile("here", official_dit(1152, 28, 2, 32)), num_classes=10)


@pytest.mark.parametrize(
    "rows, given, classes",
    [
        (1001, None, 1000),
        (1000, None, 1000),
        (101, 101, 101),
        (101, 100, 100),
        (10, 9, 9),
        (6, 5, 5),
        (6, 6, 6),
        (1000, 999, 999),
        (1001, 1001, 1001),
    ],
)
@pytest.mark.parametrize("family", ["DiT", "U-ViT"])
def test_tables_of_labels_with_and_without_a_null_class(family, rows, given, classes, caplog):
    tensors, style = labelled(family, rows)
    label = recognise(WeightFile("here", tensors), num_classes=given).config.segments["label"]
    assert (label.num_classes, label.null_class) == (classes, rows == classes + 1)
    assert not caplog.records
    for wrong in (rows + 1, rows - 2):
        with pytest.raises(UvitError, match=rf"{rows} rows.*num_classes={wrong}"):
            style.describe(tensors, "here", num_classes=wrong)


def labelled(family, rows):
    """The tensors of a model with a label table of so many rows, and the family's module."""
    if family == "DiT":
        tensors = official_dit(1152, 28, 2, 32)
        tensors |= virtual({"y_embedder.embedding_table.weight": (rows, 1152)})
        style = dit_weights
    else:
        shapes = {"pos_embed": (1, 2 + 16**2, 512), "label_emb.weight": (rows, 512)}
        shapes |= {"patch_embed.proj.weight": (512, 3, 2, 2), "out_blocks.0.x": ()}
        shapes |= {"mid_block.mlp.fc1.weight": (2048, 512)}
        tensors = virtual(shapes | {f"in_blocks.{i}.x": () for i in range(6)})
        style = uvit_weights
    return tensors, style


@pytest.mark.parametrize("rows", [6, 10, 11, 100, 101])
@pytest.mark.parametrize("family", ["DiT", "U-ViT"])
def test_tables_of_other_sizes_are_read_as_ever_and_logged(family, rows, caplog):
    tensors, _ = labelled(family, rows)
    null = family == "DiT"
    for given in (None, rows - 1, rows):
        caplog.clear()
        found = recognise(WeightFile("here", tensors), num_classes=given).config
        label = found.segments["label"]
        assert label.num_classes == (rows - null if given is None else given)
        assert label.null_class == (null if given is None else given < rows)
        said = [r.getMessage() for r in caplog.records]
        other = rows if null else rows - 1
        assert len(said) == (given is None)
        assert all(f"{rows} rows" in s and f"pass num_classes={other}" in s for s in said)


def test_a_dit_without_null_class_round_trips(tmp_path):
    config = dit.preset(
        "S",
        (8, 8, 4),
        patch_size=2,
        num_classes=7,
        null_class=False,
        width=24,
        depth=2,
        num_heads=3,
    )
    model = uvit_jax.build(config)
    params = random_params(model, seed=1)
    export(tmp_path / "x.safetensors", model, params, "official")
    again, read_params = uvit_jax.load(tmp_path / "x.safetensors", num_heads=3, num_classes=7)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, read_params, params)
    with pytest.raises(UvitError, match=r"null class.*--format=official"):
        export(tmp_path / "y.safetensors", model, params, "diffusers")
    with pytest.raises(UvitError, match="no null value"):
        model.layout.null("label", 1)


def test_models_of_other_families_raise_with_their_tensors():
    unet = {"conv_in.weight": (), "down_blocks.0.x": (), "mid_block.x": (), "up_blocks.0.x": ()}
    with pytest.raises(UvitError, match=r"down_blocks"):
        recognise(WeightFile("here", virtual(unet)))
