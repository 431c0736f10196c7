"""Validation and fine-tuning give a video model's frames in as many examples as training does."""

import dataclasses

import numpy as np
import pytest

import uvit_jax
from configs import video
from tests.helpers.autoencoders import randomised
from uvit_jax.config import replaced
from uvit_jax.data import pipeline
from uvit_jax.models.lora import LoraConfig
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.training import finetune, validation
from uvit_jax.training.examples import stacked
from uvit_jax.training.run_config import parse_run


class Seen(Exception):
    """Raised instead of computing a loss, with what would be given."""


@pytest.fixture(scope="module")
def run():
    small = {"model.backbone.width": 32, "model.backbone.depth": 2, "model.backbone.num_heads": 2}
    config = replaced(video.get_config("totems"), small | {"data.workers": 0})
    return parse_run(config)


@pytest.fixture(autouse=True)
def stopped(monkeypatch):
    def corrupt(*args, given=None, **options):
        raise Seen(given)

    for module in (validation, finetune):
        monkeypatch.setattr(module, "corrupt", corrupt)


def test_validation(run):
    config = dataclasses.replace(run, validation=validation_of(run))
    model, dataset = uvit_jax.build(run.model), pipeline.dataset(run.data)
    params = randomised(model)[1]
    measure = validation.make_validations(config, model, dataset, make_mesh(MeshConfig()))
    with pytest.raises(Seen) as seen:
        measure(params)
    assert seen.value.args == (run.train.given,) and run.train.given


def validation_of(run):
    return dataclasses.replace(run.validation, every=10, splits=("validation",), count=1)


def test_finetuning(run):
    model = uvit_jax.build(run.model)
    params = randomised(model)[1]
    batch = pipeline.dataset(run.data).batch([0])
    examples = {name: np.asarray(batch[name]) for name in model.layout.input_shapes}
    config = finetune.FinetuneConfig(lora=LoraConfig(rank=1), given=run.train.given)
    with pytest.raises(Seen) as seen:
        finetune.Finetuner(model, run.diffusion, config)(params, stacked({"a": examples}))
    assert seen.value.args == (run.train.given,)
