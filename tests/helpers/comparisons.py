"""A synthetic comparison: results, manifest and samples with known effects."""

import numpy as np

from experiments.subjects.results import (
    Manifest,
    MethodInfo,
    MetricInfo,
    PrimaryComparison,
    Score,
)
from experiments.subjects.sample_grids import ReportGrid, SampleRow

LEVELS = {  # identity, prompt-following
    "unified": (0.71, 0.31),
    "dit_lora": (0.66, 0.30),
    "unified_lora": (0.69, 0.29),
    "dit_context": (0.68, 0.305),
    "dreambooth": (0.70, 0.27),
    "oracle": (0.80, 0.33),
    "copy_paste": (0.88, 0.12),
    "random_identity": (0.35, 0.31),
    "text_only": (0.38, 0.33),
}
ANCHORS = ("oracle", "copy_paste", "random_identity", "text_only")
GATES = {  # identity of portraits, and of scenes with an unused name
    "dit_lora": (0.82, 0.40),
    "unified_lora": (0.61, 0.66),
    "dreambooth": (0.79, 0.45),
}
TITLES = {
    "unified": "Unified sequence (U-ViT)",
    "dit_lora": "DiT + LoRA a subject",
    "unified_lora": "U-ViT + LoRA",
    "dit_context": "DiT, references in context",
    "dreambooth": "DiT, fully fine-tuned",
    "oracle": "Oracle: real images",
    "copy_paste": "Copy of the reference",
    "random_identity": "Another subject",
    "text_only": "Text only",
}


def manifest() -> Manifest:
    methods = {}
    for i, name in enumerate(LEVELS):
        anchor = name in ANCHORS
        tuned = "lora" in name or name == "dreambooth"
        methods[name] = MethodInfo(
            title=TITLES[name],
            anchor=anchor,
            finetuned=tuned,
            validation=LEVELS[name][0],
            parameters=0 if anchor else 2_300_000 + 10_000 * i,
            finetune_seconds=(61.0 + i, 60.2 + i, 62.4 + i) if tuned else (),
            image_seconds=() if anchor else ((0.41, 0.42, 0.40) if tuned else (0.95, 0.97, 0.96)),
            uncached_seconds=(3.1, 3.2, 3.15) if "context" in name or name == "unified" else (),
            compile_seconds=0 if anchor else 21.0,
            finetune_flops=3e13 if tuned else 0,
            image_flops=0 if anchor else 2.2e11,
            memory_bytes=0 if anchor else 1 << 30,
            subject_bytes=300_000 if tuned else 0,
        )
    return Manifest(
        title="One sequence against DiT + LoRA: made-up numbers",
        commit="0123456789abcdef0123456789abcdef01234567",
        config={"model": {"width": 160, "depth": 6}, "train": {"steps": 4000}},
        hardware="2 CPU cores",
        timing="mean of 3 runs of 16 images on an idle machine, compilation apart",
        methods=methods,
        metrics={
            "totems_a_identity": MetricInfo(
                title="Identity (totem embedder A)",
                role="identity",
                encoder="totems_a-32-0123456789ab",
                note="cosine, all real × generated pairs",
            ),
            "totems_b_text": MetricInfo(
                title="Prompt followed", role="text", encoder="totems_b-32"
            ),
            "copy_rate": MetricInfo(title="Copy rate", higher_is_better=False),
        },
        baseline="unified",
        primary={
            "lora": PrimaryComparison(
                title="Context against LoRA",
                method="unified",
                against=("dit_lora", "unified_lora"),
                metric="totems_a_identity",
            ),
            "backbone": PrimaryComparison(
                title="U-ViT and DiT are equal",
                method="unified",
                against=("dit_context",),
                metric="totems_a_identity",
                test="equivalence",
                margin=0.06,
            ),
        },
        cells={"lora": ("single", "test", 1, 1), "backbone": ("single", "test", 1, 1)},
        notes=("These made-up numbers test the page and are not a result.",),
    )


def rows(subjects: int = 12, seeds: int = 3) -> list[Score]:
    rng = np.random.default_rng(0)
    places = [("single", "test", 1, 1), ("single", "background", 1, 1), ("multi", "test", 2, 1)]
    places += [("multi", "test", 3, 1), *(("views", "test", 1, v) for v in (1, 2, 3))]
    places += [("compositions", "test", 1, 2), *(("count", "test", n, 1) for n in (1, 2, 3))]
    places += [("portraits", "test", 1, 1), ("unused_name", "test", 1, 1)]
    places += [(f"lora_step={s}", "test", 1, 1) for s in (50, 100, 200, 400)]
    places += [(f"context_tokens={n}", "test", 1, 1) for n in (16, 64, 256)]
    places += [(f"forgetting={s}", "test", 0, 0) for s in (0, 100, 200, 400)]
    found = []
    for setting, split, count, views in places:
        axis, _, number = setting.partition("=")
        for method, (identity, text) in LEVELS.items():
            if axis in ("lora_step", "forgetting") and "lora" not in method:
                continue
            gated = setting in ("portraits", "unused_name")
            if gated and method not in GATES:
                continue
            if gated:
                identity = GATES[method][setting == "unused_name"]
            if axis == "context_tokens" and method not in ("unified", "dit_context"):
                continue
            shift = 0.02 * views - 0.05 * max(count - 1, 0) if method not in ANCHORS else 0
            several = setting == "single" and method in ("unified", "dit_context")
            both_seeds = [(n, k) for n in ((0, 1, 2) if several else (0,)) for k in range(seeds)]
            if axis == "lora_step":
                shift -= 0.4 * np.exp(-float(number) / 120)
            elif axis == "forgetting":
                shift -= 0.0004 * float(number)
            elif number:
                shift += 0.03 * np.log2(float(number) / 64)
            for s in range(subjects):
                offset = 0.05 * np.random.default_rng(s).normal()
                for network, seed in both_seeds:
                    copied = 0.98 if method == "copy_paste" else 0.05
                    values = {
                        "totems_a_identity": identity + shift + offset + 0.03 * rng.normal(),
                        "totems_b_text": text + 0.3 * offset + 0.02 * rng.normal(),
                        "copy_rate": float(rng.random() < copied),
                    }
                    for metric, value in values.items():
                        found.append(
                            Score(
                                method=method,
                                architecture="dit" if method.startswith("d") else "uvit",
                                setting=setting,
                                split=split,
                                subjects=count,
                                views=views,
                                subject=f"totem-{s:03d}",
                                prompt="@1 on a beach",
                                seed=seed,
                                metric=metric,
                                value=float(np.round(value, 6)),
                                network=network,
                            )
                        )
    return found


def grids(size: int = 32) -> list[ReportGrid]:
    rng = np.random.default_rng(0)

    def image(hue):
        y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
        inside = (x**2 + y**2 < 0.5)[..., None]
        return np.where(inside, np.asarray(hue), 0.6 * y[..., None] * np.ones(3)).astype(np.float32)

    rows = []
    for s in range(3):
        hue = rng.uniform(-1, 1, 3)
        generations = {m: [image(hue + 0.2 * rng.normal(size=3)) for _ in "ab"] for m in LEVELS}
        prompt = "@1 on a cobblestone street, seen from behind"
        rows.append(
            SampleRow(
                subject=f"totem-{s:03d}",
                prompt=prompt,
                references=[image(hue)] * (s + 1),
                generations=generations,
            )
        )
    return [
        ReportGrid(title="Held-out identities", rows=rows, note="The first three, not selected.")
    ]
