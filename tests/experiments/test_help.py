"""`--help` of every command explains each flag, and its examples are valid command lines."""

import argparse
import importlib
import pkgutil
import re
from typing import get_args

import pytest

import benchmarks
import experiments
from experiments import cli
from tests.helpers import commands, pages
from tests.helpers.running import ROOT
from uvit_jax.diffusion.solvers.table import Sampler
from uvit_jax.errors import UvitError


def _commands(package):
    names = [
        f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)
    ]
    return [name for name in names if hasattr(importlib.import_module(name), "main")]


COMMANDS = _commands(experiments)
BENCHMARKS = _commands(benchmarks)
TAKE_A_CONFIG = ("train", "ablate", "compare", "train_autoencoder")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("command", COMMANDS + BENCHMARKS)
def test_help_is_complete(command):
    parser = commands.parser_of(command)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, f"{command} {action.option_strings} has no help"
        if action.default not in (None, False, "", [], argparse.SUPPRESS):
            default = str(action.default)
            assert default in text or "default" in action.help, action.option_strings
    if command in BENCHMARKS:
        assert f"python -m {command}" in importlib.import_module(command).__doc__
        return
    examples = pages.commands(importlib.import_module(command).__doc__)
    assert command in [words[0] for words in examples]
    for words in examples:
        commands.check(words)


@pytest.mark.parametrize("config", CONFIGS)
def test_examples_of_configs_are_valid_commands(config):
    text = (ROOT / "configs" / config).read_text()
    examples = pages.commands(text.split('"""')[1].replace("\\\\", "\\"))
    assert {words[0].removeprefix("experiments.") for words in examples} & {*TAKE_A_CONFIG}
    for words in examples:
        commands.check(words)


def test_help_of_sample_names_every_sampler():
    text = commands.parser_of("experiments.sample").format_help()
    assert all(re.search(rf"\b{name}\b", text) for name in get_args(Sampler))


def test_overrides_in_help_are_keys_of_the_commands_own_config():
    for name in TAKE_A_CONFIG:
        parser = commands.parser_of(f"experiments.{name}")
        keys = re.findall(r"--config\.([\w.]+)=", parser.epilog)
        others = {"compare": "subjects", "ablate": "ablations"}
        others |= {"train_autoencoder": "video_autoencoder"}
        name_of_config = others.get(name, "quickstart")
        config = cli.read_config(str(ROOT / f"configs/{name_of_config}.py"), {})
        assert keys
        for key in keys:
            value = config
            for part in key.split("."):
                assert part in value, f"{name}: {key}"
                value = value[part]


def test_a_misspelt_flag_is_unknown_and_not_a_required_one_missing(capsys):
    parser = commands.parser_of("experiments.train")
    with pytest.raises(UvitError, match=r"'--cofig'.*did you mean '--config'"):
        parser.parse(["--cofig=configs/quickstart.py"])
    with pytest.raises(SystemExit):  # --help takes precedence
        parser.parse(["--cofig", "--help"])
    assert "usage" in capsys.readouterr().out


def test_an_argument_with_a_space_is_a_value_even_if_it_begins_with_dashes():
    args = commands.parser_of("experiments.sample").parse(["--workdir=x", "--prompt", "-- a dash"])
    assert args.prompt == ["-- a dash"]


def test_the_readme_names_every_command():
    text = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert command.removeprefix("experiments.") in text, f"README.md does not name {command}"
