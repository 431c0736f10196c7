"""Shared parts of the command lines: `--config`, `--config.KEY=VALUE`, `--json`, one-line errors.

A config file is a Python file with a function `get_config()` that returns an
`ml_collections.ConfigDict`; with `--config=configs/x.py:TEXT` it is called as `get_config("TEXT")`.
Keys that it omits have the defaults of the classes in `uvit_jax.training.run_config`.
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
from uvit_jax import interrupts
from uvit_jax.config import replaced
from uvit_jax.errors import UvitError, nearest
from uvit_jax.parallel import libtpu
from uvit_jax.paths import local_path

SHARED_HELP = {"--seed": "of all random numbers; the same seed gives the same results"}
"""Help of flags that have the same meaning in every command, unless the command has its own."""

REMOTE = ("workdir", "checkpoint", "adapter")
"""Flags whose value may be in `gs://` or `hf://`; what reads them refuses what is not supported."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Prints the description as it is, and appends each flag's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default in (None, "", [], argparse.SUPPRESS) or action.default is False
        complete = unset or "default" in action.help
        return action.help if complete else f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `UvitError` and accepts `--config.KEY=VALUE`.

    Args:
      description: printed by `--help`.
      config: whether the command takes `--config`. config_required: whether it needs it.
      keys: the config's class, for `--help`. example: overrides, for `--help`.
    """

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
        self.register("type", float, number)  # argument groups inherit it
        self._config = config
        if config:
            self.add_argument(
                "--config",
                metavar="FILE",
                required=config_required,
                help="a config file, such as configs/quickstart.py",
            )
            self.epilog = (
                f"Any key of the config can be overridden: {example}.\n"
                f"The keys are documented as the fields of {keys} and of the classes that it names."
            )
        self.add_argument("--json", metavar="FILE", help="write the results to this file as JSON")

    def format_help(self) -> str:
        for action in self._actions:
            shared = [SHARED_HELP[o] for o in action.option_strings if o in SHARED_HELP]
            action.help = action.help or next(iter(shared), None)
        return super().format_help()

    def error(self, message: str):
        raise UvitError(f"{message} (see --help)")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments of `argv` (default: `sys.argv[1:]`), with `overrides`: {dotted key: value}.

        Raises:
          UvitError: on an unknown flag or an invalid value, with the nearest known one.
        """
        argv = sys.argv[1:] if argv is None else argv
        if not {"-h", "--help"} & set(argv):
            # Before argparse, which would report a misspelt required flag as missing.
            for flag in argv:
                name = flag.partition("=")[0]
                if name.startswith("--") and " " not in name:  # argparse takes others as values
                    self._check_known(name)
        args, rest = self.parse_known_args(argv)
        for action in self._actions:
            values = getattr(args, action.dest, None)
            for value in values if isinstance(values, list) else [values]:
                paths = str(action.metavar).startswith(("FILE", "DIR", "PATH", "FOLDER"))
                if value and paths and action.dest not in REMOTE:
                    local_path(value)  # raises for `gs://` and the like
        args.overrides = {}
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            self._check_known(flag)
            if not equals:
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
            hint = f"; to override a key of the config, use --config.{flag.lstrip('-')}=VALUE"
        raise UvitError(f"unknown flag {flag!r}{hint} (see --help)")


def number(text: str) -> float:
    """A finite float; raises ValueError for others, such as `nan`."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def explained(cls: type) -> dict[str, str]:
    """The descriptions in the `Attributes` section of a class' docstring, by field."""
    section = inspect.getdoc(cls).partition("Attributes:\n")[2].partition("\n\n")[0]
    fields = {}
    for entry in re.split(r"\n(?=  \S)", f"\n{section}"):
        names, _, text = " ".join(entry.split()).partition(": ")
        fields |= dict.fromkeys(names.split(", "), text)
    return fields


def literal(text: str) -> Any:
    """The Python literal in `text`, or `text` itself if there is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read_config(spec: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config file's nested dicts with `overrides` {dotted key: value} applied.

    Raises:
      UvitError: if the file is missing or fails, or an override's parent is not a group of keys.
    """
    name, _, argument = spec.partition(":")
    get_config, _ = load_config_file(name)
    return replaced(get_config(argument) if argument else get_config(), overrides)


def load_config_file(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The `get_config` of a config file, which is executed once, and the names of its runs.

    A file of several runs lists them in `NAMES`; each is an argument of its `get_config`.

    Raises:
      UvitError: if the file is missing or fails; the function raises it too, if it fails.
    """
    path = Path(name)
    if not path.is_file() or path.suffix != ".py":
        known = [str(p) for p in sorted(Path("configs").glob("*.py"))]
        raise UvitError(
            f"config file {name!r} does not exist or is not a .py file{nearest(name, known)}"
        )
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    with _config_errors(name):
        module_spec.loader.exec_module(module)
        get_config = module.get_config
    return _config_errors(name)(get_config), tuple(getattr(module, "NAMES", ()))


@contextlib.contextmanager
def _config_errors(name: str) -> Iterator[None]:
    """Turns any exception into a `UvitError` that names the config file."""
    try:
        yield
    except UvitError:
        raise
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UvitError(f"config file {name}: {type(error).__name__}: {reason}") from error


def config_name(spec: str) -> str:
    """The name of the default workdir, such as `quickstart` for `configs/quickstart.py`."""
    name, _, argument = spec.partition(":")
    return "_".join(filter(None, [Path(name).stem, argument.replace("/", "_")]))


def write_json(path: str | None, results: Any) -> None:
    """Writes `results` to the file `path`, the value of `--json`, unless it is None."""
    if path:
        from uvit_jax.io import write_text

        write_text(path, json.dumps(results, indent=2) + "\n")


def run(main: Callable[[Sequence[str] | None], int]) -> None:
    """Runs a command's `main(argv) → exit status` with the compilation cache, and exits.

    A `UvitError` and an OSError (a full disk, a read-only folder) print one line; the status is 2.
    So does Ctrl-C, and the status is 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvit_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS and Orbax are verbose
    interrupts.watch()
    libtpu.quiet()
    try:
        compilation_cache.enable()
        status = main(None)
    except (UvitError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")  # at once: several processes may share a terminal
        status = 2
    except KeyboardInterrupt:
        sys.stdout.flush()
        interrupts.end()
    sys.exit(status)
