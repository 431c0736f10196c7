"""U-ViT-L/2 on ImageNet 256×256 latents: the run `imagenet256-L/2` of `configs/uvit.py`, by name.

python -m experiments.train --config=configs/uvit_l.py --workdir=/data/uvit_l
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of this run."""
    return runpy.run_path(str(Path(__file__).with_name("uvit.py")))["get_config"]("imagenet256-L/2")
