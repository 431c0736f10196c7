"""From answers to a comparison's rows, and to its manifest and page."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from uvit_jax.comparison.judging import Judge
from uvit_jax.comparison.questions import Question
from uvit_jax.evaluation.report_page import PictureGrid, PictureRow
from uvit_jax.evaluation.results import Metric, Row

VIEWS = ("identities_1v", "identities_2v", "identities_3v")
COUNTS = ("two_subjects", "three_subjects")
ANCHORS = {
    "oracle": "Oracle: other true pictures",
    "copy_paste": "Copy of the first reference",
    "random_identity": "True pictures of another subject",
    "text_only": "The unified network without references",
    "shuffled_references": "The unified network, another subject's references",
}


def places_of(question: Question, main: str) -> list[tuple[str, str]]:
    """(setting, split) of a question's rows; those of the main setting stand under `single` too."""
    found = []
    if question.setting in VIEWS:
        found.append(("views", question.split))
    elif question.setting in COUNTS:
        found.append(("multi", question.split))
    elif question.setting != main:
        found.append((question.setting, question.split))
    if question.setting == main:
        found.append(("single", question.split))
    return found


def rows_of(
    method: str,
    architecture: str,
    questions: Sequence[Question],
    answers: np.ndarray,
    judge: Judge,
    *,
    main: str,
    setting: str = "",
) -> list[Row]:
    """A row of each metric a picture.

    Args:
      answers: (Q, samples, H, W, C) in [-1, 1].
      setting: in place of the questions' own, such as `lora_step=100`.
    """
    Q, samples = answers.shape[:2]
    repeated = [q for q in questions for _ in range(samples)]
    scores = judge(repeated, answers.reshape(Q * samples, *answers.shape[2:]))
    found = []
    for i, question in enumerate(repeated):
        for place, split in [(setting, question.split)] if setting else places_of(question, main):
            found += [
                Row(
                    method=method,
                    architecture=architecture,
                    setting=place,
                    split=split,
                    subjects=len(question.names),
                    views=question.views,
                    subject=question.subject,
                    prompt=question.prompt,
                    # Two questions of a subject may have one prompt, never one seed.
                    seed=question.seed + i % samples,
                    metric=metric,
                    value=round(float(values[i]), 6),
                )
                for metric, values in scores.items()
                if np.isfinite(values[i])
            ]
    return found


def diversity_rows(
    method: str, architecture: str, questions: Sequence[Question], answers: np.ndarray, main: str
) -> list[Row]:
    """DIV: the root mean square distance between two samples of a question, pixels in [-1, 1]."""
    if answers.shape[1] < 2:
        return []
    found = []
    for question, own in zip(questions, answers, strict=True):
        pairs = [(a, b) for a in range(len(own)) for b in range(a)]
        value = np.mean([np.sqrt(((own[a] - own[b]) ** 2).mean()) for a, b in pairs])
        found += [
            Row(
                method=method,
                architecture=architecture,
                setting=place,
                split=split,
                subjects=len(question.names),
                views=question.views,
                subject=question.subject,
                prompt=question.prompt,
                seed=question.seed,
                metric="diversity",
                value=round(float(value), 6),
            )
            for place, split in places_of(question, main)
        ]
    return found


DIVERSITY = Metric(
    title="Diversity", note="DIV: RMS distance of two samples of a prompt, of pixels in [-1, 1]"
)
PRES = Metric(
    title="PRES",
    higher_is_better=False,
    note="how alike pictures of nobody in particular are to the subject, judge A",
)


def grids(
    settings: Mapping[str, Sequence[Question]],
    answers: Mapping[tuple[str, str], np.ndarray],
    order: Iterable[str],
    subjects: int = 8,
) -> list[PictureGrid]:
    """References beside what every method made of them, the first subjects of each setting."""
    found, order = [], list(order)
    for setting, questions in settings.items():
        firsts = [i for i, q in enumerate(questions) if i == 0 or q.group != questions[i - 1].group]
        rows = []
        for i in firsts[:subjects]:
            made = {m: list(answers[m, setting][i]) for m in order if (m, setting) in answers}
            if made:
                question = questions[i]
                references = [picture for views in question.references for picture in views]
                rows.append(
                    PictureRow(
                        subject=question.subject,
                        prompt=question.prompt,
                        references=references,
                        generations=made,
                    )
                )
        if rows:
            note = "The first subjects of the setting and their first question, none chosen."
            title = setting.replace("_", " ").capitalize()
            found.append(PictureGrid(title=title, rows=rows, note=note))
    return found
