"""A run in one file of our own form, with random parameters: nothing is trained or compiled."""

from pathlib import Path

from experiments import cli
from tests.helpers.running import ROOT, TINY
from tests.helpers.weights import random_params
from uvit_jax.data import pipeline
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.interop.exporting import export
from uvit_jax.models.model import build
from uvit_jax.training.run_config import parse_run


def write_run(path: Path, seed: int = 0):
    """Writes the tiny run to a `.safetensors` file and returns (run, parameters)."""
    run = parse_run(cli.read_config(str(ROOT / TINY), {}))
    model, data = build(run.model), pipeline.dataset(run.data)
    params = random_params(model, seed)
    export(path, model, params, run=run, vocabulary=Vocabulary(data.class_names, data.tokenizer))
    return run, params
