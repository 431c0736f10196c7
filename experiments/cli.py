"""What all command lines share: `--config`, `--config.KEY=VALUE`, `--json`, errors as sentences.

A config file is Python with `get_config()`, which returns an `ml_collections.ConfigDict` (or takes
the text after a colon: `--config=configs/x.py:text`). The keys that it leaves out have the defaults
of the classes in `uvit_jax.training.run_config`, and any key can be overridden, left out or not.
"""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import compilation_cache
from uvit_jax.config import replaced
from uvit_jax.errors import UvitError, nearest

SHARED = {"--seed": "of all random numbers; the same seed gives the same results"}
"""Flags that mean the same in every command, and are explained here unless one says otherwise."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples as they stand, and every flag with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default in (None, "", [], argparse.SUPPRESS) or action.default is False
        shown = unset or "default" in action.help
        return action.help if shown else f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are `UvitError`s, and that knows `--config.KEY=VALUE`."""

    def __init__(
        self,
        description: str,
        *,
        config: bool = True,
        config_required: bool = True,
        keys: str = "uvit_jax.training.run_config.RunConfig",
        example: str = "--config.train.steps=100, --config.model.backbone.depth=6",
    ):
        super().__init__(
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.register("type", float, number)  # groups of arguments share it
        self._config = config
        if config:
            required = config_required
            self.add_argument(
                "--config", metavar="FILE", required=required, help="a file of configs/"
            )
            self.epilog = (
                f"Any key of the config can be overridden: {example}.\n"
                f"The keys and their meanings are the fields of {keys} and of the classes it names."
            )
        self.add_argument("--json", metavar="FILE", help="write the results there as JSON")

    def format_help(self) -> str:
        for action in self._actions:
            known = [SHARED[option] for option in action.option_strings if option in SHARED]
            action.help = action.help or next(iter(known), None)
        return super().format_help()

    def error(self, message: str):
        raise UvitError(f"{message} (see --help)")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments, with `overrides` {dotted key: value} if the parser takes a config.

        Raises:
          UvitError: on an unknown flag.
        """
        argv = sys.argv[1:] if argv is None else argv
        if not {"-h", "--help"} & set(argv):
            for flag in argv:  # before a required one that is misspelt is called missing
                name = flag.partition("=")[0]
                if name.startswith("--") and " " not in name:  # else a value, to argparse as well
                    self._check_known(name)
        args, rest = self.parse_known_args(argv)
        args.overrides = {}
        while rest:
            flag, given, value = rest.pop(0).partition("=")
            self._check_known(flag)
            if not given:
                if not rest:
                    raise UvitError(f"{flag} needs a value: {flag}=VALUE")
                value = rest.pop(0)
            args.overrides[flag.removeprefix("--config.")] = literal(value)
        return args

    def _check_known(self, flag: str) -> None:
        options = [option for action in self._actions for option in action.option_strings]
        if flag in options or (self._config and flag.startswith("--config.")):
            return
        known = [option for option in options if option not in ("-h", "--help")]
        hint, dotted = nearest(flag, known), flag.startswith("--") and "." in flag
        if self._config and dotted and "did you mean" not in hint:
            hint = f"; a key of the config is given as --config.{flag.lstrip('-')}=VALUE"
        raise UvitError(f"unknown flag {flag!r}{hint} (see --help)")


def number(text: str) -> float:
    """A flag's value as a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def explained(cls: type) -> dict[str, str]:
    """What a config class's docstring says of its fields, by field."""
    section = inspect.getdoc(cls).partition("Attributes:\n")[2].partition("\n\n")[0]
    found = {}
    for entry in re.split(r"\n(?=  \S)", f"\n{section}"):
        names, _, text = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), text)
    return found


def literal(text: str) -> Any:
    """A flag's value as the Python literal that it spells, or as the text that it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read_config(spec: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config file's nested dicts with the overrides put in.

    Raises:
      UvitError: if the file is missing or broken, or an override goes through what is no group.
    """
    name, _, argument = spec.partition(":")
    get_config, _ = load_config_file(name)
    return replaced(get_config(argument) if argument else get_config(), overrides)


def load_config_file(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The `get_config` of a config file, which is executed once, and the names of its runs.

    A file of several runs lists them in `NAMES`; each is an argument of its `get_config`.

    Raises:
      UvitError: if the file is missing or broken; and the function does, if it fails.
    """
    path = Path(name)
    if not path.is_file() or path.suffix != ".py":
        known = [str(p) for p in sorted(Path("configs").glob("*.py"))]
        raise UvitError(f"config file {name!r} does not exist or is no .py{nearest(name, known)}")
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    with _told_of(name):
        module_spec.loader.exec_module(module)
        get_config = module.get_config
    return _told_of(name)(get_config), tuple(getattr(module, "NAMES", ()))


@contextlib.contextmanager
def _told_of(name: str) -> Iterator[None]:
    """What goes wrong inside is a `UvitError` that names the config file."""
    try:
        yield
    except UvitError:
        raise
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UvitError(f"config file {name}: {type(error).__name__}: {reason}") from error


def config_name(spec: str) -> str:
    """A config's short name, for the default workdir: `configs/quickstart.py` → `quickstart`."""
    name, _, argument = spec.partition(":")
    return "_".join(filter(None, [Path(name).stem, argument.replace("/", "_")]))


def write_json(path: str | None, results: Any) -> None:
    """Writes `results` to the file that `--json` named, if any."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(results, indent=2) + "\n")


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Runs a command's `main(argv) → exit status`; a `UvitError` is one line and status 2.

    What it compiles is kept for the next time (see compilation_cache.py).
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvit_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS and Orbax think aloud there
    try:
        compilation_cache.enable()
        status = main(None)
    except UvitError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        # A disk that is full, a folder that cannot be written: the path and the reason are in it.
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped at once; nothing was saved since the last checkpoint", file=sys.stderr)
        status = 130
    sys.exit(status)
