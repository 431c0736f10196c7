"""Adds a workdir's network to the package: its EMA as `uvit_jax/shipped/NAME.safetensors`.

    python -m experiments.evaluate --workdir=workdirs/quickstart --count=512 --json=metrics.json
    python -m tools.pack_network --workdir=workdirs/quickstart --name=emoji \\
        --metrics=metrics.json --about="emoji from their names, 32×32" \\
        --command="python -m experiments.train --config=configs/quickstart.py"

The file has the parameters in bfloat16, the configs of model and run and the vocabulary. Its entry
in `manifest.json` records the command, the step, the loss at the end and the metrics. A network of
the same name is replaced. All files together must stay under 20 MB.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

import uvit_jax
from uvit_jax.config import to_dict
from uvit_jax.errors import UvitError
from uvit_jax.interop.files import RUN_KEY, VOCABULARY_KEY, save_safetensors
from uvit_jax.io import write_text
from uvit_jax.shipped import shipped_networks
from uvit_jax.training.metrics_writer import read_metrics
from uvit_jax.training.workdir import Workdir


def pack(
    workdir: Path,
    name: str,
    *,
    command: str,
    about: str,
    metrics: dict[str, Any] | None = None,
    step: int | None = None,
    folder: Path = shipped_networks.FOLDER,
) -> dict[str, Any]:
    """Writes a network's file and its entry of the manifest, which is returned.

    Args:
      workdir: of the run. step: of its checkpoint; None is the newest.
      command: that trained it. about: one line on what it does. metrics: what
        `experiments.evaluate --json` or `evaluate_pairs --json` wrote.

    Raises:
      UvitError: if the name is not a word, or all files would exceed `shipped_networks.LIMIT`;
        nothing is written then.
    """
    if not name.isidentifier():
        raise UvitError(f"--name={name} must be letters, digits and underscores")
    run = Workdir(workdir)
    config, vocabulary = run.read_run(), run.read_vocabulary()
    model, params = uvit_jax.load(workdir, step=step)
    params = jax.tree.map(lambda a: np.asarray(a).astype(ml_dtypes.bfloat16), params)
    known = shipped_networks.manifest(folder)
    others = sum(entry["bytes"] for key, entry in known.items() if key != name)
    size = 2 * model.num_params
    if others + size > shipped_networks.LIMIT:
        raise UvitError(
            f"{name} would have {size / 1e6:.1f} MB beside {others / 1e6:.1f} MB of the others, "
            f"more than {shipped_networks.LIMIT / 1e6:.0f} MB in all; pack a smaller network"
        )
    stored = {RUN_KEY: json.dumps(to_dict(config)), VOCABULARY_KEY: vocabulary.to_json()}
    file = folder / f"{name}.safetensors"
    save_safetensors(file, model, params, stored)
    file.chmod(0o644)
    step = run.steps[-1] if step is None else step
    rows = read_metrics(run.metrics) if run.metrics.exists() else []
    losses = [row["loss"] for row in rows if row["step"] <= step]
    measured = {"training_loss": round(float(np.mean(losses[-10:])), 5)} if losses else {}
    if metrics is not None:
        measured |= _flat(metrics["metrics"])
        measured["samples"] = (
            metrics["count"] if "count" in metrics else metrics["samples"]["count"]
        )
    entry = {
        "about": about,
        "command": command,
        "step": step,
        "parameters": model.num_params,
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "metrics": measured,
    }
    text = json.dumps(known | {name: entry}, indent=2, ensure_ascii=False, sort_keys=True)
    write_text(folder / "manifest.json", text + "\n")
    return entry


def _flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Rounded metrics by name, or by `MODE/NAME` for those of a mode."""
    flat = {}
    for key, value in metrics.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{key}/") if nested else {prefix + key: round(value, 5)}
    return flat


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    parser.add_argument("--name", required=True)
    parser.add_argument("--about", required=True, help="one line")
    parser.add_argument("--command", required=True, help="that trained it")
    parser.add_argument(
        "--metrics", metavar="FILE", help="of --json of experiments.evaluate or evaluate_pairs"
    )
    args = parser.parse_args(argv)
    metrics = json.loads(Path(args.metrics).read_text()) if args.metrics else None
    entry = pack(
        Path(args.workdir),
        args.name,
        command=args.command,
        about=args.about,
        metrics=metrics,
        step=args.step,
    )
    print(f"uvit_jax/shipped/{args.name}.safetensors: {entry['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
