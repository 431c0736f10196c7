"""How well generated captions agree with known ones, and with images. NumPy, in float64."""

import collections
from collections.abc import Sequence

import numpy as np

from uvit_jax.data.tokenizer import normalise
from uvit_jax.errors import UvitError


def caption_scores(generated: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """The agreement of generated captions with the known ones of the same images.

    Returns:
      `exact`, the share that is equal but for case and spacing; `words`, the mean share of words
      that agree in number and kind, in any order, of the longer caption's.

    Raises:
      UvitError: without captions, or if there are not as many of both.
    """
    if len(generated) != len(known) or not len(known):
        raise UvitError(f"{len(generated)} generated captions cannot be scored by {len(known)}")
    exact, words = [], []
    for one, other in zip(generated, known, strict=True):
        exact.append(normalise(one) == normalise(other))
        a, b = _words(one), _words(other)
        longer = max(a.total(), b.total())
        words.append((a & b).total() / longer if longer else 1.0)
    return {"exact": float(np.mean(exact)), "words": float(np.mean(words))}


class CaptionMatcher:
    """Tells which caption an image belongs to: a linear map from features of images to the words of
    captions, fitted to real pairs by ridge regression.

    Words count by their inverse document frequency, so that what most captions have counts little.

    Args:
      features: of real images by a frozen encoder, float (n, D).
      captions: theirs, n.
      ridge: the penalty, relative to the mean of the features' variances.

    Raises:
      UvitError: with fewer than two pairs, or other numbers of features and captions.
    """

    def __init__(self, features: np.ndarray, captions: Sequence[str], *, ridge: float = 1.0):
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) != len(captions) or len(captions) < 2:
            raise UvitError(
                f"features {features.shape} of {len(captions)} captions cannot be matched; pass "
                "two or more pairs"
            )
        counts = collections.Counter(word for text in captions for word in set(_words(text)))
        self._index = {word: i for i, word in enumerate(sorted(counts))}
        share_V = np.array([counts[word] for word in self._index]) / len(captions)
        self._weight_V = -np.log(share_V)
        self._mean_V = share_V * self._weight_V
        self._mean_D = features.mean(axis=0)
        self._std_D = features.std(axis=0) + 1e-6 * features.std() + 1e-12
        x_ND, y_NV = self._standardised(features), self._vectors(captions)
        # (XᵀX + n r)⁻¹ Xᵀ = Xᵀ (XXᵀ + n r)⁻¹: the smaller of the two systems.
        kernel_NN = x_ND @ x_ND.T / x_ND.shape[1]
        kernel_NN[np.diag_indices_from(kernel_NN)] += ridge
        self._map_DV = x_ND.T @ np.linalg.solve(kernel_NN, y_NV) / x_ND.shape[1]

    def scores(self, features: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The cosine between the words that each image predicts and those of each caption, (n, m),
        in [-1, 1]."""
        predicted_NV = self._standardised(np.asarray(features, np.float64)) @ self._map_DV
        return _unit(predicted_NV) @ _unit(self._vectors(captions)).T

    def precision(
        self,
        features: np.ndarray,
        captions: Sequence[str],
        others: Sequence[str],
        *,
        candidates: int = 100,
        seed: int = 0,
    ) -> float:
        """The share of images whose own caption has the highest score among `candidates`, the
        others of which are drawn from `others`: R-precision (Xu et al. 2018, AttnGAN). By chance it
        is 1 / candidates.

        Args:
          features: of n images. captions: theirs, n.
          others: captions of which those that differ from the image's own are candidates, each at
            most once; candidates - 1 of them must.

        Raises:
          UvitError: if there are too few others.
        """
        pool = sorted({normalise(text) for text in others})
        if len(pool) < candidates:
            raise UvitError(f"{len(pool)} captions are too few for candidates={candidates}")
        rng, first = np.random.default_rng(seed), []
        every_NM = self.scores(features, pool)
        for i, text in enumerate(captions):
            own = self.scores(features[i : i + 1], [text])[0, 0]
            rows = [j for j in rng.permutation(len(pool)) if pool[j] != normalise(text)]
            first.append(own > every_NM[i, rows[: candidates - 1]].max())
        return float(np.mean(first))

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean_D) / self._std_D

    def _vectors(self, captions: Sequence[str]) -> np.ndarray:
        """Which words captions have, weighted and relative to the mean of the real pairs', (m, V);
        words that no real caption has are left out."""
        has = np.zeros((len(captions), len(self._index)))
        for row, text in zip(has, captions, strict=True):
            row[[self._index[word] for word in _words(text) if word in self._index]] = 1
        return has * self._weight_V - self._mean_V


def _words(text: str) -> collections.Counter[str]:
    return collections.Counter(normalise(text).replace(",", " ").split())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
