"""`--help` of every command: each flag explained, each example one that the command would take."""

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
    names = [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if hasattr(importlib.import_module(name), "main")]


COMMANDS = _commands(experiments)
BENCHMARKS = _commands(benchmarks)
TAKE_A_CONFIG = ("train", "ablate", "compare")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("command", COMMANDS + BENCHMARKS)
def test_help_is_complete(command):
    parser = commands.parser_of(command)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, f"{command} {action.option_strings} is not explained"
        if action.default not in (None, False, "", [], argparse.SUPPRESS):
            shown = str(action.default)
            assert shown in text or "default" in action.help, f"{action.option_strings}: {shown}"
    if command in BENCHMARKS:
        assert f"python -m {command}" in importlib.import_module(command).__doc__
        return
    examples = pages.commands(importlib.import_module(command).__doc__)
    assert command in [words[0] for words in examples]
    for words in examples:
        commands.check(words)


@pytest.mark.parametrize("config", CONFIGS)
def test_examples_of_configs_are_commands(config):
    text = (ROOT / "configs" / config).read_text()
    examples = pages.commands(text.split('"""')[1].replace("\\\\", "\\"))
    assert {words[0].removeprefix("experiments.") for words in examples} & {*TAKE_A_CONFIG}
    for words in examples:
        commands.check(words)


def test_help_of_sampling_names_every_sampler():
    text = commands.parser_of("experiments.sample").format_help()
    assert all(re.search(rf"\b{name}\b", text) for name in get_args(Sampler))


def test_a_commands_epilog_is_about_its_own_config():
    for name in TAKE_A_CONFIG:
        parser = commands.parser_of(f"experiments.{name}")
        keys = re.findall(r"--config\.([\w.]+)=", parser.epilog)
        found = {"compare": "subjects", "ablate": "ablations"}.get(name, "quickstart")
        config = cli.read_config(str(ROOT / f"configs/{found}.py"), {})
        assert keys
        for key in keys:
            value = config
            for part in key.split("."):
                assert part in value, f"{name}: {key}"
                value = value[part]


def test_a_misspelt_flag_is_unknown_and_not_a_required_one_missing(capsys):
    parser = commands.parser_of("experiments.train")
    with pytest.raises(UvitError, match=r"unknown flag '--cofig'; did you mean '--config'"):
        parser.parse(["--cofig=configs/quickstart.py"])
    with pytest.raises(SystemExit):  # whoever asks for help is helped
        parser.parse(["--cofig", "--help"])
    assert "usage" in capsys.readouterr().out


def test_what_has_a_space_is_a_value_even_if_it_begins_with_dashes():
    args = commands.parser_of("experiments.sample").parse(["--workdir=x", "--prompt", "-- a dash"])
    assert args.prompt == ["-- a dash"]


def test_no_command_is_forgotten_by_the_readme():
    text = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert command.removeprefix("experiments.") in text, f"README.md does not name {command}"
