"""Scores images of evaluation cases: identity, prompt, and mix-ups between subjects.

scorer = make_scorer(config, world)
scorer.metrics                 # MetricInfo by name
scorer(cases, images)          # scores (Q,) by name, NaN where a metric does not apply
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.subjects import crops, multi_subject, totem_judge
from experiments.subjects.evaluation_cases import EvaluationCase, ProceduralWorld, StudyWorld
from experiments.subjects.results import MetricInfo
from experiments.subjects.study_config import (
    AMPLITUDE_SETTING,
    TOTEM_VIDEOS,
    TURNING_SETTING,
    CompareConfig,
)
from experiments.subjects.video_world import VideoWorld
from uvit_jax.data.sources.worlds import backgrounds, factors, random_scenes, scenes
from uvit_jax.data.sources.worlds.scene_camera import AMPLITUDES
from uvit_jax.encoders.image_encoder import Encoder, encoder
from uvit_jax.evaluation import video_metrics
from uvit_jax.evaluation.video_metrics import rank_correlation
from uvit_jax.evaluation.video_motion import dynamic_degree

Scores = dict[str, np.ndarray]


class TotemScorer:
    """Scores by both judges of totems, on crops around the positions given by the caption.

    Args:
      which: of the judges. encoders: further judges, of identity alone, by name.
      poses: whether to score facing and size, which renders the alternatives of every case.
    """

    def __init__(
        self,
        world: ProceduralWorld,
        which: Sequence[int] = (0, 1),
        encoders: Mapping[str, Encoder] | None = None,
        *,
        poses: bool = True,
    ):
        self._score_poses = poses
        self._world, self._encoders = world, dict(encoders or {})
        self._poses: dict[tuple, dict[tuple[str, str], np.ndarray]] = {}
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
        self.metrics = _totem_metrics(self._judges, len(gallery))
        self.metrics |= {
            f"identity_{name}": _of_encoder(encode, "cropped where the caption puts it")
            for name, encode in self._encoders.items()
        }

    def __call__(self, cases: Sequence[EvaluationCase], images: np.ndarray) -> Scores:
        """Scores of images (Q, H, W, 3), one per case."""
        scores: Scores = {name: np.full(len(cases), np.nan) for name in self.metrics}
        places = [_places(q) for q in cases]
        owner = np.repeat(np.arange(len(cases)), [len(p) for p in places])
        cut = crops.crop(
            images[owner],
            np.array([centre for p in places for centre, _, _ in p]),
            np.array([crops.MARGIN * scale for p in places for _, scale, _ in p]),
            totem_judge.SIZE,
        )
        resized = images
        if images.shape[1] != totem_judge.SIZE:
            middle = np.zeros((len(images), 2))
            resized = crops.crop(images, middle, np.ones(len(images)), totem_judge.SIZE)
        for key, judge in self._judges.items():
            seen, ground = judge(cut), judge(resized)["background"].argmax(axis=1)
            for i, case in enumerate(cases):
                rows = np.flatnonzero(owner == i)
                slots = np.array([slot for _, _, slot in places[i]])
                here = {name: value[rows] for name, value in seen.items()}
                taken = here["present"].argmax(axis=1) == 1
                right_ground = ground[i] == _ground(case)
                scores[f"prompt_{key}"][i] = (right_ground + (taken == (slots >= 0)).mean()) / 2
                own = {name: value[slots >= 0] for name, value in here.items()}
                self._identity(scores, key, i, case, slots[slots >= 0], own)
                if key == "a" and len(case.names) > 1:
                    self._several(scores, i, case, slots, own, taken[slots >= 0])
        for name, encode in self._encoders.items():
            self._encoded(scores[f"identity_{name}"], encode, cases, images)
        for i, case in enumerate(cases):
            scores["copy_rate"][i] = _is_copy(case, images[i])
            scores["facing"][i], scores["size"][i] = self._pose(case, images[i])
        return scores

    def emblem(self, cases: Sequence[EvaluationCase], images: np.ndarray, side: str) -> bool:
        """Whether judge A reads the emblem of one subject's `front` or `back` correctly from
        several images (n, H, W, 3) together."""
        spots = [case.spot(0) for case in cases]
        centre = np.array([centre for centre, _ in spots])
        half = crops.MARGIN * np.array([scale for _, scale in spots])
        seen = self._judges["a"](crops.crop(images, centre, half, totem_judge.SIZE))
        identity = cases[0].scene.subjects[0].identity
        return bool(seen[side].mean(axis=0).argmax() == identity[factors.NAMES.index(side)])

    def _encoded(self, scores: np.ndarray, encode: Encoder, cases, images) -> None:
        """The cosine of each subject's crop to its portraits, by an encoder."""
        slots = [(i, s) for i, q in enumerate(cases) for s in range(len(q.names))]
        spots = [cases[i].spot(s) for i, s in slots]
        owner = np.array([i for i, _ in slots])
        half = crops.MARGIN * np.array([scale for _, scale in spots])
        centre = np.array([centre for centre, _ in spots])
        cut = crops.crop(images[owner], centre, half, self._world.size)
        seen = _unit(encode.of_images(list(np.clip(cut, -1, 1))))
        cosines: dict[int, list[float]] = {}
        for (i, s), feature in zip(slots, seen, strict=True):
            key = (encode.version, cases[i].names[s])
            if key not in self._own:
                self._own[key] = _unit(encode.of_images(list(cases[i].real[s]))).mean(axis=0)
            cosines.setdefault(i, []).append(float(feature @ self._own[key]))
        for i, values in cosines.items():
            scores[i] = np.mean(values)

    def _pose(self, case: EvaluationCase, image: np.ndarray) -> tuple[float, float]:
        """Whether subjects face as the caption says, their mean, and whether a lone one has its
        size: as the most similar of ground-truth images with either facing and size, by pixels."""
        plain = case.scene.facts.background == backgrounds.PLAIN
        if plain or not self._score_poses:  # portraits have one place and size
            return np.nan, np.nan
        key = (case.setting, case.prompt, *case.names)
        if key not in self._poses:
            self._poses[key] = self._rendered(case)
        facings, sizes = [], []
        for slot in range(len(case.names)):
            cut = _small(image[None], *scenes.spot(case.scene, slot))
            errors = {
                (facing, size): ((images - cut) ** 2).mean(axis=(1, 2, 3)).min()
                for (s, facing, size), images in self._poses[key].items()
                if s == slot
            }
            facing, size = min(errors, key=errors.get)
            facings.append(facing == case.scene.facts.facings[slot])
            if size:
                sizes.append(size == case.scene.facts.sizes[slot])
        return float(np.mean(facings)), float(np.mean(sizes)) if sizes else np.nan

    def _rendered(self, case: EvaluationCase) -> dict[tuple, np.ndarray]:
        """Small crops of ground-truth images, by (slot, facing, size)."""
        found, facts = {}, case.scene.facts
        for slot in range(len(case.names)):
            centre, scale = scenes.spot(case.scene, slot)
            for facing in self._world.world.facings:
                for size in scenes.SIZES if facts.sizes[slot] else ("",):
                    changes = {
                        key: tuple(new if s == slot else old for s, old in enumerate(values))
                        for key, values, new in (
                            ("facings", facts.facings, facing),
                            ("sizes", facts.sizes, size),
                        )
                    }
                    other = dataclasses.replace(facts, **changes)
                    scene = dataclasses.replace(case.scene, facts=other)
                    images = [
                        scenes.render(random_scenes.redraw(scene, k), self._world.size).image
                        for k in range(_REDRAWS)
                    ]
                    found[slot, facing, size] = _small(np.stack(images), centre, scale)
        return found

    def _identity(self, scores: Scores, key: str, i: int, case: EvaluationCase, slots, own) -> None:
        """Compares the crop of each subject with its own portraits and those of all identities."""
        values = []
        known = self._known[key].mean(axis=1)  # mean cosine to a set is the cosine to its mean
        identities = np.array(self._gallery)
        for row, slot in enumerate(slots):
            subject = case.scene.subjects[slot]
            real = self._real(key, case, slot).mean(axis=0)
            cosine = float(own["embedding"][row] @ real)
            others = (identities != np.array(subject.identity)).any(axis=1)
            rivals = known[others] @ own["embedding"][row]
            measured = case.scene.judged()[slot] | ~case.scene.judged()[slot].any()
            right = [
                own[name][row].argmax() == subject.identity[factors.NAMES.index(name)]
                for name in totem_judge.MEASURED
                if measured[factors.NAMES.index(name)]
            ]
            share = (rivals < cosine).mean()
            values.append((cosine, rivals.max() < cosine, share, np.mean(right or [np.nan])))
        for name, value in zip(
            ("identity", "top1", "verify", "factors"), np.mean(values, axis=0), strict=True
        ):
            scores[f"{name}_{key}"][i] = value

    def _several(self, scores: Scores, i: int, case: EvaluationCase, slots, own, taken) -> None:
        """Mix-ups between the subjects of one image."""
        real = [self._real("a", case, slot) for slot in range(len(case.names))]
        place = slots[slots >= 0]
        boxes_KD, where = own["embedding"][taken], place[taken]
        similarity = np.stack([boxes_KD @ one.mean(axis=0) for one in real], axis=1)
        similarity = similarity.reshape(-1, len(real))
        mixed = multi_subject.identities(similarity, where)
        if len(where):
            rows = np.arange(len(where))
            others = np.where(where[:, None] == np.arange(len(real)), -np.inf, similarity)
            margin = similarity[rows, where] - others.max(axis=1)
            scores["margin"][i] = margin.mean()
        scores["swapped"][i], scores["missing"][i] = mixed["swapped"], mixed["missing"]
        names = totem_judge.MEASURED
        predicted = {name: own[name][taken].argmax(axis=1) for name in names}
        labels = {
            name: np.array([s.identity[factors.NAMES.index(name)] for s in case.scene.subjects])
            for name in names
        }
        if len(where):
            scores["leaked"][i] = multi_subject.leak_rate(predicted, labels, where)
        scores["detect_and_compare"][i] = multi_subject.detect_and_compare(boxes_KD, real, where)

    def _real(self, key: str, case: EvaluationCase, slot: int) -> np.ndarray:
        """Embeddings (R, D) of a subject's ground-truth images, cached across cases."""
        known = (key, case.names[slot])
        if known not in self._own:
            self._own[known] = self._portraits(self._judges[key], case.real[slot])
        return self._own[known]

    def _portraits(self, judge: totem_judge.TotemJudge, images: np.ndarray) -> np.ndarray:
        """Embeddings of references, (R, D)."""
        centre, half = self._place
        count = len(images)
        cut = crops.crop(
            images, np.tile(centre, (count, 1)), np.full(count, half), totem_judge.SIZE
        )
        return judge(cut)["embedding"]


def _totem_metrics(
    judges: dict[str, totem_judge.TotemJudge], gallery_size: int
) -> dict[str, MetricInfo]:
    metrics: dict[str, MetricInfo] = {}
    for key, judge in judges.items():
        name, version = key.upper(), judge.name
        metrics |= {
            f"identity_{key}": MetricInfo(
                title=f"Identity ({name})",
                role="identity",
                encoder=version,
                note="cosine to four portraits of the subject, cropped where the caption puts "
                "it; mean over subjects",
            ),
            f"prompt_{key}": MetricInfo(
                title=f"Prompt ({name})",
                role="text",
                encoder=version,
                note="mean of background accuracy and the share of places that are taken or "
                "empty as in the caption",
            ),
            f"top1_{key}": MetricInfo(
                title=f"Top-1 ({name})",
                encoder=version,
                note=f"nearest of {gallery_size} test identities is the subject's own",
            ),
            f"verify_{key}": MetricInfo(
                title=f"Verification AUC ({name})",
                encoder=version,
                note="share of other test identities that are less alike",
            ),
            f"factors_{key}": MetricInfo(
                title=f"Factors ({name})",
                encoder=version,
                note=f"accuracy of {', '.join(totem_judge.MEASURED)}, where both the prompted "
                "pose and a reference show them",
            ),
        }
    metrics |= {
        "swapped": MetricInfo(
            title="Swapped", higher_is_better=False, note="of several subjects, judge A"
        ),
        "missing": MetricInfo(
            title="Missing", higher_is_better=False, note="of several subjects, judge A"
        ),
        "leaked": MetricInfo(
            title="Leaked",
            higher_is_better=False,
            note="factor values of another subject of the image, judge A",
        ),
        "margin": MetricInfo(
            title="Identity margin",
            note="cosine to the own subject over that to the most similar other one of the image, "
            "the confusion of identities (after ID-Conf of UMO); judge A",
        ),
        "facing": MetricInfo(
            title="Facing", note="as the caption says, by the most similar ground-truth image"
        ),
        "size": MetricInfo(
            title="Size", note="of a lone subject, small or large as the caption says; as facing"
        ),
        "detect_and_compare": MetricInfo(
            title="Detect and compare", note="MuDI's, 0 if a subject is missing; judge A"
        ),
        "copy_rate": _COPIES,
    }
    return metrics


class EncoderScorer:
    """Scores by image encoders, on crops of emoji scenes or on whole photographs."""

    def __init__(self, config: CompareConfig, world: StudyWorld):
        self._world, self._procedural = world, isinstance(world, ProceduralWorld)
        self._encoders = {name: encoder(name, config.weights.get(name)) for name in config.encoders}
        self.metrics: dict[str, MetricInfo] = {}
        crop = "cropped where the caption puts it" if self._procedural else "whole images"
        for name, encode in self._encoders.items():
            self.metrics |= {
                f"identity_{name}": _of_encoder(encode, crop),
                f"top1_{name}": MetricInfo(
                    title=f"Top-1 ({encode.title})",
                    encoder=encode.version,
                    note="nearest of all subjects of the setting is its own",
                ),
            }
        if self._procedural:
            self.metrics["prompt"] = MetricInfo(
                title="Background", role="text", note="nearest of all backgrounds, at the rim"
            )
        self.metrics["copy_rate"] = _COPIES

    def __call__(self, cases: Sequence[EvaluationCase], images: np.ndarray) -> Scores:
        """Scores of images (Q, H, W, 3), one per case."""
        scores: Scores = {name: np.full(len(cases), np.nan) for name in self.metrics}
        owner, cut = self._cut(cases, images)
        real_images = {n: r for q in cases for n, r in zip(q.names, q.real, strict=True)}
        names = list(real_images)
        for key, encode in self._encoders.items():
            seen = _unit(encode.of_images(list(cut)))
            real = np.stack(
                [_unit(encode.of_images(list(real_images[name]))).mean(axis=0) for name in names]
            )
            cosine = seen @ real.T
            for i, case in enumerate(cases):
                rows = np.flatnonzero(owner == i)
                own = np.array([names.index(name) for name in case.names])
                here = cosine[rows]
                scores[f"identity_{key}"][i] = here[np.arange(len(rows)), own].mean()
                scores[f"top1_{key}"][i] = (here.argmax(axis=1) == own).mean()
        for i, case in enumerate(cases):
            scores["copy_rate"][i] = _is_copy(case, images[i])
            if self._procedural:
                scores["prompt"][i] = _nearest_ground(images[i]) == case.scene.facts.background
        return scores

    def _cut(self, cases, images) -> tuple[np.ndarray, np.ndarray]:
        if not self._procedural:
            return np.arange(len(images)), images
        slots = [(i, q, s) for i, q in enumerate(cases) for s in range(len(q.names))]
        at = [(i, *q.spot(s)) for i, q, s in slots]
        owner = np.array([i for i, _, _ in at])
        centre = np.array([c for _, c, _ in at])
        half = crops.MARGIN * np.array([h for _, _, h in at])
        return owner, np.clip(crops.crop(images[owner], centre, half, self._world.size), -1, 1)


def _of_encoder(encode: Encoder, crop: str) -> MetricInfo:
    return MetricInfo(
        title=f"Identity ({encode.title})",
        role="identity",
        encoder=encode.version,
        note=f"cosine, all real × generated pairs, {crop}",
    )


_REDRAWS = 4
"""How many ground-truth images there are of each pose."""


def _small(images: np.ndarray, centre: tuple[float, float], scale: float) -> np.ndarray:
    """The surroundings of a subject at its largest, in 16×16 pixels."""
    count = len(images)
    half = np.full(count, crops.MARGIN * max(scale, 0.74))
    return crops.crop(images, np.tile(centre, (count, 1)), half, 16)


class VideoScorer:
    """Scores of videos: the mean over their frames of what the images' scorer finds, at the place
    that the camera's path implies, and how they move.

    Args:
      images: without facing and size, which the caption states of one moment.
    """

    def __init__(self, images: TotemScorer, world: VideoWorld):
        self._images, self._world = images, world
        unscored = ("facing", "size", "detect_and_compare")
        self.metrics = {n: m for n, m in images.metrics.items() if n not in unscored} | _MOTION
        self._true_dynamics: dict[tuple, float] = {}

    def __call__(self, cases: Sequence[EvaluationCase], videos: np.ndarray) -> Scores:
        """Scores of videos (Q, T, H, W, 3), one per case."""
        T = videos.shape[1]
        frames = [frame for case in cases for frame in self._world.frame_cases(case)]
        by_frame = self._images(frames, videos.reshape(-1, *videos.shape[2:]))
        by_frame = {name: value.reshape(-1, T) for name, value in by_frame.items()}
        scores = {name: _mean(by_frame[name]) for name in self.metrics if name not in _MOTION}
        third = max(1, T // 3)
        identity = by_frame["identity_a"]
        scores["drift"] = identity[:, -third:].mean(axis=1) - identity[:, :third].mean(axis=1)
        of_each = [self._motion(*each) for each in zip(cases, videos, strict=True)]
        scores |= {name: np.array([one[name] for one in of_each]) for name in of_each[0]}
        scores["moving_identity"] = scores["identity_a"] * np.minimum(scores["dynamics"], 1)
        moved = scores["dynamics"] * [self._dynamics(case) for case in cases]
        scores["amplitude"] = _amplitude_correlations(cases, moved)
        scores["both_sides"] = np.array(
            [self._both_sides(*each) for each in zip(cases, videos, strict=True)]
        )
        return scores

    def _both_sides(self, case: EvaluationCase, video: np.ndarray) -> float:
        """Whether a turning subject shows its front at first and its back in the end."""
        if case.setting != TURNING_SETTING:
            return math.nan
        frames, few = self._world.frame_cases(case), max(1, len(video) // 4)
        front = self._images.emblem(frames[:few], video[:few], "front")
        return float(front and self._images.emblem(frames[-few:], video[-few:], "back"))

    def _motion(self, case: EvaluationCase, video: np.ndarray) -> dict[str, float]:
        asked = case.motion.camera_path(2)[-1, 1:]
        error = video_metrics.camera_scores(video[None], asked[None])
        of_true = self._dynamics(case) or math.nan
        return {
            "camera": error["camera_accuracy"],
            **{name: error[name] for name in ("angle_error", "shift_error", "zoom_error")},
            "dynamics": dynamic_degree(video) / of_true,
        }

    def _dynamics(self, case: EvaluationCase) -> float:
        """Of the true video of a case."""
        key = (case.setting, case.prompt, case.seed, *case.names)
        if key not in self._true_dynamics:
            self._true_dynamics[key] = dynamic_degree(self._world.truth(case))
        return self._true_dynamics[key]


def _amplitude_correlations(cases: Sequence[EvaluationCase], moved: np.ndarray) -> np.ndarray:
    """For each case of the setting of amplitudes, Spearman's correlation of the amplitudes and the
    dynamics of the videos of its scene, so that pans are not compared with rolls."""
    correlations, by_scene = np.full(len(cases), np.nan), {}
    for i, case in enumerate(cases):
        if case.setting == AMPLITUDE_SETTING:
            by_scene.setdefault(id(case.scene), []).append(i)
    for rows in by_scene.values():
        amplitudes = [AMPLITUDES[cases[i].motion.amplitude] for i in rows]
        correlations[rows] = rank_correlation(moved[rows], amplitudes)
    return correlations


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN if all is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(known.any(axis=-1), total / np.maximum(known.sum(axis=-1), 1), np.nan)


_MOTION = {
    "drift": MetricInfo(
        title="Drift of identity",
        note="identity (judge A) in the last third of the frames less that in the first",
    ),
    "camera": MetricInfo(
        title="Camera",
        note="exactly the moves asked for, each in its direction, measured by aligning frames",
    ),
    "angle_error": MetricInfo(
        title="Angle error, degrees", higher_is_better=False, note="of the camera's roll"
    ),
    "shift_error": MetricInfo(
        title="Shift error", higher_is_better=False, note="of the camera, in half image sides"
    ),
    "zoom_error": MetricInfo(
        title="Zoom error", higher_is_better=False, note="of the camera, log of the factor"
    ),
    "dynamics": MetricInfo(
        title="Dynamic degree", note="relative to the true video; 0 for a still one"
    ),
    "moving_identity": MetricInfo(
        title="Moving identity",
        note="identity (judge A) times the relative dynamic degree up to 1: a still video has 0",
    ),
    "amplitude": MetricInfo(
        title="Amplitude",
        note="Spearman's correlation of the requested amplitude and the dynamic degree, within "
        "videos of one scene and its moves",
    ),
    "both_sides": MetricInfo(
        title="Both sides",
        note="judge A reads the emblem of the front in the first quarter of the frames, and "
        "that of the back in the last",
    ),
}

_COPIES = MetricInfo(
    title="Copied", higher_is_better=False, note="the whole image equals a reference, by pixels"
)
Scorer = TotemScorer | EncoderScorer | VideoScorer


def make_scorer(config: CompareConfig, world: StudyWorld) -> Scorer:
    """The scorer of a world; UvitError if its weights are missing."""
    encoders = {name: encoder(name, config.weights.get(name)) for name in config.encoders}
    if config.world == TOTEM_VIDEOS:
        return VideoScorer(TotemScorer(world, encoders=encoders, poses=False), world)
    if config.world == "totems":
        return TotemScorer(world, encoders=encoders)
    return EncoderScorer(config, world)


def score_images(scorer: Scorer, cases: Sequence[EvaluationCase], images: np.ndarray) -> Scores:
    """Scores (Q · samples,) of images (Q, samples, H, W, C); those of a case are consecutive."""
    repeated = [case for case in cases for _ in range(images.shape[1])]
    return scorer(repeated, images.reshape(-1, *images.shape[2:]))


def tuning_objective(scorer: Scorer, scores: Scores) -> np.ndarray:
    """The objective of tuning: the mean of identity and prompt-following, (Q,); of videos, of the
    identity of what moves."""
    if isinstance(scorer, VideoScorer):
        prompt = (scores["prompt_a"] + scores["prompt_b"]) / 2
        return (scores["moving_identity"] + prompt) / 2
    by_role: dict[str, list[np.ndarray]] = {}
    for name, about in scorer.metrics.items():
        if about.role != "other":
            by_role.setdefault(about.role, []).append(scores[name])
    return np.mean([np.mean(values, axis=0) for values in by_role.values()], axis=0)


def gated_objective(
    scorer: Scorer, named: Scores, unnamed: Scores, least_effect: float
) -> np.ndarray:
    """The objective of tuning a fine-tuned method, (Q,): `tuning_objective` less what the effect of
    the subject's name on its identity lacks of the least that its gate asks for. Without the second
    term, an adapter is chosen that makes every name this subject.

    Args:
      named, unnamed: scores of the same cases with the subject's name and with an unused one.
    """
    identity = next(name for name, about in scorer.metrics.items() if about.role == "identity")
    effect = np.mean(named[identity]) - np.mean(unnamed[identity])
    return tuning_objective(scorer, named) - max(0.0, least_effect - float(effect))


def _places(case: EvaluationCase) -> list[tuple[tuple[float, float], float, int]]:
    """The places of a scene: centre, scale, and the slot of the subject there, or -1 if empty."""
    scene = case.scene
    places = [(*case.spot(slot), slot) for slot in range(len(scene.subjects))]
    if len(scene.subjects) == 1:
        (centre, scale, _), mine = places[0], scene.facts.places[0]
        for place in scenes.PLACES[1]:
            if place != mine:
                y = scenes.spot(scene, 0)[0][1]
                at = case.camera.to_image(scenes.abscissa(1, place), y)
                places.append((at, scale, -1))
        # Places overlap their neighbours; only one clear of the subject can be empty.
        places = [p for p in places if p[2] >= 0 or math.dist(p[0], centre) > scale]
    return places


def _ground(case: EvaluationCase) -> int:
    return (*backgrounds.NAMES, backgrounds.PLAIN).index(case.scene.facts.background)


def _is_copy(case: EvaluationCase, image: np.ndarray, tolerance: float = 0.1) -> bool:
    """Whether the RMS difference to a reference is at most `tolerance`, of pixels in [-1, 1]."""
    references = np.stack([r for views in case.references for r in views])
    squares = ((np.asarray(image, np.float32) - references) ** 2).mean(axis=(1, 2, 3))
    return bool(np.sqrt(squares.min()) <= tolerance)


def _nearest_ground(image: np.ndarray) -> str:
    """The background whose best phase fits the top and side borders best."""
    from uvit_jax.data.sources.worlds.scene_camera import grid

    side = len(image)
    rim = np.zeros((side, side), bool)
    depth = max(1, side // 10)
    rim[:depth] = rim[:, :depth] = rim[:, -depth:] = True
    x, y = grid(side)
    errors = {
        name: min(
            np.abs(backgrounds.paint(name, x, y, phase)[rim] * 2 - 1 - image[rim]).mean()
            for phase in np.arange(8) / 8
        )
        for name in backgrounds.NAMES
    }
    return min(errors, key=errors.get)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
