"""How unlike the cars it knows is a photo? A photo check meets what it was not trained on, and should say so.

Two measures, added: the distance to the nearest known photos of the class (Sun et al. 2022), which also meets kinds
that nobody has seen, and a linear verification of each class against everything else that is at hand (other classes,
other models, rejected photos: outlier exposure, Hendrycks et al. 2019), which tells models of the same shape apart.
LOG.md says what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from carspotter_check.rejection import careful_share

OTHER_MODEL = "other model"  # the kind of photos that show a car, but none of the classes
NEIGHBOURS = 3
REJECTS_NEEDED = 10  # fewer of a kind teach nothing that holds on the next photo
QUANTILES = np.linspace(0, 1, 201)
STRENGTH = 1e-2  # of the verification's weights, scikit-learn's C


@dataclass(frozen=True)
class Known:
    """Known photos in a model's feature space.

    `photos` float32 (N, D), unit vectors, `kinds` (N,): a class number as text, or the kind of what is no class.
    `weights` float32 (classes, D + 1): verification, the constant last. `scales` (classes, 4): mean and deviation of
    distance and verification on good photos. `good` (classes, Q): quantiles of the sum on good photos, ascending, of
    which the first is for the share 0, the last for 1. `passed` (classes,): the share that is not called unlike.
    """

    photos: np.ndarray
    kinds: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    good: np.ndarray
    shares: np.ndarray

    @classmethod
    def fit(
        cls,
        training: np.ndarray,
        labels: np.ndarray,
        validation: np.ndarray,
        validation_labels: np.ndarray,
        others: np.ndarray,
        kinds: np.ndarray,
    ) -> Known:
        """Fit on features (N, D) of training photos, of good photos that were not trained on, and of all `others`.

        `labels` are class numbers; `kinds` say what each of `others`, of which there may be none, shows. The threshold
        is a `careful_share`: fewer photos make the check more careful.
        """
        from sklearn.linear_model import LogisticRegression

        training = unit_rows(training)
        kinds = np.asarray(kinds, dtype=str)
        found, counts = np.unique(kinds, return_counts=True)
        kept = np.isin(kinds, found[counts >= min(REJECTS_NEEDED, counts.sum() or 1)])
        others, kinds = unit_rows(others).reshape(-1, training.shape[1])[kept], kinds[kept]
        photos = np.concatenate([training, others])
        all_kinds = np.r_[labels.astype(str), kinds]
        centre, scale = training.mean(axis=0), training.std(axis=0) + 1e-4
        classes, weights = np.unique(labels), []
        for number in classes:
            own = all_kinds == str(number)
            verification = LogisticRegression(C=STRENGTH, max_iter=300, class_weight="balanced")
            verification.fit((photos - centre) / scale, own)
            plain = verification.coef_[0] / scale
            weights.append(np.r_[plain, verification.intercept_[0] - plain @ centre])
        neutral = np.tile([0.0, 1.0, 0.0, 1.0], (len(classes), 1))
        unscaled = cls(photos, all_kinds, np.float32(weights), neutral, np.zeros(0), np.zeros(0))
        scales, good, shares = [], [], []
        for number in classes:
            rows = validation[validation_labels == number]
            if not len(rows):
                raise ValueError(f"no validation photo of class number {number}: nothing says how unlike is too unlike")
            distance, verified = unscaled._measure(rows, number)
            scales.append([distance.mean(), distance.std() or 1.0, verified.mean(), verified.std() or 1.0])
            score = replace(unscaled, scales=np.tile(scales[-1], (len(classes), 1)))._score(rows, number)
            good.append(np.quantile(score, QUANTILES))
            shares.append(careful_share(len(rows)))
        return replace(unscaled, scales=np.array(scales), good=np.array(good), shares=np.array(shares))

    def compare(self, features: np.ndarray, number: int) -> tuple[float, str | None]:
        """Say how unlike class `number` the features (1, D) of a photo are, and what else they resemble.

        Returns the share of good photos that are less unlike, 0 … 1, and the kind of the nearest photos that are not
        of that class, None where the class is still likelier or these are of another class.
        """
        distance, verified = self._measure(features, number)
        share = float(np.interp(self._add(distance, verified, number)[0], self.good[number], QUANTILES))
        if verified[0] <= 0:
            return share, None
        near = np.where(self._numbers == number, -2, similarity(unit_rows(features), self.photos)[0])
        nearest = np.argsort(-near)[: 2 * NEIGHBOURS - 1]
        names, counts = np.unique(self.kinds[nearest[near[nearest] > -2]], return_counts=True)
        kind = str(names[counts.argmax()])
        return share, None if kind in map(str, range(len(self.weights))) else kind

    def is_unlike(self, share: float, number: int) -> bool:
        """Say whether a photo that is more unlike class `number` than `share` of good photos is too unlike."""
        return share > self.shares[number]

    def save(self, path: Path) -> None:
        arrays = {"photos": self.photos.astype(np.float16), "kinds": self.kinds, "weights": self.weights}
        np.savez_compressed(path, **arrays, scales=self.scales, good=self.good, shares=self.shares)

    @classmethod
    def load(cls, path: Path, classes: int) -> Known:
        """Read what `save` wrote, for a model of `classes` classes; raises ValueError for anything else.

        Nothing in the file is ever executed.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                known = cls(
                    stored["photos"].astype(np.float32),
                    stored["kinds"],
                    *(stored[name] for name in ("weights", "scales", "good", "shares")),
                )
        except Exception as error:  # zip, zlib, numpy: each has its own
            raise ValueError(f"{path} cannot be read: {str(error)[:100]}; export the run again") from error
        count, width = known.photos.shape if known.photos.ndim == 2 else (0, 0)
        shapes = {"kinds": (count,), "weights": (classes, width + 1), "scales": (classes, 4), "shares": (classes,)}
        sound = count > 0 and known.good.ndim == 2 and len(known.good) == classes and known.kinds.dtype.kind == "U"
        numbers = (known.photos, known.weights, known.scales, known.good, known.shares)
        if not sound or any(getattr(known, name).shape != shape for name, shape in shapes.items()):
            raise ValueError(f"{path} does not fit the model's {classes} classes; export the run again")
        if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in numbers):
            raise ValueError(f"{path} holds what is no number; export the run again")
        return known

    @cached_property
    def _numbers(self) -> np.ndarray:
        """Return the class number of each photo, −1 where it is of none."""
        return np.array([int(kind) if kind.isdecimal() else -1 for kind in self.kinds])

    @cached_property
    def _of_class(self) -> list[np.ndarray]:
        return [self.photos[self._numbers == number] for number in range(len(self.weights))]

    def _score(self, features: np.ndarray, number: int) -> np.ndarray:
        return self._add(*self._measure(features, number), number)

    def _add(self, distance: np.ndarray, verified: np.ndarray, number: int) -> np.ndarray:
        mean, deviation, mean_verified, deviation_verified = self.scales[number]
        return (distance - mean) / deviation + (verified - mean_verified) / deviation_verified

    def _measure(self, features: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance to the nearest known photos of a class, and how far verification speaks against it."""
        rows = unit_rows(features)
        own = similarity(rows, self._of_class[number])
        nearest = own if own.shape[1] <= NEIGHBOURS else np.partition(own, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        against = -(rows @ self.weights[number, :-1] + self.weights[number, -1])
        return np.sqrt(np.maximum(2 - 2 * nearest, 0)).mean(axis=1), against


def measure_kinds(
    training: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    others: np.ndarray,
    kinds: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Measure how many photos of each kind are called unlike: {kind: {"photos", "seen", "unseen"}}, shares.

    Arguments as of `Known.fit`. "seen": half of a kind's photos are known, the other half is judged, and the other way
    round; "unseen": no photo of that kind is known. A photo is judged for the class that it is likest.
    """
    kinds, half = np.asarray(kinds, dtype=str), np.arange(len(kinds)) % 2

    def flagged(examples: np.ndarray, judged: np.ndarray) -> float:
        known = Known.fit(training, labels, validation, validation_labels, others[examples], kinds[examples])
        rows = others[judged]
        passed = [
            known._score(rows, n) <= np.interp(known.shares[n], QUANTILES, known.good[n]) for n in np.unique(labels)
        ]
        return float(1 - np.any(passed, axis=0).mean())

    found = {}
    for kind in np.unique(kinds):
        of_kind = kinds == kind
        sides = [of_kind & (half == side) for side in (0, 1)]
        seen = [flagged(half != side, judged) for side, judged in enumerate(sides) if judged.any()]
        unseen = flagged(~of_kind, of_kind)
        found[str(kind)] = {"photos": int(of_kind.sum()), "seen": float(np.mean(seen)), "unseen": unseen}
    return found


def similarity(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the scalar products of rows (N, D) and others (M, D): (N, M)."""
    # BLAS wakes all its threads for a single row, and they take the cores from a server's other photos: half its speed.
    return np.einsum("nd,md->nm", rows, others) if len(rows) == 1 else rows @ others.T


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows (N, D) to length 1, float32: how strongly features fire says more about light than about the car."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
