"""Compiles which models fit which TPU slices: the table of docs/scaling.md.

    python -m benchmarks.capacity --out=docs/scaling/capacity.jsonl
    python -m benchmarks.capacity --out=docs/scaling/capacity.jsonl --only=v5e:4x4 --table

For every model and slice it compiles the training step with `--batch` examples per chip (64 are
U-ViT-L/2's 1024 on v5e:4x4), under each remat policy from the one that stores least to the one that
stores most, until one does not fit. Parameters are sharded over at most 64 chips (`MAX_FSDP`), and
replicated beyond. A program takes one to several minutes and adds a line to the file, so that the
command can be interrupted and resumed. `--table` prints the existing results and compiles nothing.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import cli

MODELS = {
    "U-ViT-S/2": ("configs/uvit.py:cifar10-S/2", {"model.dtype": "bfloat16"}),
    "U-ViT-M/4": ("configs/uvit.py:imagenet64-M/4", {}),
    "U-ViT-L/2": ("configs/uvit_l.py", {}),
    "U-ViT-H/2": ("configs/uvit.py:imagenet256-H/2", {}),
    "DiT-XL/2": ("configs/dit.py:XL/2-256", {}),
}
CHIPS = {
    "v5e:2x4": 8,
    "v5e:4x4": 16,
    "v5e:16x16": 256,
    "v5p:2x2x2": 8,
    "v5p:4x4x4": 64,
    "v6e:2x4": 8,
    "v6e:16x16": 256,
}
MAX_FSDP = 64  # divides all widths; 256 does not divide 1152
REMATS = ("full", "dots", "none")  # from the one that stores least


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="results, a JSON line per program"
    )
    parser.add_argument("--only", default="", help="models and topologies, separated by commas")
    parser.add_argument(
        "--remat", default=",".join(REMATS), help="policies to try, separated by commas"
    )
    parser.add_argument("--attention", default="xla", help="of all models")
    parser.add_argument("--batch", type=int, default=64, help="examples per chip")
    parser.add_argument("--table", action="store_true", help="print the existing results only")
    args = parser.parse(argv)

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # see experiments.compile
    path = Path(args.out)
    rows = read(path)
    if not args.table:
        only = set(filter(None, args.only.split(",")))
        path.parent.mkdir(parents=True, exist_ok=True)
        remats = [r for r in REMATS if r in args.remat.split(",")]
        for row in missing(rows, only, remats, args.attention, args.batch):
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({k: row[k] for k in ("model", "topology", "remat", "fits")}))
        rows = read(path)
    print(table(rows))
    print()
    print(scaling(rows))
    cli.write_json(args.json, rows)
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The existing results."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(
    rows: list[dict[str, Any]], only: set[str], remats: Sequence[str], attention: str, batch: int
) -> Iterator[dict[str, Any]]:
    """Compiles the programs that are not in `rows`, one at a time."""
    models = [m for m in MODELS if m in only] or list(MODELS)
    slices = [t for t in CHIPS if t in only] or list(CHIPS)
    for topology in slices:
        for model in models:
            for remat in remats:
                key = (model, topology, remat, attention, batch)
                row = next((r for r in rows if key_of(r) == key), None)
                if row is None:
                    row = compiled(*key)
                    yield row
                if not row["fits"]:
                    break


def key_of(row: dict[str, Any]) -> tuple:
    """(model, topology, remat, attention, examples per chip) of a row."""
    batch = row["batch_size"] // row["chips"]
    return row["model"], row["topology"], row["remat"], row["attention"], batch


def compiled(model: str, topology: str, remat: str, attention: str, batch: int) -> dict[str, Any]:
    """Compiles one program: its report, without the list of collectives, as a row."""
    from uvit_jax.aot.compile_run import compile_run
    from uvit_jax.training.run_config import parse_run

    config, overrides = MODELS[model]
    overrides = overrides | {
        "mesh.data": max(1, CHIPS[topology] // MAX_FSDP),
        "mesh.fsdp": min(CHIPS[topology], MAX_FSDP),
        "train.batch_size": batch * CHIPS[topology],
        "model.backbone.remat": remat,
        "model.backbone.attention": attention,
    }
    report = compile_run(parse_run(cli.read_config(config, overrides)), topology)
    return {"model": model, **dataclasses.asdict(dataclasses.replace(report, collectives=()))}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the fastest policy that fits, by its bound, for each model and slice."""
    lines = [
        "| model | slice | mesh | examples per chip | fits | remat | HBM per chip "
        "| bound: images/s | limit |",
        "|---|---|---|---:|---|---|---:|---:|---|",
    ]
    cells: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        model, topology, _, attention, batch = key_of(row)
        cells.setdefault((model, topology, attention, batch), []).append(row)
    for (model, topology, attention, batch), tried in sorted(cells.items(), key=_order):
        name = model if attention == "xla" else f"{model}, {attention}"
        fitting = [r for r in tried if r["fits"]]
        best = max(fitting, key=lambda r: r["bound"]["images_per_second"], default=tried[0])
        memory = (
            f"{best['memory_bytes'] / 2**30:.1f} of {best['chip_memory_bytes'] / 2**30:.2f} GiB"
        )
        bound = best["bound"] or {}
        rate = f"{bound['images_per_second']:,.0f}" if bound else "–"
        lines.append(
            f"| {name} | {topology} | {mesh(best)} | {batch} | {'yes' if best['fits'] else 'no'} | "
            f"{best['remat']} | {memory} | {rate} | {bound.get('limit', '–')} |"
        )
    return "\n".join(lines)


def _order(cell: tuple) -> tuple:
    (model, topology, *others), _ = cell
    return list(MODELS).index(model), list(CHIPS).index(topology), *others


def mesh(row: dict[str, Any]) -> str:
    """The axes with more than one chip, such as "data 4 × fsdp 64"."""
    return " × ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)


def scaling(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the bytes that a chip sends, at a fixed number of examples per chip."""
    lines = [
        "| model | remat | slice | mesh | parameters | gradients | activations | total per chip |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda r: (r["model"], r["remat"], r["attention"], r["chips"])):
        if not row["moved"]:
            continue
        moved = {role: sum(kinds.values()) / 1e6 for role, kinds in row["moved"].items()}
        parts = [moved.get(role, 0.0) for role in ("parameters", "gradients", "activations")]
        numbers = " | ".join(f"{mb:,.1f} MB" for mb in (*parts, sum(moved.values())))
        name = row["model"] if row["attention"] == "xla" else f"{row['model']}, {row['attention']}"
        lines.append(f"| {name} | {row['remat']} | {row['topology']} | {mesh(row)} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
