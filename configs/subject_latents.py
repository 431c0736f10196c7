"""The subject study's networks of 64×64 images, in latents of a small autoencoder.

    python -m experiments.train_autoencoder --config=configs/video_autoencoder.py:totems_64
    python -m experiments.train --config=configs/subject_latents.py:uvit_context

The target and the references are encoded as they are rendered. A token has a position of the
latents, which is a patch of 8×8 pixels, so that the sequences are as long as those of pixels
(`configs/subjects.py:NAME`). The cost of a step is the same: 1.52 GMAC a scene in the network where
pixels have 1.54, and .18 for encoding, forward alone.
"""

from typing import Any

from configs import subjects

AUTOENCODER = "workdirs/video_autoencoder_totems_64/autoencoder.safetensors"
SHAPE = (8, 8, 24)


def get_config(name: str = "uvit_context") -> dict[str, Any]:
    """The run of a network of `configs.subjects`, in latents."""
    config = subjects.get_config(name)
    for segment in config["model"]["segments"].values():
        if segment["kind"] == "patches":
            segment |= dict(shape=SHAPE, patch_size=1)
    config["data"]["autoencoder"] = AUTOENCODER
    config["sample"] |= dict(autoencoder=AUTOENCODER, latent_scale=1.0, clip=0.0)
    return config
