"""How unlike the cars it knows is a photo? A photo check meets what it was not trained on, and should say so.

Three measures, added: the distance to the nearest known photos of the class, which also meets kinds that nobody has
seen (Sun et al. 2022); that of the known cars as a share of the distance to the nearest of all else that is at hand
(other models, rejected photos: outlier exposure, Hendrycks et al. 2019); and a linear verdict on cars of the classes
against all else. The last two tell models of the same shape apart. LOG.md says what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from carspotter_check.bundle import is_name, require
from carspotter_check.rejection import careful_share

OTHER_MODEL = "other model"  # the kind of photos that show a car, but none of the classes
NEIGHBOURS = 3
QUANTILES = np.linspace(0, 1, 201)
WEIGHTS = (0.5, 1.0, 1.0)  # of distance, nearness and verdict, each in deviations of good photos
RIDGE = 3e-4  # of the verdict, as a share of the features' variance


@dataclass(frozen=True)
class Known:
    """Known photos in a model's feature space.

    `photos` float32 (N, D), unit vectors, `kinds` (N,): a class number as text, or the kind of what is no class.
    `weights` float32 (D + 1,): of the verdict against the classes, the constant last. `scales` (classes, 3, 2): mean
    and deviation of the measures on good photos. `good` (classes, Q): quantiles of the sum on good photos, ascending,
    of which the first is for the share 0, the last for 1. `shares` (classes,): the share that is not called unlike.
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
        training = unit_rows(training)
        others = unit_rows(others).reshape(-1, training.shape[1])
        photos, all_kinds = np.concatenate([training, others]), np.r_[labels.astype(str), np.asarray(kinds, dtype=str)]
        weights = fit_verdict(training, others)
        classes = np.unique(labels)
        scales = np.tile([0.0, 1.0], (len(classes), 3, 1))
        known, good, shares = cls(photos, all_kinds, weights, scales, np.zeros(0), np.zeros(0)), [], []
        for number in classes:
            rows = validation[validation_labels == number]
            if not len(rows):
                raise ValueError(f"no validation photo of class number {number}: nothing says how unlike is too unlike")
            measures, _ = known._measure(rows, number)
            deviations = measures.std(axis=1)
            scales[number] = np.column_stack([measures.mean(axis=1), np.where(deviations > 0, deviations, 1.0)])
            good.append(np.quantile(known._add(measures, number), QUANTILES))
            shares.append(careful_share(len(rows)))
        return replace(known, good=np.array(good), shares=np.array(shares))

    def compare(self, features: np.ndarray, number: int) -> tuple[float, str | None]:
        """Say how unlike class `number` the features (1, D) of a photo are, and what else they resemble.

        Returns the share of good photos that are less unlike, 0 … 1, and the kind of the nearest photos of no class,
        None where the classes are still likelier.
        """
        measures, near = self._measure(features, number)
        share = float(np.interp(self._add(measures, number)[0], self.good[number], QUANTILES))
        if measures[2, 0] <= 0:
            return share, None
        nearest = np.argsort(np.where(self._numbers < 0, -near[0], 2))[: 2 * NEIGHBOURS - 1]
        names, counts = np.unique(self.kinds[nearest[self._numbers[nearest] < 0]], return_counts=True)
        return share, str(names[counts.argmax()])

    def is_unlike(self, share: float, number: int) -> bool:
        """Say whether a photo that is more unlike class `number` than `share` of good photos is too unlike."""
        return share > self.shares[number]

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **vars(replace(self, photos=self.photos.astype(np.float16))))

    @classmethod
    def load(cls, path: Path, classes: int) -> Known:
        """Read what `save` wrote, for a model of `classes` classes; raises ValueError for anything else.

        Nothing in the file is ever executed.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                known = cls(*(stored[field.name] for field in fields(cls)))
        except Exception as error:  # zip, zlib, numpy: each has its own
            raise ValueError(f"{path} cannot be read: {str(error)[:100]}") from error
        count, width = known.photos.shape if known.photos.ndim == 2 else (0, 0)
        shapes = {"kinds": (count,), "weights": (width + 1,), "scales": (classes, 3, 2), "shares": (classes,)}
        names = set(known.kinds.flat) if known.kinds.dtype.kind == "U" else set()
        sound = set(map(str, range(classes))) <= names and all(map(is_name, names))
        sound = sound and known.good.ndim == 2 and len(known.good) == classes
        sound = sound and all(getattr(known, name).shape == shape for name, shape in shapes.items())
        require(sound, f"{path} does not fit the model's {classes} classes")
        numbers = (known.photos, known.weights, known.scales, known.good, known.shares)
        finite = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in numbers)
        require(finite, f"{path} holds what is no number")
        known = replace(known, photos=known.photos.astype(np.float32))
        lengths = np.linalg.norm(known.photos, axis=1)
        possible = np.abs(lengths - 1).max() < 0.1 and np.abs(known.weights).max() < 1e6
        possible = possible and known.scales[:, :, 1].min() > 0 and np.diff(known.good).min() >= 0
        possible = possible and known.shares.min() >= 0 and known.shares.max() <= 1
        require(possible, f"{path} holds numbers that no export writes")
        return known

    @cached_property
    def _numbers(self) -> np.ndarray:
        """Return the class number of each photo, −1 where it is of none."""
        names = [str(number) for number in range(len(self.scales))]
        return np.array([names.index(kind) if kind in names else -1 for kind in self.kinds])

    def _add(self, measures: np.ndarray, number: int) -> np.ndarray:
        mean, deviation = self.scales[number].T[:, :, np.newaxis]
        return WEIGHTS @ ((measures - mean) / deviation)

    def _measure(self, features: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how far from class `number`, how near to what is no class, and the verdict against classes: (3, N).

        And how similar each row of `features` is to the known photos: (N, photos).
        """
        rows = unit_rows(features)
        # For a single row BLAS wakes all threads, which take the cores from a server's other photos: half its speed.
        near = np.einsum("nd,md->nm", rows, self.photos) if len(rows) == 1 else rows @ self.photos.T

        def distance(chosen: np.ndarray) -> np.ndarray:
            of = near[:, chosen]
            nearest = of if of.shape[1] <= NEIGHBOURS else np.partition(of, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
            return np.sqrt(np.maximum(2 - 2 * nearest, 1e-6)).mean(axis=1)

        own, none = distance(self._numbers == number), self._numbers < 0
        nearness = distance(~none) / distance(none) if none.any() else np.zeros(len(rows))
        return np.stack([own, nearness, rows @ self.weights[:-1] + self.weights[-1]]), near


def fit_verdict(training: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return weights float32 (D + 1,), the constant last: −1 for training photos (N, D), 1 for all else (M, D).

    Ridge regression in which both sides weigh the same, on features scaled by their deviation among training photos.
    """
    from sklearn.linear_model import Ridge  # a server needs its results alone

    width, counts = training.shape[1], [len(training), len(others)]
    if not len(others):
        return np.zeros(width + 1, np.float32)
    scale = training.std(axis=0) + 1e-4
    rows, targets = np.concatenate([training, others]) / scale, np.repeat([-1.0, 1.0], counts)
    ridge = Ridge(RIDGE * width, solver="cholesky")
    ridge.fit(rows.astype(np.float64), targets, np.repeat([0.5 / count for count in counts], counts))
    return np.float32(np.r_[ridge.coef_ / scale, ridge.intercept_])


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
        limits = {n: np.interp(known.shares[n], QUANTILES, known.good[n]) for n in np.unique(labels)}
        passed = [known._add(known._measure(rows, n)[0], n) <= limit for n, limit in limits.items()]
        return float(1 - np.any(passed, axis=0).mean())

    found = {}
    for kind in np.unique(kinds):
        of_kind = kinds == kind
        sides = [of_kind & (half == side) for side in (0, 1)]
        seen = [flagged(half != side, judged) for side, judged in enumerate(sides) if judged.any()]
        unseen = flagged(~of_kind, of_kind)
        found[str(kind)] = {"photos": int(of_kind.sum()), "seen": float(np.mean(seen)), "unseen": unseen}
    return found


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows (N, D) to length 1, float32: how strongly features fire says more about light than about the car."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
