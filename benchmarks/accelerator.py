"""Measures training and sampling on the GPUs or TPUs of this machine, in under twenty minutes.

    python -m benchmarks.accelerator --out=h100.jsonl
    python -m benchmarks.accelerator --out=h100.jsonl --only="U-ViT-L/2,DiT-XL/2"
    python -m benchmarks.accelerator --out=toy.jsonl --toy

For each model: the train step by remat policy and attention kernel, and sampling with 20 network
evaluations. A row has the time, the model FLOPs utilisation (MFU: three forward passes, two FLOPs
per multiply-add, relative to the chip's peak in bfloat16) and the peak memory beside what the
compiler predicted. Where PyTorch has a GPU, rows of a U-ViT-L/2 in PyTorch follow: bfloat16
autocast, flash attention, fused AdamW, with and without torch.compile.

Each row is measured in a process of its own and added to the file, so that the command can be
interrupted and resumed; what does not fit the memory is a row too. A table is written beside the
file, with the suffix .md. --toy measures small models in this process, on any device.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from uvit_jax.errors import UvitError

MODELS = {  # config, overrides, examples per device
    "U-ViT-L/2": ("configs/uvit_l.py", {}, 64),
    "DiT-XL/2": ("configs/dit.py:XL/2-256", {}, 64),
    "U-ViT-H/2": ("configs/uvit.py:imagenet256-H/2", {}, 32),
    "video U-ViT": ("configs/video.py:uvit_300m-360p-2s", {}, 1),
}
TOY_VIDEO = "configs/video.py:totems"
TOY = {
    "model.backbone.width": 32,
    "model.backbone.depth": 2,
    "model.backbone.num_heads": 2,
    "model.backbone.unroll": 1,
    "model.backbone.products": "plain",
    "model.dtype": "float32",
}
REMATS = ("dots", "none", "full")
KERNELS = {"gpu": "cudnn", "tpu": "splash", "cpu": "blocked"}
"""The attention kernel of a platform, besides `xla`."""
PEAKS = {  # by what the devices' kind contains: a chip of `aot.chips`
    "H100": "h100",
    "H200": "h100",  # the same peak rate
    "A100": "a100",
    "v6 lite": "v6e",
    "v5 lite": "v5e",
    "v5": "v5p",
    "v4": "v4",
}
EVALUATIONS = 20
PYTORCH = "U-ViT-L/2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
      model: of `MODELS`. program: `train`, `sample` (a batch) or `latency` (one sample a device).
      framework: `jax`, `torch` or `torch.compile`.
      attention, remat: of the backbone; empty for PyTorch.
    """

    model: str
    program: str
    framework: str = "jax"
    attention: str = ""
    remat: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="results, a JSON line per row; resumed"
    )
    parser.add_argument("--only", default="", help="models, separated by commas; default all")
    parser.add_argument("--minutes", type=float, default=20.0, help="no row starts after that")
    parser.add_argument("--toy", action="store_true", help="small models, in this process")
    parser.add_argument("--cell", default="", help="measure one row, as JSON, and print it")
    args = parser.parse(argv)
    if args.cell:
        print(json.dumps(measured(Cell(**json.loads(args.cell)), toy=args.toy)))
        return 0
    only = [name for name in args.only.split(",") if name]
    for name in only:
        if name not in MODELS:
            raise UvitError(f"--only={name} is not a model; known: {', '.join(MODELS)}")
    began, out = time.monotonic(), Path(args.out).expanduser()
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {json.dumps(row["cell"]) for row in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells(only or list(MODELS), toy=args.toy):
        if json.dumps(dataclasses.asdict(cell)) in done:
            continue
        left = 60 * args.minutes - (time.monotonic() - began)
        if left <= 0:
            print("time is up; the same command measures the rest")
            break
        row = measured(cell, toy=True) if args.toy else _in_process(cell, left)
        rows.append(row)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_line(row), flush=True)
    out.with_suffix(".md").write_text(table(rows))
    print(f"\n{table(rows)}")
    cli.write_json(args.json, rows)
    return 0


def cells(models: Sequence[str], *, toy: bool = False) -> Iterator[Cell]:
    """The measurements, the most telling first."""
    kernels = ("xla",) if toy else (_kernel(), "xla")
    remats = REMATS[:1] if toy else REMATS
    for remat in remats:
        for model in models:
            for attention in kernels if remat == remats[0] else kernels[:1]:
                yield Cell(model=model, program="train", attention=attention, remat=remat)
        if remat == remats[0]:
            for model in models:
                for program in ("sample",) if toy else ("sample", "latency"):
                    yield Cell(model=model, program=program, attention=kernels[0], remat="none")
            if PYTORCH in models and (toy or _pytorch_has_a_gpu()):
                for framework in ("torch",) if toy else ("torch", "torch.compile"):
                    yield Cell(model=PYTORCH, program="train", framework=framework)


def measured(cell: Cell, *, toy: bool = False) -> dict[str, Any]:
    """Measures one cell: a row, with `seconds` of a step or a batch, or with `error`."""
    row = {"cell": dataclasses.asdict(cell), "toy": toy}
    try:
        function = _jax if cell.framework == "jax" else _torch
        return row | function(cell, toy)
    except Exception as error:
        text = str(error)
        if not any(word in text for word in ("RESOURCE_EXHAUSTED", "out of memory", "exceeds")):
            raise
        return row | {"error": "does not fit the memory"}


def _jax(cell: Cell, toy: bool) -> dict[str, Any]:
    import jax
    import numpy as np
    from jax.sharding import NamedSharding

    from uvit_jax.aot import compile_run
    from uvit_jax.diffusion.solvers.solve import num_evaluations
    from uvit_jax.models.cost import forward_cost
    from uvit_jax.models.model import build
    from uvit_jax.parallel.mesh import make_mesh
    from uvit_jax.parallel.sharding import BATCH
    from uvit_jax.training.optimizer import make_optimizer
    from uvit_jax.training.state import init_state

    run = _run(cell, toy, jax.device_count())
    mesh, model = make_mesh(run.mesh), build(run.model)
    training = cell.program == "train"
    began = time.perf_counter()
    lowered = compile_run.lower(run, model, mesh, "step" if training else "sample")
    options = compile_run.OPTIONS.get(jax.devices()[0].platform)
    compiled = lowered.compile(options)
    compile_seconds = time.perf_counter() - began

    rng = np.random.default_rng(0)

    def random(like: jax.ShapeDtypeStruct) -> np.ndarray:
        if like.dtype.kind in "iub":
            return np.zeros(like.shape, like.dtype)
        return rng.normal(size=like.shape).astype(like.dtype)

    with jax.set_mesh(mesh):
        optimizer, _ = make_optimizer(run.optimizer, run.train)
        state, _ = init_state(model, optimizer, jax.random.key(0), mesh)
        if training:
            count = run.train.batch_size
            shapes = model.abstract_inputs(count)
            sharding = NamedSharding(mesh, BATCH)
            batch = {name: jax.device_put(random(s), sharding) for name, s in shapes.items()}

            def step() -> Any:
                nonlocal state
                state, metrics = compiled(state, batch)
                return metrics["loss"]
        else:
            count = run.sample.count
            conditions = jax.tree.map(random, lowered.args_info[0][1][1])
            params, key = state.ema, state.key
            del state

            def step() -> Any:
                return compiled(params, (key, conditions))

        seconds = _seconds(step, jax.block_until_ready, 3 if toy else 10)
    forward = 2 * forward_cost(run.model).total * count
    evaluations = num_evaluations(run.sample.sampler) * (2 if run.sample.guidance_scale else 1)
    flops = forward * (3 if training else evaluations)
    memory = compiled.memory_analysis()
    predicted = memory.argument_size_in_bytes + memory.output_size_in_bytes
    predicted += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch_size": count,
        "tokens": model.layout.num_tokens,
        "seconds": seconds,
        "flops": flops,
        "compile_seconds": compile_seconds,
        "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "predicted_bytes": predicted + memory.generated_code_size_in_bytes,
    }


def _torch(cell: Cell, toy: bool) -> dict[str, Any]:
    import numpy as np
    import torch

    from benchmarks import pairs, train_step
    from uvit_jax.models.cost import forward_cost

    run = _run(cell, toy, 1)
    backbone, image = run.model.backbone, run.model.segments["image"]
    count = run.train.batch_size
    shape = pairs.Shape(
        size=image.shape[-3],
        channels=image.shape[-1],
        patch_size=image.patch_size,
        width=backbone.width,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        batch_size=count,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = np.random.default_rng(0).normal(size=(count, *image.shape)).astype(np.float32)
    with torch.device(device):
        module = shape.theirs().to(device)
        called = torch.compile(module) if cell.framework == "torch.compile" else module
        step = train_step.theirs(module, images, called=called, dtype=torch.bfloat16)
        seconds = _seconds(step, lambda result: result, 3 if toy else 10)
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "devices": 1,
        "batch_size": count,
        "tokens": run.model.layout().num_tokens,
        "seconds": seconds,
        "flops": 6 * forward_cost(run.model).total * count,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "predicted_bytes": None,
    }


def _run(cell: Cell, toy: bool, devices: int) -> Any:
    """The run of a cell."""
    from uvit_jax.training.run_config import parse_run

    config, overrides, batch = MODELS[cell.model]
    if toy:
        config, batch = TOY_VIDEO if "video" in cell.model else config, 2
        overrides = TOY
    count = batch * devices if cell.program != "latency" else devices
    keys = {
        "model.backbone.attention": cell.attention or "xla",
        "model.backbone.remat": cell.remat or "none",
        "train.batch_size": batch * devices,
        "train.accumulate": 1,
        "mesh": {},
        "sample.count": count,
        "sample.mode": "",
        "sample.sampler": dict(name="ddim", steps=2 if toy else EVALUATIONS),
    }
    return parse_run(cli.read_config(config, overrides | keys))


def _seconds(step: Any, wait: Any, most: int) -> float:
    """The mean seconds of a step, of up to `most` in ten seconds, after two others."""
    for _ in range(2):
        began = time.perf_counter()
        wait(step())
        once = time.perf_counter() - began
    count = max(1, min(most, int(10 / once)))
    began = time.perf_counter()
    for _ in range(count):
        result = step()
    wait(result)
    return (time.perf_counter() - began) / count


def _in_process(cell: Cell, seconds: float) -> dict[str, Any]:
    """Measures a cell in a process of its own, for its own peak of memory."""
    text = json.dumps(dataclasses.asdict(cell))
    row = {"cell": dataclasses.asdict(cell), "toy": False}
    command = [sys.executable, "-m", "benchmarks.accelerator", "--out=-", f"--cell={text}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        return row | {"error": "took too long"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return row | {"error": lines[-1][:300] if lines else f"status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def _kernel() -> str:
    """The attention kernel of this machine; its platform is asked in another process, since a
    process that uses a TPU keeps it."""
    command = [sys.executable, "-c", "import jax; print(jax.devices()[0].platform)"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UvitError(f"JAX has no device: {done.stderr.splitlines()[-1]}")
    return KERNELS[done.stdout.split()[-1]]


def _pytorch_has_a_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def mfu(row: dict[str, Any]) -> float | None:
    """The row's model FLOPs utilisation, or None for devices of unknown peak."""
    from uvit_jax.aot.chips import CHIPS

    chip = next((chip for kind, chip in PEAKS.items() if kind in row["device"]), None)
    if chip is None:
        return None
    return row["flops"] / row["seconds"] / row["devices"] / CHIPS[chip].flops


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, by model."""
    lines = [
        "| model | program | framework | attention | remat | batch | ms | examples/s | MFU | "
        "peak GiB | predicted GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(MODELS)
    for row in sorted(rows, key=lambda r: order.index(r["cell"]["model"])):
        cell = row["cell"]
        names = [cell[k] or "–" for k in ("model", "program", "framework", "attention", "remat")]
        if "error" in row:
            values = [row["error"], *["–"] * 5]
        else:
            share = mfu(row)
            values = [
                row["batch_size"],
                f"{1000 * row['seconds']:.1f}",
                f"{row['batch_size'] / row['seconds']:.1f}",
                "–" if share is None else f"{share:.1%}",
                *(_gib(row[key]) for key in ("peak_bytes", "predicted_bytes")),
            ]
        lines.append("| " + " | ".join(map(str, [*names, *values])) + " |")
    devices = {f"{row['devices']} × {row['device']}" for row in rows if "device" in row}
    return "\n".join([f"Devices: {', '.join(sorted(devices)) or 'none'}.", "", *lines]) + "\n"


def _gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f}"


def _line(row: dict[str, Any]) -> str:
    what = " ".join(value for value in row["cell"].values() if value)
    return f"{what}: {row.get('error') or str(round(1000 * row['seconds'], 1)) + ' ms'}"


if __name__ == "__main__":
    cli.run(main)
