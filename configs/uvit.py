"""U-ViT, every published model (Bao et al., "All are Worth Words", CVPR 2023).

The names are DATASET-SIZE/PATCH. Each is one run:

    tfds build cifar10 --file_format=array_record
    python -m experiments.train --config=configs/uvit.py:cifar10-S/2 --workdir=/data/cifar10
    tfds build celeb_a --file_format=array_record
    python -m experiments.train --config=configs/uvit.py:celeba64-S/4 --workdir=/data/celeba64
    tfds build imagenet2012 --file_format=array_record
    python -m experiments.train --config=configs/uvit.py:imagenet64-M/4 --workdir=/data/imagenet64
    python -m experiments.encode_latents --data.name=imagenet2012 --data.image_size=256 \\
        --data.labels=label --autoencoder=vae.safetensors --mirror --out=latents/imagenet256
    python -m experiments.train --config=configs/uvit.py:imagenet256-L/2 --workdir=/data/uvit_l
    python -m experiments.encode_latents --data.name=imagenet2012 --data.image_size=512 \\
        --data.labels=label --autoencoder=vae.safetensors --mirror --out=latents/imagenet512
    python -m experiments.train --config=configs/uvit.py:imagenet512-H/4 --workdir=/data/uvit_h
    tfds build coco_captions --file_format=array_record
    python -m experiments.encode_latents --data.name=coco_captions --data.image_size=256 \\
        --data.text=True --autoencoder=vae.safetensors --scale=0.23010 --out=latents/coco256
    python -m experiments.encode_text --latents=latents/coco256 --encoder=clip-vit-large-patch14
    python -m experiments.train --config=configs/uvit.py:coco-S/2 --workdir=/data/coco

Expected and cost: the published FIDs (50k samples; COCO 30k captions of the validation set), the
parameters, GMAC of a forward pass, and FLOPs of the full training.

                       FID  parameters   GMAC    FLOPs
    cifar10-S/2       3.11      44.26M   12.2   4.7e18
    celeba64-S/4      2.87      44.29M   12.2   4.7e18
    imagenet64-M/4    5.85     130.94M   35.2   6.5e19
    imagenet64-L/4    4.26     286.83M   76.5   1.4e20
    imagenet256-L/2   3.40     286.76M   76.5   1.4e20
    imagenet256-H/2   2.29     500.83M  133.2   4.1e20
    imagenet512-L/4   4.67     286.86M   76.5   2.4e20
    imagenet512-H/4   4.05     500.94M  133.2   4.1e20
    coco-S/2          5.95      44.69M   16.2   2.5e19
    coco-S/2-deep     5.48      58.35M   21.2   3.3e19

No FID has been reproduced here: that takes accelerators. On CIFAR-10 the loss falls below 0.04
within the first 10k steps and ends near 0.03.

The published recipe (tables 1 and 4, appendix): eps prediction, AdamW with weight decay 0.03 and
constant learning rate, an EMA of the parameters with decay 0.9999 from the first step. `RECIPES`
holds what differs. H and COCO use Stable Diffusion's schedule of 1000 steps, the others the
continuous VP-SDE. CIFAR-10 and CelebA are sampled by Euler-Maruyama with 1000 steps, the others by
DPM-Solver (on the continuous schedule) or DPM-Solver++ with 50 network evaluations. On ImageNet
64×64 labels are never dropped and there is no guidance.

Latents are those of Stable Diffusion's autoencoder, sampled anew at every step from the moments of
every image and its mirror image, which are encoded once (ImageNet in float16: 42 GB at 256×256 as
32×32×4, 168 GB at 512×512 as 64×64×4). `vae.safetensors` is that autoencoder's file,
`diffusion_pytorch_model.safetensors` in the `vae` folder of Stable Diffusion. COCO's latents are
multiplied by 0.23010 and stored beside the 77×768 features of every caption from CLIP ViT-L/14; the
null caption is the features of the empty text.

One departure: the paper first crops CelebA to 128×128 pixels around the face, which leaves less
background than the full width that is used here. To train on its images, crop them beforehand and
set --config.data.name=folder --config.data.path=FOLDER; the FID of 2.87 is on such images.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from uvit_jax.errors import UvitError, nearest
from uvit_jax.models.presets import uvit


class Recipe(NamedTuple):
    """What differs between the runs: `steps` and `warmup` in thousands, `drop` the share of
    labels or captions that are replaced by the null, `guidance` ours (0 is none)."""

    steps: int
    batch: int
    rate: float
    warmup: float
    betas: tuple[float, float]
    schedule: str
    sampler: tuple[str, int]
    drop: float = 0.0
    guidance: float = 0.0


SDE, FAST, FAST_PP = ("euler_maruyama", 1000), ("dpm_solver", 50), ("dpm_solver_pp", 50)
RECIPES = {
    "cifar10-S/2": Recipe(500, 128, 2e-4, 2.5, (0.99, 0.999), "vp_linear", SDE),
    "celeba64-S/4": Recipe(500, 128, 2e-4, 5, (0.99, 0.99), "vp_linear", SDE),
    "imagenet64-M/4": Recipe(300, 1024, 3e-4, 5, (0.99, 0.99), "vp_linear", FAST),
    "imagenet64-L/4": Recipe(300, 1024, 3e-4, 5, (0.99, 0.99), "vp_linear", FAST),
    "imagenet256-L/2": Recipe(300, 1024, 2e-4, 5, (0.99, 0.99), "vp_linear", FAST, 0.15, 0.4),
    "imagenet256-H/2": Recipe(500, 1024, 2e-4, 5, (0.99, 0.99), "sd", FAST_PP, 0.1, 0.4),
    "imagenet512-L/4": Recipe(500, 1024, 2e-4, 5, (0.99, 0.99), "vp_linear", FAST, 0.15, 0.7),
    "imagenet512-H/4": Recipe(500, 1024, 2e-4, 5, (0.99, 0.99), "sd", FAST_PP, 0.1, 0.7),
    "coco-S/2": Recipe(1000, 256, 2e-4, 5, (0.9, 0.9), "sd", FAST_PP, 0.1, 1.0),
    "coco-S/2-deep": Recipe(1000, 256, 2e-4, 5, (0.9, 0.9), "sd", FAST_PP, 0.1, 1.0),
}
NAMES = (*RECIPES,)

# The data set's config, the shape of the noisy image or latents, and the conditions of the model.
LATENTS = dict(name="latents", labels="label", flip=True)
CLASSES = dict(num_classes=1000)
DATA = {
    "cifar10": (dict(name="cifar10", flip=True), (32, 32, 3), {}),
    "celeba64": (dict(name="celeb_a", image_size=64, flip=True), (64, 64, 3), {}),
    "imagenet64": (
        dict(name="imagenet2012", image_size=64, labels="label", flip=True),
        (64, 64, 3),
        CLASSES | dict(null_class=False),
    ),
    "imagenet256": (LATENTS | dict(path="latents/imagenet256"), (32, 32, 4), CLASSES),
    "imagenet512": (LATENTS | dict(path="latents/imagenet512"), (64, 64, 4), CLASSES),
    "coco": (
        dict(name="latents", path="latents/coco256", features=True),
        (32, 32, 4),
        dict(text_shape=(77, 768)),
    ),
}


def get_config(name: str = "imagenet256-L/2") -> ConfigDict:
    """The config of the run `name`, one of `NAMES`."""
    if name not in RECIPES:
        raise UvitError(f"configs/uvit.py:{name} is not a known run{nearest(name, NAMES)}")
    recipe = RECIPES[name]
    dataset, size, *deep = name.split("-")
    data, shape, conditions = DATA[dataset]
    size, _, patch_size = size.partition("/")
    large, latents = size != "S", data["name"] == "latents"
    config = ConfigDict()
    config.seed = 0
    config.data = data
    config.model = uvit.preset(
        "-".join((size, *deep)),
        shape,
        patch_size=int(patch_size),
        final_conv="none" if size == "H" else "after",
        **conditions,
    )
    config.model["dtype"] = "float32" if dataset == "cifar10" else "bfloat16"
    if large:
        config.model["backbone"]["remat"] = "full"
        config.mesh = dict(data=1, fsdp=-1)
    config.diffusion = dict(schedule=dict(name=recipe.schedule), prediction="eps")
    config.optimizer = dict(
        learning_rate=recipe.rate,
        warmup_steps=int(1000 * recipe.warmup),
        b1=recipe.betas[0],
        b2=recipe.betas[1],
        weight_decay=0.03,
    )
    config.train = dict(
        steps=1000 * recipe.steps,
        batch_size=recipe.batch,
        ema_decay=0.9999,
        ema_warmup=False,
        drop={"text" if dataset == "coco" else "label": recipe.drop} if recipe.drop else {},
        checkpoint_every=5000 if large else 10_000,
        log_every=100,
        sample_every=0 if latents else 50_000,
    )
    sampler, steps = recipe.sampler
    config.sample = dict(
        sampler=dict(name=sampler, steps=steps),
        guidance_scale=recipe.guidance,
        count=16 if latents else 64,
    )
    if dataset == "coco":
        config.sample.latent_scale = 0.23010
    return config
