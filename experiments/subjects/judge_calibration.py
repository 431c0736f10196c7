"""Calibration of the totem judges on ground-truth images of held-out test identities.

A judge's scores mean something only beside these metrics. Retrieval is easy, since a random
impostor differs in seven of eight factors; near misses, which differ in one, show whether a factor
is measured at all.
"""

from collections.abc import Sequence

import numpy as np

from experiments.subjects import judge_crops
from experiments.subjects.totem_judge import TotemJudge
from uvit_jax.data.sources.worlds import backgrounds, factors, totems

SEED = 7
BLURS = (0, 1, 2, 4)
NOISES = (0.0, 0.2, 0.4, 0.8)
ALL = len(factors.NAMES)
CLOSE, SMALL = (24, 32), (13,)
"""Pixels across a subject: alone in an image of 32, and one of three."""


def calibrate(judges: Sequence[TotemJudge], pairs: int = 256) -> dict:
    """Measures each judge. The two images of a pair differ in view, background, position and scale.

    Args:
      pairs: genuine and impostor pairs for each AUC; with 256, its standard error at .8 is .02.

    Returns:
      By judge, metrics as plain JSON: `top1` by the number of reference views, `auc_random`,
      `auc_one_factor` by factor, `heads` and `heads_small` (accuracies where a factor is visible,
      by factor, and of `background` and `present`), `blur`, `noise` and `swap` (mean similarity
      to a reference, by the strength of the corruption or the number of factors swapped).
    """
    splits = factors.identities()
    test = np.concatenate([splits["test"], splits["test_pairs"]])
    return {judge.name: _calibrate_one(judge, test, pairs) for judge in judges}


def auc(same: np.ndarray, other: np.ndarray) -> float:
    """The probability that a score of `same` is above one of `other`; ties count half."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, same, side="left")
    level = np.searchsorted(ordered, same, side="right")
    return float((below + level).mean() / (2 * len(other)))


def to_markdown(table: dict) -> str:
    """The metrics as Markdown tables."""
    names = list(table)
    lines = [
        "# Calibration of the totem judges",
        "",
        "Measured by `python -m experiments.train_judge --calibrate --out=docs/subjects/judges.md` "
        "on the 256 test identities,",
        "none of which is in the training data. Chance is .004 for retrieval and .5 for every AUC.",
        "",
    ]

    def rows(title: str, labels: Sequence[str], values) -> None:
        lines.extend([f"| {title} | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)])
        for label in labels:
            cells = " | ".join(f"{values(table[n], label):.3f}" for n in names)
            lines.append(f"| {label} | {cells} |")
        lines.append("")

    views = list(table[names[0]]["top1"])
    rows("top-1 among 256, by reference views", views, lambda t, v: t["top1"][v])
    rows("verification against a random identity", ["AUC"], lambda t, _: t["auc_random"])
    rows("one-factor AUC", factors.NAMES, lambda t, f: t["auc_one_factor"][f])
    heads = list(table[names[0]]["heads"])
    rows("accuracy of heads, subject of 24 to 32 pixels", heads, lambda t, f: t["heads"][f])
    rows("the same, 13 pixels", factors.NAMES, lambda t, f: t["heads_small"][f])
    for key, what in (
        ("blur", "similarity after a blur, pixels"),
        ("noise", "similarity after noise, standard deviation"),
        ("swap", "similarity by factors swapped"),
    ):
        rows(what, list(table[names[0]][key]), lambda t, v, key=key: t[key][v])
    return "\n".join(lines)


def _calibrate_one(judge: TotemJudge, test: np.ndarray, pairs: int) -> dict:
    rng = np.random.default_rng(SEED)
    found = {"top1": _retrieval(judge, test, rng)}
    number = rng.integers(len(test), size=pairs)
    impostor = (number + rng.integers(1, len(test), size=pairs)) % len(test)
    same, other = _scores(judge, rng, test[number], test[impostor], "hue")
    found["auc_random"] = auc(same, other)
    found["auc_one_factor"] = {}
    for factor in factors.NAMES:
        first = test[rng.integers(len(test), size=pairs)]
        second = np.array([judge_crops.near_miss(rng, one, factor) for one in first])
        found["auc_one_factor"][factor] = auc(*_scores(judge, rng, first, second, factor))
    found["heads"] = _heads(judge, test, rng, CLOSE) | _other_heads(judge, test, rng)
    found["heads_small"] = _heads(judge, test, rng, SMALL)
    return found | _corrupted(judge, test, rng)


def _scores(judge, rng, first, second, factor) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of two images of one identity, and of images of the two identities of a pair."""
    yaw = [judge_crops.yaws(rng, factor, len(first)) for _ in range(3)]
    a, b, c = (
        judge(judge_crops.totem_crops(rng, who, at, resolutions=CLOSE)[0])["embedding"]
        for who, at in zip((first, first, second), yaw, strict=True)
    )
    return np.sum(a * b, axis=1), np.sum(a * c, axis=1)


def _retrieval(judge, test, rng) -> dict[str, float]:
    """Top-1 accuracy of retrieval by the number of gallery views; probes have random yaw."""
    probe, _ = judge_crops.totem_crops(rng, test, rng.uniform(-np.pi, np.pi, len(test)))
    probe = judge(probe)["embedding"]
    best, found = np.full((len(test), len(test)), -1.0), {}
    for views, yaw in enumerate(totems.REFERENCE_YAWS[:3], start=1):
        gallery = judge(_plain(test, np.full(len(test), yaw)))["embedding"]
        best = np.maximum(best, probe @ gallery.T)
        found[str(views)] = float((best.argmax(axis=1) == np.arange(len(test))).mean())
    return found


def _plain(identity: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Reference images, (B, 32, 32, 3)."""
    from uvit_jax.data.sources.worlds import scenes

    return np.stack(
        [
            scenes.portrait("totems", tuple(map(int, one)), (float(at), 0.0), 32)
            for one, at in zip(identity, yaw, strict=True)
        ]
    )


def _heads(judge, test, rng, resolutions) -> dict[str, float]:
    yaw = rng.uniform(-np.pi, np.pi, 2 * len(test))
    who = np.concatenate([test, test])
    found = judge(judge_crops.totem_crops(rng, who, yaw, resolutions=resolutions)[0])
    shown = factors.visible(yaw)
    return {
        name: float((found[name].argmax(axis=1) == who[:, i])[shown[:, i]].mean())
        for i, name in enumerate(factors.NAMES)
    }


def _other_heads(judge, test, rng) -> dict[str, float]:
    """Accuracy of `background` of whole images, and `present` of crops, half of them empty."""
    from uvit_jax.data.sources.worlds import random_scenes, scenes

    examples = [
        scenes.render(
            random_scenes.draw("totems", "test", i, subjects=3, views=1, anywhere=True), 32
        )
        for i in range(256)
    ]
    at = np.array([backgrounds.NAMES.index(e.facts.background) for e in examples])
    predicted = judge(np.stack([e.image for e in examples]))["background"].argmax(axis=1)
    someone, _ = judge_crops.totem_crops(rng, test, rng.uniform(-np.pi, np.pi, len(test)))
    empty = judge_crops.empty_crops(rng, len(test))
    present = judge(np.concatenate([someone, empty]))["present"].argmax(axis=1)
    right = present == np.repeat([1, 0], len(test))
    return {"background": float((predicted == at).mean()), "present": float(right.mean())}


def _corrupted(judge, test, rng) -> dict[str, dict[str, float]]:
    """Mean similarities of corrupted frontal images to the clean reference."""
    yaw = rng.uniform(-0.5, 0.5, len(test))
    reference = judge(_plain(test, np.zeros(len(test))))["embedding"]

    def similarity(seen: np.ndarray) -> float:
        return float(np.sum(judge(seen)["embedding"] * reference, axis=1).mean())

    clean, _ = judge_crops.totem_crops(np.random.default_rng(SEED), test, yaw, resolutions=CLOSE)
    noise = rng.normal(size=clean.shape)
    swap = {}
    order = np.argsort(rng.random((len(test), ALL)), axis=1)
    others = np.roll(test, 1, axis=0)
    for count in range(ALL + 1):
        changed = np.where(np.argsort(order, axis=1) < count, others, test)
        seen, _ = judge_crops.totem_crops(
            np.random.default_rng(SEED), changed, yaw, resolutions=CLOSE
        )
        swap[str(count)] = similarity(seen)
    return {
        "blur": {str(b): similarity(_blur(clean, b)) for b in BLURS},
        "noise": {str(s): similarity(clean + s * noise) for s in NOISES},
        "swap": swap,
    }


def _blur(pictures_BHWC: np.ndarray, radius: int) -> np.ndarray:
    """The mean over a square of 2 * radius + 1 pixels."""
    if not radius:
        return pictures_BHWC
    for axis in (1, 2):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(pictures_BHWC, padding, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis)
        pictures_BHWC = windows.mean(axis=-1)
    return pictures_BHWC
