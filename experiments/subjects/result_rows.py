"""From scores of images to the rows of the results table."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.subjects.evaluation_cases import EvaluationCase
from experiments.subjects.results import MetricInfo, Score
from experiments.subjects.scoring import Scores

VIEWS = ("identities_1v", "identities_2v", "identities_3v")
COUNTS = ("two_subjects", "three_subjects")
ANCHORS = {
    "oracle": "Oracle: other ground-truth images",
    "copy_paste": "Copy of the first reference",
    "random_identity": "Ground-truth images of another subject",
    "text_only": "The unified network without references",
    "shuffled_references": "The unified network, another subject's references",
}
"""Titles of the anchors, which show the range of the metrics."""
RENDERED_ANCHORS = ("oracle", "copy_paste", "random_identity")
"""Anchors that need no network."""


def settings_of(case: EvaluationCase, main: str) -> list[tuple[str, str]]:
    """The (setting, split) pairs that a case counts in; the main setting is also `single`."""
    found = []
    if case.setting in VIEWS:
        found.append(("views", case.split))
    elif case.setting in COUNTS:
        found.append(("multi", case.split))
    elif case.setting != main:
        found.append((case.setting, case.split))
    if case.setting == main:
        found.append(("single", case.split))
    return found


def rows_of(
    method: str,
    architecture: str,
    cases: Sequence[EvaluationCase],
    scores: Scores,
    *,
    main: str,
    setting: str = "",
) -> list[Score]:
    """One row for each image and metric.

    Args:
      scores: as `scoring.score_images` returns them.
      setting: replaces that of the cases, such as `lora_step=100`.
    """
    samples = len(next(iter(scores.values()))) // len(cases)
    repeated = [q for q in cases for _ in range(samples)]
    found = []
    for i, case in enumerate(repeated):
        places = [(setting, case.split)] if setting else settings_of(case, main)
        values = {metric: of_all[i] for metric, of_all in scores.items()}
        # Cases of a subject may share their prompt, never their seed.
        seed = case.seed + i % samples
        found += _rows(method, architecture, case, places, seed, values)
    return found


def diversity_rows(
    method: str, architecture: str, cases: Sequence[EvaluationCase], images: np.ndarray, main: str
) -> list[Score]:
    """DIV: the RMS distance between two samples of a case, of pixels in [-1, 1]."""
    if images.shape[1] < 2:
        return []
    found = []
    for case, own in zip(cases, images, strict=True):
        pairs = [(a, b) for a in range(len(own)) for b in range(a)]
        value = np.mean([np.sqrt(((own[a] - own[b]) ** 2).mean()) for a, b in pairs])
        places, values = settings_of(case, main), {"diversity": value}
        found += _rows(method, architecture, case, places, case.seed, values)
    return found


def _rows(
    method: str,
    architecture: str,
    case: EvaluationCase,
    places: Sequence[tuple[str, str]],
    seed: int,
    values: Mapping[str, float],
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
        )
        for setting, split in places
        for metric, value in values.items()
        if np.isfinite(value)
    ]


DIVERSITY = MetricInfo(
    title="Diversity", note="DIV: RMS distance of two samples of a prompt, of pixels in [-1, 1]"
)
PRES = MetricInfo(
    title="PRES",
    higher_is_better=False,
    note="identity of images of the bare class with the subject, judge A",
)
