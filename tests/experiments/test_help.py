"""`--help` of every command: each flag explained, each example one that the command would take."""

import argparse
import importlib
import pkgutil

import pytest

import experiments
from tests.docs import commands, pages
from tests.running import ROOT

COMMANDS = [
    f"experiments.{found.name}"
    for found in pkgutil.iter_modules(experiments.__path__)
    if hasattr(importlib.import_module(f"experiments.{found.name}"), "main")
]
TAKE_A_CONFIG = ("train", "ablate", "compare")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete(command):
    parser = commands.parser_of(command)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, f"{command} {action.option_strings} is not explained"
        if action.default not in (None, False, "", [], argparse.SUPPRESS):
            shown = str(action.default)
            assert shown in text or "default" in action.help, f"{action.option_strings}: {shown}"
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


def test_no_command_is_forgotten_by_the_readme():
    text = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert command.removeprefix("experiments.") in text, f"README.md does not name {command}"
