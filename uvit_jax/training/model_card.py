"""Model cards of the Hugging Face Hub: README.md of a model or an adapter, from config and metrics.

The numbers of a card are those of the run: nothing in it is written by hand.
"""

import json
from collections.abc import Mapping
from typing import Any

from uvit_jax.config import to_dict
from uvit_jax.interop.adapters import AdapterRecord
from uvit_jax.interop.recognise import title
from uvit_jax.models.model import Model
from uvit_jax.training.metrics_writer import read_metrics
from uvit_jax.training.run_config import RunConfig
from uvit_jax.training.workdir import Workdir


def run_metrics(workdir: Workdir) -> dict[str, float]:
    """The metrics of a run for its card: the mean loss of its last ten logged steps, and the last
    line of its evaluation.jsonl."""
    metrics = {}
    if workdir.metrics.exists() and (rows := read_metrics(workdir.metrics)[-10:]):
        metrics["training loss"] = sum(row["loss"] for row in rows) / len(rows)
    file = workdir.outputs / "evaluation.jsonl"
    if file.exists() and (lines := file.read_text().splitlines()):
        row = json.loads(lines[-1])
        metrics |= row["metrics"] | {"samples evaluated": row["samples"]["count"]}
    return metrics


def model_card(
    repository: str, model: Model, run: RunConfig | None, metrics: Mapping[str, float]
) -> str:
    """The card of a model.

    Args:
      repository: OWNER/NAME.
      run: that trained it; None if it is unknown. metrics: by name, as `run_metrics` gives them.
    """
    kinds = {s.kind for s in model.layout.conditions}
    task = "text-to-image" if "text" in kinds else "unconditional-image-generation"
    command = f"python -m experiments.sample --workdir=hf://{repository}"
    command += ' --prompt="…"' if "text" in kinds else ""
    parts = [
        _header(task),
        f"# {repository.partition('/')[2]}\n\nA diffusion transformer of `uvit_jax`: "
        f"{title(model.config)}, {model.num_params / 1e6:.2f}M "
        f"parameters.\n\n    {model.layout!r}",
        f"## Use\n\n```python\nimport uvit_jax\n\nmodel, params = "
        f'uvit_jax.load("hf://{repository}")\n```\n\n    {command}',
    ]
    if run is not None:
        config = to_dict(run)
        rows = {
            "data": config["data"]["name"],
            "steps": config["train"]["steps"],
            "batch size": config["train"]["batch_size"],
            "optimizer": config["optimizer"]["name"],
            "learning rate": config["optimizer"]["learning_rate"],
            "prediction": config["diffusion"]["prediction"],
            "schedule": config["diffusion"]["schedule"]["name"],
            "sampler": f"{config['sample']['sampler']['name']}, "
            f"{config['sample']['sampler']['steps']} steps",
            "guidance scale": config["sample"]["guidance_scale"],
        }
        parts += [_table("Training and sampling", rows)]
    if metrics:
        parts += [_table("Metrics", {k: f"{v:.5g}" for k, v in metrics.items()})]
    return "\n\n".join(parts) + "\n"


def adapter_card(repository: str, record: AdapterRecord) -> str:
    """The card of a LoRA adapter, from its record."""
    rows: dict[str, Any] = {"rank": record.lora.rank, "scale": record.lora.scale}
    rows |= {key.replace("_", " "): value for key, value in record.training.items()}
    rows |= {"SHA-256 of the base parameters": record.base}
    return (
        "\n\n".join(
            [
                _header("text-to-image", "lora"),
                f"# {repository.partition('/')[2]}\n\nA LoRA adapter of `uvit_jax`.",
                "## Use\n\n    python -m experiments.sample --workdir=… "
                f'--adapter=hf://{repository} --prompt="…"',
                _table("Training", rows),
            ]
        )
        + "\n"
    )


def _header(task: str, *tags: str) -> str:
    lines = ["library_name: uvit_jax", f"pipeline_tag: {task}", "tags:"]
    return "\n".join(["---", *lines, *(f"- {t}" for t in ("diffusion", "jax", *tags)), "---"])


def _table(heading: str, rows: Mapping[str, Any]) -> str:
    """A table of the values that are given; of texts, without what would break a row."""
    lines = [
        f"| {key} | {' '.join(str(value).replace('|', '/').split())} |"
        for key, value in rows.items()
        if value not in (None, "")
    ]
    return "\n".join([f"## {heading}", "", "| | |", "|---|---|", *lines])
