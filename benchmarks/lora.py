"""Times LoRA fine-tuning to many subjects: in one `vmap` or in turn, attached or merged.

    python -m benchmarks.lora
    python -m benchmarks.lora --backbone=dit --subjects=8 --rounds=9

The model is `configs/quickstart.py`'s, or a DiT of its size. A round fine-tunes to all subjects at
once by `vmap`, then to each in turn, and prints the ratio of the times; below 1, all at once is
faster. `--merged` also times adapters that are merged into the kernels in every step, with the same
gradients. Compilation is not timed.
"""

import time
from collections.abc import Sequence

import numpy as np

from experiments import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "--backbone", choices=("uvit", "dit"), default="uvit", help="of the base model"
    )
    parser.add_argument("--subjects", type=int, default=16, help="number of adapters")
    parser.add_argument("--steps", type=int, default=3, help="of fine-tuning per round")
    parser.add_argument("--rounds", type=int, default=7, help="measurements")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--batch_size", type=int, default=4, help="examples per subject and step")
    parser.add_argument("--merged", action="store_true", help="also time merged adapters")
    args = parser.parse(argv)

    import jax

    import uvit_jax
    from uvit_jax.diffusion.objective import ObjectiveConfig
    from uvit_jax.diffusion.schedule import ScheduleConfig
    from uvit_jax.models.lora import LoraConfig
    from uvit_jax.models.presets import dit, uvit
    from uvit_jax.training.examples import stacked
    from uvit_jax.training.finetune import FinetuneConfig, Finetuner

    preset = {"uvit": uvit, "dit": dit}[args.backbone].preset
    size = dict(width=192, depth=6, num_heads=6)
    model = uvit_jax.build(preset("S", (32, 32, 3), patch_size=4, num_classes=10, **size))
    params = model.init(jax.random.key(0))
    discrete = ScheduleConfig(name="ddpm_linear")  # required for learned variances
    diffusion = ObjectiveConfig(schedule=discrete)
    rng = np.random.default_rng(0)

    def examples(count: int) -> dict[str, np.ndarray]:
        images = rng.uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)
        return {"image": images, "label": np.zeros(count, np.int32)}

    subjects = {f"subject {i}": examples(4) for i in range(args.subjects)}
    together, apart = stacked(subjects), [stacked({k: v}) for k, v in subjects.items()]
    prior = stacked({"class": examples(64)})
    config = FinetuneConfig(
        steps=args.steps, batch_size=args.batch_size, lora=LoraConfig(rank=args.rank)
    )
    tuners = {"attached": Finetuner(model, diffusion, config)}
    if args.merged:
        tuners["merged"] = Finetuner(model, diffusion, config)
        tuners["merged"].method = tuners["merged"].method._replace(
            attached=tuners["merged"].method.merged
        )
    ways = {}
    for name, tune in tuners.items():
        ways[f"{name}, at once"] = lambda tune=tune: tune(params, together, prior=prior)
        ways[f"{name}, in turn"] = lambda tune=tune: [
            tune(params, each, prior=prior) for each in apart
        ]
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, run in ways.items():
            began = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - began[0])
            busy[name].append(time.process_time() - began[1])
    each = args.steps * args.subjects
    results = {}
    for name, taken in seconds.items():
        result = {"seconds": taken, "processor_seconds": busy[name]}
        for key, values, base in (
            ("ratio", taken, seconds["attached, in turn"]),
            ("processor_ratio", busy[name], busy["attached, in turn"]),
        ):
            result[key] = np.percentile(np.asarray(values) / base, (50, 0, 100)).tolist()
        results[name] = result
        wall, cpu = [_ratio_text(result[k]) for k in ("ratio", "processor_ratio")]
        print(
            f"{name}: {1e3 * np.median(taken) / each:.1f} ms per subject and step; relative to "
            f"attached, in turn: wall {wall}, CPU {cpu}"
        )
    cli.write_json(args.json, results)
    return 0


def _ratio_text(ratio: Sequence[float]) -> str:
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    cli.run(main)
