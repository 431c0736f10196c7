"""From pictures to numbers, one of each metric a picture.

judge = make_judge(config, world)
judge.metrics                                    # name → Metric
judge(questions, pictures)                       # name → (Q,), NaN where it says nothing
"""

from collections.abc import Sequence

import numpy as np

from experiments.subjects import boxes, crops, totem_judge
from experiments.subjects.questions import Drawn, Question, World
from experiments.subjects.results import Metric
from experiments.subjects.study_config import CompareConfig
from uvit_jax.data.sources.worlds import backgrounds, factors, scenes
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import consistency

Scores = dict[str, np.ndarray]


class TotemJudging:
    """Both judges of totems. Subjects are looked for where the caption says they are."""

    def __init__(self, world: Drawn, which: Sequence[int] = (0, 1)):
        self._judges = {chr(ord("a") + i): totem_judge.load(i) for i in which}
        splits = factors.identities()
        gallery = np.concatenate([splits["test"], splits["test_pairs"]])
        self._gallery = [tuple(map(int, one)) for one in gallery]
        real = np.concatenate([world.real(one) for one in self._gallery])
        own = crops.MARGIN * scenes.portrait_place(world.world)["scale"]
        self._place = (0.0, scenes.portrait_place(world.world)["y"]), own
        self._own: dict[tuple[str, str], np.ndarray] = {}
        self._known = {
            key: self._portraits(judge, real).reshape(len(gallery), -1, totem_judge.EMBEDDING)
            for key, judge in self._judges.items()
        }
        self.metrics: dict[str, Metric] = {}
        for key, judge in self._judges.items():
            name, version = key.upper(), judge.name
            self.metrics |= {
                f"identity_{key}": Metric(
                    title=f"Identity ({name})",
                    role="identity",
                    encoder=version,
                    note="cosine to four portraits of the subject, cut out where the caption puts "
                    "it; mean over subjects",
                ),
                f"prompt_{key}": Metric(
                    title=f"Prompt ({name})",
                    role="text",
                    encoder=version,
                    note="mean of the background being right and the share of places that are "
                    "taken or empty as the caption says",
                ),
                f"top1_{key}": Metric(
                    title=f"Top-1 ({name})",
                    encoder=version,
                    note=f"nearest, of {len(gallery)} test identities, to the subject's own",
                ),
                f"verify_{key}": Metric(
                    title=f"Verification AUC ({name})",
                    encoder=version,
                    note="share of other test identities that are less alike",
                ),
                f"factors_{key}": Metric(
                    title=f"Factors ({name})",
                    encoder=version,
                    note=f"right ones of {', '.join(totem_judge.MEASURED)}, where both the pose "
                    "asked for and a reference show them",
                ),
            }
        self.metrics |= {
            "swapped": Metric(
                title="Swapped", higher_is_better=False, note="of several subjects, judge A"
            ),
            "missing": Metric(
                title="Missing", higher_is_better=False, note="of several subjects, judge A"
            ),
            "leaked": Metric(
                title="Leaked",
                higher_is_better=False,
                note="factors that another subject of the picture has, judge A",
            ),
            "detect_and_compare": Metric(
                title="Detect and compare", note="MuDI's, 0 if a subject is missing; judge A"
            ),
            "copy_rate": _COPIES,
        }

    def __call__(self, questions: Sequence[Question], pictures: np.ndarray) -> Scores:
        """Scores of pictures (Q, H, W, 3), one a question."""
        found: Scores = {name: np.full(len(questions), np.nan) for name in self.metrics}
        places = [_places(q) for q in questions]
        owner = np.repeat(np.arange(len(questions)), [len(p) for p in places])
        cut = crops.crop(
            pictures[owner],
            np.array([centre for p in places for centre, _, _ in p]),
            np.array([crops.MARGIN * scale for p in places for _, scale, _ in p]),
            totem_judge.SIZE,
        )
        whole = pictures
        if pictures.shape[1] != totem_judge.SIZE:
            middle = np.zeros((len(pictures), 2))
            whole = crops.crop(pictures, middle, np.ones(len(pictures)), totem_judge.SIZE)
        for key, judge in self._judges.items():
            seen, ground = judge(cut), judge(whole)["background"].argmax(axis=1)
            for i, question in enumerate(questions):
                rows = np.flatnonzero(owner == i)
                slots = np.array([slot for _, _, slot in places[i]])
                here = {name: value[rows] for name, value in seen.items()}
                taken = here["present"].argmax(axis=1) == 1
                right_ground = ground[i] == _ground(question)
                found[f"prompt_{key}"][i] = (right_ground + (taken == (slots >= 0)).mean()) / 2
                own = {name: value[slots >= 0] for name, value in here.items()}
                self._identity(found, key, i, question, slots[slots >= 0], own)
                if key == "a" and len(question.names) > 1:
                    self._several(found, i, question, slots, own, taken[slots >= 0])
        for i, question in enumerate(questions):
            found["copy_rate"][i] = _copied(question, pictures[i])
        return found

    def _identity(self, found: Scores, key: str, i: int, question: Question, slots, own) -> None:
        """Each subject's cut-out against its own portraits and everybody's."""
        values = []
        known = self._known[key].mean(axis=1)  # mean cosine to a set is the cosine to its mean
        everybody = np.array(self._gallery)
        for row, slot in enumerate(slots):
            subject = question.scene.subjects[slot]
            real = self._real(key, question, slot).mean(axis=0)
            cosine = float(own["embedding"][row] @ real)
            others = (everybody != np.array(subject.identity)).any(axis=1)
            rivals = known[others] @ own["embedding"][row]
            judged = question.scene.judged()[slot] | ~question.scene.judged()[slot].any()
            right = [
                own[name][row].argmax() == subject.identity[factors.NAMES.index(name)]
                for name in totem_judge.MEASURED
                if judged[factors.NAMES.index(name)]
            ]
            share = (rivals < cosine).mean()
            values.append((cosine, rivals.max() < cosine, share, np.mean(right or [np.nan])))
        for name, value in zip(
            ("identity", "top1", "verify", "factors"), np.mean(values, axis=0), strict=True
        ):
            found[f"{name}_{key}"][i] = value

    def _several(self, found: Scores, i: int, question: Question, slots, own, taken) -> None:
        """What got mixed up between the subjects of a picture."""
        real = [self._real("a", question, slot) for slot in range(len(question.names))]
        place = slots[slots >= 0]
        boxes_KD, where = own["embedding"][taken], place[taken]
        similarity = np.stack([boxes_KD @ one.mean(axis=0) for one in real], axis=1)
        mixed = boxes.identities(similarity.reshape(-1, len(real)), where)
        found["swapped"][i], found["missing"][i] = mixed["swapped"], mixed["missing"]
        names = totem_judge.MEASURED
        predicted = {name: own[name][taken].argmax(axis=1) for name in names}
        labels = {
            name: np.array([s.identity[factors.NAMES.index(name)] for s in question.scene.subjects])
            for name in names
        }
        found["leaked"][i] = boxes.leak_rate(predicted, labels, where) if len(where) else np.nan
        found["detect_and_compare"][i] = boxes.detect_and_compare(boxes_KD, real, where)

    def _real(self, key: str, question: Question, slot: int) -> np.ndarray:
        """Embeddings of a subject's true pictures (R, D), which many questions ask for."""
        known = (key, question.names[slot])
        if known not in self._own:
            self._own[known] = self._portraits(self._judges[key], question.real[slot])
        return self._own[known]

    def _portraits(self, judge: totem_judge.Judge, pictures: np.ndarray) -> np.ndarray:
        """Embeddings of references, (R, D)."""
        centre, half = self._place
        count = len(pictures)
        cut = crops.crop(
            pictures, np.tile(centre, (count, 1)), np.full(count, half), totem_judge.SIZE
        )
        return judge(cut)["embedding"]


class EncoderJudging:
    """Any encoders: of emoji scenes' cut-outs, or of whole photographs."""

    def __init__(self, config: CompareConfig, world: World):
        self._world, self._drawn = world, isinstance(world, Drawn)
        self._encoders = {name: encoder(name, config.weights.get(name)) for name in config.encoders}
        self.metrics: dict[str, Metric] = {}
        crop = "cut out where the caption puts it" if self._drawn else "whole pictures"
        for name, found in self._encoders.items():
            self.metrics |= {
                f"identity_{name}": Metric(
                    title=f"Identity ({found.title})",
                    role="identity",
                    encoder=found.version,
                    note=f"cosine, all real × generated pairs, {crop}",
                ),
                f"top1_{name}": Metric(
                    title=f"Top-1 ({found.title})",
                    encoder=found.version,
                    note="nearest, of all subjects asked for in the setting, to its own",
                ),
            }
        if self._drawn:
            self.metrics["prompt"] = Metric(
                title="Background", role="text", note="nearest of all backgrounds, at the rim"
            )
        self.metrics["copy_rate"] = _COPIES

    def __call__(self, questions: Sequence[Question], pictures: np.ndarray) -> Scores:
        """Scores of pictures (Q, H, W, 3), one a question."""
        found: Scores = {name: np.full(len(questions), np.nan) for name in self.metrics}
        owner, cut = self._cut(questions, pictures)
        people = {n: r for q in questions for n, r in zip(q.names, q.real, strict=True)}
        names = list(people)
        for key, encode in self._encoders.items():
            seen = _unit(encode.of_pictures(list(cut)))
            real = np.stack(
                [_unit(encode.of_pictures(list(people[name]))).mean(axis=0) for name in names]
            )
            cosine = seen @ real.T
            for i, question in enumerate(questions):
                rows = np.flatnonzero(owner == i)
                own = np.array([names.index(name) for name in question.names])
                here = cosine[rows]
                found[f"identity_{key}"][i] = here[np.arange(len(rows)), own].mean()
                found[f"top1_{key}"][i] = (here.argmax(axis=1) == own).mean()
        for i, question in enumerate(questions):
            found["copy_rate"][i] = _copied(question, pictures[i])
            if self._drawn:
                found["prompt"][i] = _nearest_ground(pictures[i]) == question.scene.facts.background
        return found

    def _cut(self, questions, pictures) -> tuple[np.ndarray, np.ndarray]:
        if not self._drawn:
            return np.arange(len(pictures)), pictures
        slots = [(i, q, s) for i, q in enumerate(questions) for s in range(len(q.names))]
        at = [(i, *scenes.spot(q.scene, s)) for i, q, s in slots]
        owner = np.array([i for i, _, _ in at])
        centre = np.array([c for _, c, _ in at])
        half = crops.MARGIN * np.array([h for _, _, h in at])
        return owner, np.clip(crops.crop(pictures[owner], centre, half, self._world.size), -1, 1)


_COPIES = Metric(
    title="Copied", higher_is_better=False, note="the whole picture is a reference, pixel by pixel"
)
Judge = TotemJudging | EncoderJudging


def make_judge(config: CompareConfig, world: World) -> Judge:
    """The judge of a world; UvitError if its weights are missing."""
    if config.world == "totems":
        return TotemJudging(world)
    return EncoderJudging(config, world)


def judged(judge: Judge, questions: Sequence[Question], answers: np.ndarray) -> Scores:
    """Scores (Q · samples,) of answers (Q, samples, H, W, C), those of a question in a row."""
    repeated = [q for q in questions for _ in range(answers.shape[1])]
    return judge(repeated, answers.reshape(-1, *answers.shape[2:]))


def score(judge: Judge, scores: Scores) -> np.ndarray:
    """What tuning maximises: the mean of identity and prompt-following, (Q,)."""
    picked = [name for name, about in judge.metrics.items() if about.role != "other"]
    if not picked:
        raise UvitError("the judge has no metric of identity")
    by_role: dict[str, list[np.ndarray]] = {}
    for name in picked:
        by_role.setdefault(judge.metrics[name].role, []).append(scores[name])
    return np.mean([np.mean(values, axis=0) for values in by_role.values()], axis=0)


def _places(question: Question) -> list[tuple[tuple[float, float], float, int]]:
    """Every place of a scene: middle, scale, and the slot that is to stand there, or -1."""
    scene = question.scene
    found = [(*scenes.spot(scene, slot), slot) for slot in range(len(scene.subjects))]
    if len(scene.subjects) == 1:
        (centre, scale, _), mine = found[0], scene.facts.places[0]
        for place in scenes.PLACES[1]:
            if place != mine:
                x = scenes.abscissa(1, place)
                found.append(((x, centre[1]), scale, -1))
        # A place overlaps its neighbours; only one that the subject leaves free can be empty.
        found = [p for p in found if p[2] >= 0 or abs(p[0][0] - centre[0]) > scale]
    return found


def _ground(question: Question) -> int:
    return backgrounds.NAMES.index(question.scene.facts.background)


def _copied(question: Question, picture: np.ndarray) -> float:
    references = np.stack([r for views in question.references for r in views])
    return float(consistency.pixel_copies(references, picture[None])[0])


def _nearest_ground(picture: np.ndarray) -> str:
    """The background that fits the upper rim and the sides best, at its best phase."""
    from uvit_jax.data.sources.worlds.camera import grid

    side = len(picture)
    rim = np.zeros((side, side), bool)
    depth = max(1, side // 10)
    rim[:depth] = rim[:, :depth] = rim[:, -depth:] = True
    x, y = grid(side)
    errors = {
        name: min(
            np.abs(backgrounds.paint(name, x, y, phase)[rim] * 2 - 1 - picture[rim]).mean()
            for phase in np.arange(8) / 8
        )
        for name in backgrounds.NAMES
    }
    return min(errors, key=errors.get)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
