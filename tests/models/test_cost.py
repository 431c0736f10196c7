"""The cost of a forward pass against the published tables, and against formulas."""

import dataclasses

import pytest

from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model_config import parse_model
from uvit_jax.models.presets import dit, uvit

# Bao et al. 2023, table 1 and appendix, 10^9 multiply-accumulates.
PIXELS = dict(num_classes=1000, null_class=False, patch_size=4)
UVIT = {
    "CIFAR-10 S/2": (("S", (32, 32, 3)), dict(patch_size=2), 12.2),
    "CelebA-64 S/4": (("S", (64, 64, 3)), dict(patch_size=4), 12.2),
    "ImageNet-64 M/4": (("M", (64, 64, 3)), PIXELS, 35.2),
    "ImageNet-64 L/4": (("L", (64, 64, 3)), PIXELS, 76.5),
    "ImageNet-256 L/2": (("L", (32, 32, 4)), dict(patch_size=2, num_classes=1000), 76.5),
    "ImageNet-256 H/2": (
        ("H", (32, 32, 4)),
        dict(patch_size=2, num_classes=1000, final_conv="none"),
        133.2,
    ),
    "ImageNet-512 L/4": (("L", (64, 64, 4)), dict(patch_size=4, num_classes=1000), 76.5),
    "ImageNet-512 H/4": (
        ("H", (64, 64, 4)),
        dict(patch_size=4, num_classes=1000, final_conv="none"),
        133.2,
    ),
    "MS-COCO S/2": (("S", (32, 32, 4)), dict(patch_size=2, text_shape=(77, 768)), 16.2),
    "MS-COCO S/2 deep": (("S-deep", (32, 32, 4)), dict(patch_size=2, text_shape=(77, 768)), 21.2),
}
# Peebles & Xie 2023, table 4, by patch size.
DIT = {
    "S": {8: 0.36, 4: 1.41, 2: 6.06},
    "B": {8: 1.42, 4: 5.57, 2: 23.01},
    "L": {8: 5.01, 4: 19.70, 2: 80.70},
    "XL": {8: 7.39, 4: 29.04, 2: 118.62},
}


@pytest.mark.parametrize("name", UVIT)
def test_uvit_costs_what_is_published(name):
    args, options, gmacs = UVIT[name]
    cost = forward_cost(parse_model(uvit.preset(*args, **options)))
    assert cost.gmacs == pytest.approx(gmacs, rel=0.01)
    assert cost.parameters / 1e9 < 0.99 * gmacs  # the table counts attention's products


@pytest.mark.parametrize(("size", "patch"), [(s, p) for s in DIT for p in DIT[s]])
def test_dit_costs_what_is_published(size, patch):
    cost = forward_cost(parse_model(dit.preset(size, (32, 32, 4), patch_size=patch)))
    assert cost.gmacs == pytest.approx(DIT[size][patch], rel=0.01)


def small(**options):
    options = dict(patch_size=2, num_classes=7, width=16, depth=4, num_heads=2) | options
    return parse_model(uvit.preset("S", (8, 8, 3), **options))


def test_every_part_is_counted_exactly():
    D, N, P, L = 16, 18, 12, 5  # width, tokens with label and time, numbers in a patch, blocks
    skips, convolution = 2 * N * 2 * D * D, 64 * 9 * 3 * 3
    cost = forward_cost(small())
    assert cost.parameters == 16 * P * D * 2 + L * N * 12 * D * D + skips + convolution
    assert cost.attention == L * 2 * N * N * D
    shorter = forward_cost(small(skip="none", final_conv="none"))
    assert cost.parameters - shorter.parameters == skips + convolution

    model = parse_model(
        dit.preset(
            "S", (8, 8, 4), patch_size=2, conditioning="cross", width=16, depth=3, num_heads=2
        )
    )
    D, N, P, L, M = 16, 16, 16, 3, 2  # M: time and label, attended to
    cross = N * 2 * D * D + M * 2 * D * D  # queries and output; keys and values
    time = 256 * D + D * D
    cost = forward_cost(model)
    assert cost.parameters == N * P * D * 3 + time + L * (N * 12 * D * D + cross)
    assert cost.attention == L * (2 * N * N * D + 2 * N * M * D)


def test_the_cost_does_not_depend_on_how_the_model_is_run():
    config = small()
    for options in ({"scan": False}, {"unroll": 2}, {"remat": "full"}, {"attention": "cudnn"}):
        backbone = dataclasses.replace(config.backbone, **options)
        assert forward_cost(dataclasses.replace(config, backbone=backbone)) == forward_cost(config)
