"""Small UniDiffusers: ours, and diffusers' network and its outputs by our names."""

import numpy as np

from tests.helpers.weights import random_params
from uvit_jax.models.presets.unidiffuser import preset

__all__ = ["apply", "config", "inputs", "network", "random_params"]

TEXT, CLIP, SIDE = (5, 6), 7, 10


def config(version="v1", image_shape=(SIDE, SIDE, 4), **backbone):
    """A small UniDiffuser's config."""
    sizes = dict(width=16, depth=4, num_heads=2) | backbone
    return preset(version, image_shape, text_shape=TEXT, clip_size=CLIP, **sizes)


def network(version="v1", seed=0):
    """diffusers' network of that config, with random weights."""
    import pytest

    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")
    torch.manual_seed(seed)
    theirs = diffusers.UniDiffuserModel(
        text_dim=TEXT[1],
        clip_img_dim=CLIP,
        num_text_tokens=TEXT[0],
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=SIDE,
        patch_size=2,
        norm_num_groups=2,
        activation_fn="gelu",
        use_data_type_embedding=version == "v1",
    ).eval()
    # At initialisation biases and norms are trivial and would hide a misplaced one.
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return theirs


def inputs(model, batch_size=2, seed=0):
    """Normal random numbers in the shapes of a model's required inputs."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(batch_size, *shape)).astype(np.float32)
        for name, shape in model.layout.input_shapes.items()
    }


def apply(theirs, inputs, times, data_type=1):
    """The outputs of diffusers' network for our inputs, by our names. It takes one time for a
    batch, so examples are given one by one."""
    import torch

    rows = []
    for i in range(len(inputs["image"])):
        one = {name: torch.tensor(np.asarray(value[i : i + 1])) for name, value in inputs.items()}
        with torch.no_grad():
            image, clip, text = theirs(
                one["image"].permute(0, 3, 1, 2),
                one["clip_image"],
                one["text"],
                timestep_img=torch.tensor(float(times["image"][i])),
                timestep_text=torch.tensor(float(times["text"][i])),
                data_type=data_type,
            )
        rows.append((image.permute(0, 2, 3, 1).numpy(), clip.numpy(), text.numpy()))
    names = ("image", "clip_image", "text")
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}
