"""A run for the pages to speak of: `workdirs/quickstart`, a small network of random numbers."""

import pytest

from experiments import cli, import_checkpoint
from tests.helpers.running import ROOT
from tests.helpers.weights import random_params
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.interop.exporting import export
from uvit_jax.models.model import build
from uvit_jax.training.run_config import parse_run

SMALL = {
    "model.backbone.width": 32,
    "model.backbone.depth": 2,
    "model.backbone.num_heads": 2,
    "sample.sampler.steps": 2,
}


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """A folder that holds `workdirs/quickstart`."""
    folder = tmp_path_factory.mktemp("pages")
    run = parse_run(cli.read_config(str(ROOT / "configs/quickstart.py"), SMALL))
    model, data = build(run.model), dataset(run.data)
    vocabulary = Vocabulary(data.class_names, data.tokenizer)
    params, file = random_params(model), folder / "run.safetensors"
    export(file, model, params, run=run, vocabulary=vocabulary)
    flags = [f"--config={ROOT / 'configs/quickstart.py'}"]
    flags += [f"--config.{key}={value}" for key, value in SMALL.items()]
    target = folder / "workdirs/quickstart"
    import_checkpoint.main([f"--checkpoint={file}", f"--workdir={target}", *flags])
    return folder
