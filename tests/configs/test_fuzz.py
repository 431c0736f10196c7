"""Random and hostile values of every config key: one line that names the key, soon, or a run.

A case is a command line of `experiments.train` on the smallest config, up to where the run would
initialise its parameters: everything that can be wrong is found before. The slow test also traces
the training step.
"""

import random
import time
from pathlib import Path

import pytest

from experiments import train
from tests.helpers.running import ROOT
from uvit_jax.aot.compile_run import lower
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.training import loop

CONFIG = str(ROOT / "tests" / "configs" / "tiny.py")
SECONDS = 2.0
"""Of processor time within which a value must be refused."""

NUMBERS = [
    *("0", "1", "-1", "2", "3", "7", "0.5", "-0.5", "1e-300", "1e300", "-1e300", "1e400", "1e-8"),
    *("0.9999999999", "4e9", "2147483647", "2147483648", "4294967296", "-9223372036854775809"),
    *("1" + "0" * 30, "9" * 400, "9" * 5000, "1e3", "1000000000", "nan", "inf", "-inf", "1j"),
]
TEXTS = [
    *("", " ", "x", "None", "True", "False", "'", '"', "\\", "é", "日本", "\u202e", "a" * 5000),
    *(
        "../../etc/passwd",
        "/dev/null",
        "/dev/zero",
        "gs://bucket/x",
        "~",
        "*",
        "%s%n",
        "{}",
        "$HOME",
    ),
    *("image", "label", "time", "uvit", "xla", "bfloat16", "float32", "-", "--config", "emoji"),
]
NESTED = [
    *("()", "[]", "{}", "[0]", "[-1]", "[1, 2, 3]", "['image']", "[[]]", "[None]", "(1,)"),
    *("{'image': 1}", "{'image': -1}", "{'x': 1}", "{1: 2}", "{'image': {}}", "{'': ''}"),
    *("['image', 'image']", "[1e300]", "[10**9]", "[" * 90 + "]" * 90, "[" * 5000 + "]" * 5000),
    *("{'a': " * 60 + "1" + "}" * 60, "[0] * 9", "[" + "1, " * 3000 + "]", "{'image': 0.5}"),
    *("[16, 16, 3]", "[16, 16, 0]", "[1000000000, 1000000000, 3]", "b'x'", "{1, 2}", "lambda: 0"),
]


class Opened(Exception):
    """Raised in place of the initialisation of a run that was found right."""


def values(config: dict, prefix: str = "") -> dict[str, object]:
    """A config's values by dotted key, those of its groups too."""
    found = {}
    for key, value in config.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            found |= values(value, f"{prefix}{key}.")
    return found


def cases(count: int, seed: int) -> list[tuple[str, str]]:
    """(key, value) pairs; more than half of the values are of their key's type."""
    rng = random.Random(seed)
    known = values(to_dict(train._run_config(train._parse([f"--config={CONFIG}"]))))
    known.pop("data.data_dir")  # each would be filled with data first
    known |= {"nothing": 1, "model.segments.image.nothing": 1, "model.segments.new.kind": "label"}
    chosen = []
    while len(chosen) < count:
        for key in rng.sample(sorted(known), len(known)):
            if isinstance(known[key], bool | int | float):
                sorts = (NUMBERS, random_number)
            else:
                sorts = (TEXTS,) if isinstance(known[key], str) else (NESTED,)
            sort = rng.choice([*sorts, rng.choice([NUMBERS, TEXTS, NESTED])])
            chosen.append((key, sort(rng) if callable(sort) else rng.choice(sort)))
    return chosen[:count]


def random_number(rng: random.Random) -> str:
    """A small or a large integer, or a fraction."""
    large = rng.randint(-(10**12), 10**12)
    return str(rng.choice([rng.randint(0, 64), large, rng.random(), rng.gauss(0, 1)]))


def run_case(key: str, value: str, workdir: Path) -> tuple[str, float]:
    """The error of a case, or an empty string if its run would start, and seconds taken.

    Raises:
      Exception: any other than UvitError, which a user would see as a traceback.
    """
    began = time.process_time()
    error = ""
    try:
        train.main([f"--config={CONFIG}", f"--workdir={workdir}", f"--config.{key}={value}"])
    except Opened:
        pass
    except UvitError as e:
        error = str(e)
    return error, time.process_time() - began


def check(chosen: list[tuple[str, str]], path: Path) -> None:
    """Runs cases, and raises AssertionError with all that fail."""
    failures = []
    for i, (key, value) in enumerate(chosen):
        shown = f"--config.{key}={value[:60]!r}"
        try:
            error, seconds = run_case(key, value, path / str(i))
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            failures.append(f"{shown}: {type(e).__name__}: {str(e)[:200]}")
            continue
        if error and seconds > SECONDS:
            failures.append(f"{shown}: refused after {seconds:.1f} s: {error}")
        if "\n" in error or len(error) > 1000:
            failures.append(f"{shown}: not one line: {error[:300]!r}")
    assert not failures, f"{len(failures)} of {len(chosen)}:\n" + "\n".join(failures)


@pytest.fixture(autouse=True)
def stops_once_opened(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def init_state(*_):
        raise Opened

    monkeypatch.setattr(loop, "init_state", init_state)


def test_random_values_are_refused_in_one_line_or_start(tmp_path):
    run_case("seed", "1", tmp_path / "warm")  # imports are not counted
    check(cases(400, seed=0), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_random_values_are_refused_in_one_line_or_start(tmp_path, seed):
    run_case("seed", "1", tmp_path / "warm")
    check(cases(1500, seed), tmp_path)


@pytest.mark.slow
def test_what_is_not_refused_can_be_traced(tmp_path):
    """The training step and the sampler of a run that starts, without their compilation."""
    for i, (key, value) in enumerate(cases(500, seed=5)):
        error, _ = run_case(key, value, tmp_path / str(i))
        if error:
            continue
        run = train._run_config(train._parse([f"--config={CONFIG}", f"--config.{key}={value}"]))
        model, mesh = build(run.model), make_mesh(run.mesh)
        for program in ("step", "sample"):
            lower(run, model, mesh, program)
