"""From scores of images to the rows of the results table."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.subjects.evaluation_cases import EvaluationCase
from experiments.subjects.results import MetricInfo, Score
from experiments.subjects.scoring import Scores

VIEWS = ("identities_1v", "identities_2v", "identities_3v")
COUNTS = ("identities_1v", "two_subjects_1v", "three_subjects_1v")
"""Settings that differ in the number of references, or of subjects, alone."""
ANCHORS = {
    "oracle": "Oracle: other ground-truth images",
    "copy_paste": "Copy of the first reference",
    "cut_paste": "A reference cut out and pasted at the caption's place",
    "nearest_training": "Ground-truth images of the nearest training subject",
    "random_identity": "Ground-truth images of another subject",
    "text_only": "The unified network without references",
    "shuffled_references": "The unified network, another subject's references",
}
"""Titles of the anchors, which show the range of the metrics."""
RENDERED_ANCHORS = {
    "oracle": "oracle",
    "copy_paste": "oracle",
    "cut_paste": "cut_paste",
    "nearest_training": "nearest_training",
    "random_identity": "impostor",
}
"""Anchors that need no network, and the method of a world that each needs."""


def settings_of(case: EvaluationCase, main: str) -> list[tuple[str, str]]:
    """The (setting, split) pairs that a case counts in; the main setting is also `single`."""
    found = []
    if case.setting == main:
        found.append("single")
    if case.setting in VIEWS:
        found.append("views")
    if case.setting in COUNTS:
        found.append("count")
    distractors = sum(map(len, case.references[len(case.names) :]))
    if distractors or case.setting == "identities_1v":
        found.append(f"distractors={distractors}")
    return [(setting, case.split) for setting in found or [case.setting]]


def rows_of(
    method: str,
    architecture: str,
    cases: Sequence[EvaluationCase],
    scores: Scores,
    *,
    main: str,
    setting: str = "",
    network: int = 0,
) -> list[Score]:
    """One row for each image and metric.

    Args:
      scores: as `scoring.score_images` returns them.
      setting: replaces that of the cases, such as `lora_step=100`.
      network: the seed of the method's network.
    """
    samples = len(next(iter(scores.values()))) // len(cases)
    repeated = [q for q in cases for _ in range(samples)]
    found = []
    for i, case in enumerate(repeated):
        places = [(setting, case.split)] if setting else settings_of(case, main)
        values = {metric: of_all[i] for metric, of_all in scores.items()}
        # Cases of a subject may share their prompt, never their seed.
        seed = case.seed + i % samples
        found += _rows(method, architecture, case, places, seed, values, network)
    return found


def diversity_rows(
    method: str,
    architecture: str,
    cases: Sequence[EvaluationCase],
    images: np.ndarray,
    main: str,
    network: int = 0,
) -> list[Score]:
    """DIV: the RMS distance between two samples of a case, of pixels in [-1, 1]."""
    if images.shape[1] < 2:
        return []
    found = []
    for case, own in zip(cases, images, strict=True):
        pairs = [(a, b) for a in range(len(own)) for b in range(a)]
        value = np.mean([np.sqrt(((own[a] - own[b]) ** 2).mean()) for a, b in pairs])
        places, values = settings_of(case, main), {"diversity": value}
        found += _rows(method, architecture, case, places, case.seed, values, network)
    return found


def _rows(
    method: str,
    architecture: str,
    case: EvaluationCase,
    places: Sequence[tuple[str, str]],
    seed: int,
    values: Mapping[str, float],
    network: int,
) -> list[Score]:
    """The rows of one image: each finite metric in each (setting, split)."""
    return [
        Score(
            method=method,
            architecture=architecture,
            setting=setting,
            split=split,
            subjects=len(case.names),
            views=case.views,
            subject=case.subject,
            prompt=case.prompt,
            seed=seed,
            metric=metric,
            value=round(float(value), 6),
            network=network,
        )
        for setting, split in places
        for metric, value in values.items()
        if np.isfinite(value)
    ]


DIVERSITY = MetricInfo(
    title="Diversity", note="DIV: RMS distance of two samples of a prompt, of pixels in [-1, 1]"
)
PREFERRED = MetricInfo(
    title="Right arrangement preferred",
    note="share of the true images on which the loss (t = .75) is lower with each subject's "
    "references, or name, in its own place than in the next one's",
)
PRES = MetricInfo(
    title="PRES",
    higher_is_better=False,
    note="identity of images of the bare class with the subject, judge A",
)
