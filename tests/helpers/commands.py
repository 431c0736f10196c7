"""What a command line would make of its flags, with nothing run."""

import dataclasses
import importlib
from pathlib import Path
from unittest import mock

import pytest

from experiments import cli
from tests.helpers.running import ROOT
from uvit_jax.training.run_config import RunConfig, parse_run

FIELDS = {field.name for field in dataclasses.fields(RunConfig)}


class Parsed(Exception):
    """Raised in place of what comes after parsing: (parser, arguments or None)."""


def parser_of(module: str) -> cli.Parser:
    """The parser of a command, such as `experiments.train`."""

    def stop(self, argv):
        raise Parsed(self)

    with mock.patch.object(cli.Parser, "parse", stop), pytest.raises(Parsed) as caught:
        importlib.import_module(module).main([])
    return caught.value.args[0]


def check(words: list[str]) -> None:
    """Whether a command, in words, is one: its flags are known, its configs exist and are whole."""
    module, *flags = words
    if any("…" in flag for flag in flags):
        flags = [flag for flag in flags if "…" not in flag]
    args = parser_of(module).parse(flags)
    spec = getattr(args, "config", None)
    if spec is None:
        return
    name = spec.partition(":")[0]
    if not (ROOT / name).exists() and name == "configs/discs.py":  # that changing.md writes
        return
    assert Path(ROOT / name).exists(), f"{' '.join(words)}: there is no {name}"
    quick = ":quick" if getattr(args, "quick", False) else ""
    config = cli.read_config(f"{ROOT / spec}{quick}", args.overrides)
    if module == "experiments.compare":
        from experiments.subjects.study_config import parse_compare

        parse_compare(config)
        return
    if module == "experiments.train_autoencoder":
        from uvit_jax.training.autoencoder_training import parse_autoencoder_run

        parse_autoencoder_run(config)
        return
    if module == "experiments.ablate":  # whose config is a run's, with groups of variants
        groups = [part for part in args.group.split(",") if part]
        assert set(groups) <= set(config["groups"]), f"{' '.join(words)}: groups"
    parse_run({key: value for key, value in config.items() if key in FIELDS})
