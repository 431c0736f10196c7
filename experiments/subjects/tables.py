"""From answers to a comparison's rows, and to its manifest and page."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.subjects import report_summary as summary
from experiments.subjects import report_tables
from experiments.subjects.judging import Scores
from experiments.subjects.questions import Question
from experiments.subjects.report_page import PictureGrid, PictureRow
from experiments.subjects.results import Manifest, Metric, Row
from uvit_jax.evaluation.statistics import Interval

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
    scores: Scores,
    *,
    main: str,
    setting: str = "",
) -> list[Row]:
    """A row of each metric a picture.

    Args:
      scores: as `judging.judged` has them.
      setting: in place of the questions' own, such as `lora_step=100`.
    """
    samples = len(next(iter(scores.values()))) // len(questions)
    repeated = [q for q in questions for _ in range(samples)]
    found = []
    for i, question in enumerate(repeated):
        places = [(setting, question.split)] if setting else places_of(question, main)
        values = {metric: of_all[i] for metric, of_all in scores.items()}
        # Two questions of a subject may have one prompt, never one seed.
        seed = question.seed + i % samples
        found += _rows(method, architecture, question, places, seed, values)
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
        places, values = places_of(question, main), {"diversity": value}
        found += _rows(method, architecture, question, places, question.seed, values)
    return found


def _rows(
    method: str,
    architecture: str,
    question: Question,
    places: Sequence[tuple[str, str]],
    seed: int,
    values: Mapping[str, float],
) -> list[Row]:
    """The rows of one picture: in each (setting, split), each metric that says something."""
    return [
        Row(
            method=method,
            architecture=architecture,
            setting=setting,
            split=split,
            subjects=len(question.names),
            views=question.views,
            subject=question.subject,
            prompt=question.prompt,
            seed=seed,
            metric=metric,
            value=round(float(value), 6),
        )
        for setting, split in places
        for metric, value in values.items()
        if np.isfinite(value)
    ]


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


def markdown(rows: Sequence[Row], manifest: Manifest) -> str:
    """The means of every cell with their intervals over subjects, and the differences to the
    baseline, as a page of Markdown."""
    means, lines = summary.means(rows), []
    for cell in summary.cells(rows, manifest):
        setting, split, subjects, views = cell
        metrics = [m for m in manifest.metrics if any(k[0] == cell and k[2] == m for k in means)]
        heads = [
            f"{manifest.metrics[m].title} {_ARROWS[manifest.metrics[m].higher_is_better]}"
            for m in metrics
        ]
        lines += ["", f"**{setting}** ({split}), {subjects} × {views} references", ""]
        lines += [_line(["", *heads]), _line(["---", *["---:"] * len(heads)])]
        for method, about in manifest.methods.items():
            found = [means.get((cell, method, metric)) for metric in metrics]
            if any(found):
                title = f"*{about.title}*" if about.anchor else about.title
                lines.append(_line([title, *map(_shown, found)]))
    found = summary.differences(rows, manifest)
    if found:
        base = manifest.methods[manifest.baseline].title
        adjusted = report_tables.adjusted_for(found, manifest)
        lines += ["", f"Against *{base}*, picture by picture. p is adjusted (Holm) {adjusted}:", ""]
        lines += [_line(["setting", "arm", "metric", "difference", "p"]), _line(["---"] * 5)]
        for one in found:
            setting, split, subjects, views = one.cell
            where = f"{setting} ({split}), {subjects} × {views}"
            title, metric = manifest.methods[one.method].title, manifest.metrics[one.metric].title
            lines.append(_line([where, title, metric, _shown(one.interval, "+"), f"{one.p:.3f}"]))
    return "\n".join(lines).strip() + "\n"


_ARROWS = {True: "↑", False: "↓"}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "–"
    if np.isnan(interval.low):
        return f"{interval.mean:{sign}.2f}"
    return f"{interval.mean:{sign}.2f} ({interval.low:{sign}.2f} to {interval.high:{sign}.2f})"
