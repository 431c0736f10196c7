"""Imports a weight file as a workdir, like that of a run at step 0.

Everything but the weights (schedule, sampler, guidance, data, optimizer) comes from a config: the
one that the caller chooses, the one stored in the file, or the only known one with the same model.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from uvit_jax.autoencoders.encoded_dataset import open_data
from uvit_jax.config import to_dict
from uvit_jax.data.vocabulary import Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models, dit_weights
from uvit_jax.interop.files import RUN_KEY
from uvit_jax.interop.recognise import (
    Recognised,
    family_differences,
    family_of,
    hints_of,
    read,
    recognise,
    title,
)
from uvit_jax.interop.weight_files import WeightFile, open_weights
from uvit_jax.models.model import Model, Params, build
from uvit_jax.models.model_config import ModelConfig, parse_model
from uvit_jax.models.presets import unified
from uvit_jax.paths import local_path
from uvit_jax.training.check_data import check_data
from uvit_jax.training.checkpoint import Checkpointer
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.state import TrainState
from uvit_jax.training.stored_run import own_run, own_vocabulary
from uvit_jax.training.workdir import Workdir

logger = logging.getLogger(__name__)

# The consequences of a missing vocabulary, by modality.
WITHOUT_VOCABULARY = {
    "label": "labels are numbers, without the data's class names",
    "text": "prompts are not supported, without the data's words",
    "features": "guidance needs --text_encoder, without the data's null features",
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
      file: the weight file. form: of its names, `own`, `official` or `diffusers`.
      model: its name, such as `U-ViT-L/2`. parameters, tokens, heads: their numbers.
      config: the name of the config. dtype: in which the workdir's model computes.
      workdir: the new folder.
      note: the consequences of a missing vocabulary, and why it is missing; or "".
      caution: other models that the tensors may belong to; or "".
    """

    file: str
    form: str
    model: str
    parameters: int
    tokens: int
    heads: int
    config: str
    dtype: str
    workdir: str
    note: str
    caution: str


def import_checkpoint(
    path: str | os.PathLike,
    workdir: str | os.PathLike,
    configs: Mapping[str, RunConfig],
    *,
    chosen: bool,
    step: int | None = None,
    raw: bool = False,
    dtype: str | None = None,
    subjects: int = 0,
    views: int = 1,
    **given: int | None,
) -> Imported:
    """Imports weights into a new workdir, which sample, evaluate and train use like any run's.

    Its one checkpoint, step 0, has these weights as parameters and as their EMA.

    Args:
      path, step, raw: see `weight_files.open_weights`.
      workdir: a folder that does not exist or is empty.
      configs: the candidates by name. chosen: whether the only one is the caller's choice.
      dtype: in which the workdir's model computes. None is the dtype of the config if that is
        `chosen` or stored in the file, and otherwise float32, as in the original implementations.
      subjects, views: of references that are added to the model (see `unified.add_references`).
      given: num_heads, num_classes, image_size and text_tokens, see `recognise`. Those that are
        neither given nor in the file come from the config.

    Raises:
      UvitError: if the file is not supported, no config or more than one has its model, or the
        workdir is in use. Nothing is written then.
    """
    target = local_path(workdir)
    _check_free(target)
    caution = ""
    source = open_weights(path, step=step, raw=raw)
    if chosen:
        (name,) = configs
        recognised, run = _fitting(source, name, configs[name].model, given), configs[name]
    elif RUN_KEY in source.metadata:
        name, recognised = "the file's own", recognise(source)
        run = own_run(source.metadata, source.path)
    else:
        recognised, name = _only_one(source, configs, given)
        run, dtype = configs[name], dtype or "float32"
        if (recognised.family, recognised.style) == (dit_weights, "official"):
            caution = "imported as a DiT; a SiT, which has the same tensors, is not supported"
    if dtype is not None:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, dtype=dtype))
    model, params = read(source, recognised)
    vocabulary, note = _vocabulary(source, run, model)
    if subjects:
        run, model, params = _with_references(run, params, subjects, views)
    _write(target, run, vocabulary, params)
    return Imported(
        file=source.path,
        form=recognised.style,
        model=title(recognised.config),
        parameters=model.num_params,
        tokens=model.layout.num_tokens,
        heads=recognised.config.backbone.num_heads,
        config=name,
        dtype=run.model.dtype,
        workdir=str(target),
        note=note,
        caution=caution,
    )


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UvitError(f"{target} is in use; give a new folder with --workdir")


def _with_hints_of(source: WeightFile, model: ModelConfig, given: Mapping[str, Any]) -> Recognised:
    """The source's model; hints that neither it nor `given` has come from `model`."""
    hints = {**hints_of(model), **source.hints}
    return recognise(source, **{**hints, **{k: v for k, v in given.items() if v is not None}})


def _fitting(
    source: WeightFile, name: str, model: ModelConfig, given: Mapping[str, Any]
) -> Recognised:
    """The source's model, which has to be that of the config; UvitError if it is not."""
    try:
        recognised = _with_hints_of(source, model, given)
    except UvitError as problem:
        try:
            recognised = recognise(source, **given)
        except UvitError:
            # The file alone implies no model; its differences from the config's say more.
            wrong = _wrong_tensors(source, Recognised(model, *family_of(source)))
            raise UvitError(f"{wrong}; compared with {name}") if wrong else problem from None
    differences = compare_models.differences(recognised.config, model)
    if differences:
        text = ", ".join(f"{k} ({a!r} and {b!r})" for k, (a, b) in differences.items())
        text = f"the models of {source.path} and of {name} differ in {text}"
        # One wrong tensor can imply another model; the tensor says more than that model.
        wrong = _wrong_tensors(source, dataclasses.replace(recognised, config=model))
        raise UvitError(f"{wrong}; {text}" if wrong else text)
    return recognised


def _wrong_tensors(source: WeightFile, wanted: Recognised) -> str:
    """Why the tensors are not those of the wanted model; "" if their names do not say."""
    try:
        with contextlib.suppress(KeyError):  # the model has no tensors with names of this family
            read(source, wanted)
    except UvitError as problem:
        return str(problem)
    return ""


def _only_one(
    source: WeightFile, configs: Mapping[str, RunConfig], given: Mapping[str, Any]
) -> tuple[Recognised, str]:
    """The only config with the source's model; UvitError if there are none or several."""
    fitting: dict[str, Recognised] = {}
    for name, run in configs.items():
        with contextlib.suppress(UvitError):
            recognised = _with_hints_of(source, run.model, given)
            if not compare_models.differences(recognised.config, run.model):
                fitting[name] = recognised
    if len(fitting) == 1:
        ((name, recognised),) = fitting.items()
        flow = configs[name].diffusion.schedule.name == "rectified_flow"
        if flow and family_differences(recognised.config, dit_weights) == {}:
            # With the wrong times and prediction it would sample noise.
            raise UvitError(
                f"{source.path} may be a SiT, of {name}, or a DiT without a learned range, of no "
                "known config: their tensors are the same; choose with --config=FILE"
            )
        return recognised, name
    if fitting:
        raise UvitError(
            f"{source.path} may be of {' or '.join(fitting)}, whose models are the same; choose "
            "with --config"
        )
    family_of(source)
    try:
        what = f"a {title(recognise(source, **given).config)}"
    except UvitError as problem:
        what = f"unknown ({problem})"
    known = ", ".join(dict.fromkeys(name.partition(":")[0] for name in configs))
    raise UvitError(
        f"no known config has the model of {source.path}, which is {what}; choose a config with "
        f"--config=FILE; known: {known or 'none'}"
    )


def _vocabulary(source: WeightFile, run: RunConfig, model: Model) -> tuple[Vocabulary, str]:
    """The file's vocabulary, or that of the config's data, or an empty one and the reason."""
    if (stored := own_vocabulary(source.metadata, source.path)) is not None:
        return stored, ""
    try:
        dataset = open_data(run.data)
        check_data(model, dataset)
    except UvitError as problem:
        kinds = dict.fromkeys(s.kind for s in model.layout.conditions)
        lost = [WITHOUT_VOCABULARY[kind] for kind in kinds if kind in WITHOUT_VOCABULARY]
        return Vocabulary(), f"{' and '.join(lost)}: {problem}" if lost else ""
    return Vocabulary(dataset.class_names, dataset.tokenizer, dataset.features), ""


def _with_references(
    run: RunConfig, params: Params, subjects: int, views: int
) -> tuple[RunConfig, Model, Params]:
    """The run and its model with references, whose own parameters are initialised."""
    config = parse_model(unified.add_references(to_dict(run.model), subjects, views))
    model = build(config)
    flat = traverse_util.flatten_dict(model.init(jax.random.key(run.seed)))
    flat |= traverse_util.flatten_dict(params)
    run = dataclasses.replace(run, model=config)
    return run, model, traverse_util.unflatten_dict(flat)


def _write(target: Path, run: RunConfig, vocabulary: Vocabulary, params: Params) -> None:
    """Writes the workdir atomically."""
    optimizer, _ = make_optimizer(run.optimizer, run.train)
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=params,
        opt_state=optimizer.init(params),
        key=jax.random.split(jax.random.key(run.seed))[1],
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.importing.{os.getpid()}")
    folder = Workdir(partial)
    try:
        folder.create(to_dict(run), vocabulary)
        checkpointer = Checkpointer(partial, run.train.keep_checkpoints)
        checkpointer.save(state, 0)
        checkpointer.close()
        folder.close()
        partial.rename(target)
    except BaseException:
        folder.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
