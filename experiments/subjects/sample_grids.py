"""Grids of references and samples, and their HTML."""

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from experiments.subjects.evaluation_cases import EvaluationCase
from experiments.subjects.results import Manifest
from uvit_jax.io import to_uint8

SHARP = 128
"""Images up to this side are enlarged without smoothing."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SampleRow:
    """One evaluation case and its samples, floats (H, W, C) in [-1, 1].

    Attributes:
      subject, prompt, references: of the case. generations: one or more images by method.
    """

    subject: str
    prompt: str
    references: Sequence[np.ndarray]
    generations: Mapping[str, Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ReportGrid:
    """Rows of samples under one title, with a sentence about them."""

    title: str
    rows: Sequence[SampleRow]
    note: str = ""


def grids(
    settings: Mapping[str, Sequence[EvaluationCase]],
    images: Mapping[tuple[str, str], np.ndarray],
    order: Iterable[str],
    subjects: int,
) -> list[ReportGrid]:
    """References beside the samples of every method, for the first subjects of each setting."""
    found, order = [], list(order)
    for setting, cases in settings.items():
        firsts = [i for i, q in enumerate(cases) if i == 0 or q.group != cases[i - 1].group]
        rows = []
        for i in firsts[:subjects]:
            generations = {
                m: _shown(found_images[i])
                for m in order
                # Fine-tuned methods have the first cases only.
                if i < len(found_images := images.get((m, setting), ()))
            }
            if generations:
                case = cases[i]
                references = [image for views in case.references for image in views]
                rows.append(
                    SampleRow(
                        subject=case.subject,
                        prompt=case.prompt,
                        references=references,
                        generations=generations,
                    )
                )
        if rows:
            note = "The first subjects of the setting and their first case, not selected."
            title = setting.replace("_", " ").capitalize()
            found.append(ReportGrid(title=title, rows=rows, note=note))
    return found


def _shown(samples: np.ndarray) -> list[np.ndarray]:
    """The images of a case, or the first, middle and last frame of its first video."""
    if samples.ndim == 4:
        return list(samples)
    T = samples.shape[1]
    return list(samples[0, [0, T // 2, T - 1]])


def grid_html(manifest: Manifest, grid: ReportGrid) -> str:
    """A table of references and samples, one column per method."""
    methods = [m for m in manifest.ordered() if any(m in row.generations for row in grid.rows)]
    heads = "".join(f"<th>{escape(manifest.methods[m].title)}</th>" for m in methods)
    body = []
    for row in grid.rows:
        given = _strip(row.references, f"reference of {row.subject}")
        made = "".join(
            f"<td>{_strip(row.generations.get(m, ()), f'{row.subject} by {m}')}</td>"
            for m in methods
        )
        prompt = f'<span class="ci">{escape(row.subject)}</span>{escape(row.prompt)}'
        prompt_cell = f'<td class="prompt">{prompt}</td>'
        body.append(f'<tr><td class="given">{given}</td>{prompt_cell}{made}</tr>')
    note = f"<p>{escape(grid.note)}</p>" if grid.note else ""
    return (
        f'<h3>{escape(grid.title)}</h3>{note}<div class="scroll samples"><table><thead><tr>'
        f'<th class="given">references</th><th>prompt</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _strip(images: Sequence[np.ndarray], about: str) -> str:
    strip = []
    for image in images:
        pixels = to_uint8(image)
        pixels = pixels.repeat(3, axis=-1) if pixels.shape[-1] == 1 else pixels
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format="PNG", optimize=True)
        data = base64.b64encode(out.getvalue()).decode()
        sharp = ' class="pixels"' if max(pixels.shape[:2]) <= SHARP else ""
        size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
        source = f'src="data:image/png;base64,{data}"'
        strip.append(f'<img{sharp} {size} alt="{escape(about)}" {source}>')
    return f'<div class="strip">{"".join(strip)}</div>'
