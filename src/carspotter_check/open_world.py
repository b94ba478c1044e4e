"""How unlike the cars it knows is a photo? A photo check meets what it was not trained on, and should say so.

One figure for each class: how likely a photo shows it, by kernel ridge regression on all photos at hand (the mean of a
Gaussian process; Rasmussen & Williams 2006, chapter 2). It is 1 near photos of the class, 0 near those of all else
(other classes, other models, rejected photos: outlier exposure, Hendrycks et al. 2019), and falls to 0 far from all of
them, where kinds lie that nobody has seen. LOG.md says what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from carspotter_check.rejection import careful_share

OTHER_MODEL = "other model"  # the kind of photos that show a car, but none of the classes
NEIGHBOURS = 5  # photos whose kind is looked at, to say what a photo resembles
QUANTILES = np.linspace(0, 1, 201)
STEEPNESS = 0.5  # the kernel is exp(-STEEPNESS) at the median squared distance of two cars of a class
NOISE = 0.1  # of the targets, where all sides have as many photos; of a side with few photos less


@dataclass(frozen=True)
class Known:
    """Known photos in a model's feature space.

    `photos` float32 (N, D), unit vectors, `kinds` (N,): a class number as text, or the kind of what is no class.
    `weights` float32 (N, classes + 1): what each photo adds to the likeness to each class, and last to all else, times
    exp(-`steepness` × squared distance). `good` (classes, Q): quantiles of the likeness to their class of good photos,
    negated, so ascending: the first is for the share 0, the last for 1. `shares` (classes,): the share that is not
    called unlike.
    """

    photos: np.ndarray
    kinds: np.ndarray
    weights: np.ndarray
    steepness: float
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

        `labels` are class numbers from 0 on; `kinds` say what each of `others`, of which there may be none, shows. The
        threshold is a `careful_share`: fewer photos make the check more careful.
        """
        training, classes = unit_rows(training), len(np.unique(labels))
        others = unit_rows(others).reshape(-1, training.shape[1])
        photos, all_kinds = np.concatenate([training, others]), np.r_[labels.astype(str), np.asarray(kinds, dtype=str)]
        sides = np.r_[labels, np.full(len(others), classes)]
        squared = 2 - 2.0 * similarity(photos, photos)
        of_one_class = squared[: len(training), : len(training)][labels[:, np.newaxis] == labels]
        steepness = STEEPNESS / max(float(np.median(of_one_class)), 1e-6)
        counts = np.bincount(sides)
        noise = NOISE * len(counts) * counts[sides] / len(sides)
        weights = np.linalg.solve(np.exp(-steepness * squared) + np.diag(noise), np.eye(classes + 1)[sides])
        known, good, shares = cls(photos, all_kinds, np.float32(weights), steepness, np.zeros(0), np.zeros(0)), [], []
        for number in range(classes):
            rows = validation[validation_labels == number]
            if not len(rows):
                raise ValueError(f"no validation photo of class number {number}: nothing says how unlike is too unlike")
            good.append(np.quantile(-known._likeness(unit_rows(rows))[:, number], QUANTILES))
            shares.append(careful_share(len(rows)))
        return replace(known, good=np.array(good), shares=np.array(shares))

    def compare(self, features: np.ndarray, number: int) -> tuple[float, str | None]:
        """Say how unlike class `number` the features (1, D) of a photo are, and what else they resemble.

        Returns the share of good photos that are less unlike, 0 … 1, and the kind of the nearest photos of no class,
        None where some class is still likelier.
        """
        rows = unit_rows(features)
        likeness = self._likeness(rows)[0]
        share = float(np.interp(-likeness[number], self.good[number], QUANTILES))
        if likeness[-1] <= max(*likeness[:-1], 0):
            return share, None
        nearest = np.argsort(-similarity(rows, self.photos)[0, self._of_no_class])[:NEIGHBOURS]
        names, counts = np.unique(self.kinds[self._of_no_class][nearest], return_counts=True)
        return share, str(names[counts.argmax()])

    def is_unlike(self, share: float, number: int) -> bool:
        """Say whether a photo that is more unlike class `number` than `share` of good photos is too unlike."""
        return share > self.shares[number]

    def save(self, path: Path) -> None:
        arrays = {"photos": self.photos.astype(np.float16), "kinds": self.kinds, "weights": self.weights}
        np.savez_compressed(path, **arrays, steepness=self.steepness, good=self.good, shares=self.shares)

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
                    stored["weights"],
                    float(stored["steepness"]),
                    *(stored[name] for name in ("good", "shares")),
                )
        except Exception as error:  # zip, zlib, numpy: each has its own
            raise ValueError(f"{path} cannot be read: {str(error)[:100]}; export the run again") from error
        count = len(known.photos) if known.photos.ndim == 2 else 0
        shapes = {"kinds": (count,), "weights": (count, classes + 1), "shares": (classes,)}
        sound = known.kinds.dtype.kind == "U" and set(map(str, range(classes))) <= set(known.kinds.flat)
        sound = sound and known.good.ndim == 2 and len(known.good) == classes
        if not sound or any(getattr(known, name).shape != shape for name, shape in shapes.items()):
            raise ValueError(f"{path} does not fit the model's {classes} classes; export the run again")
        arrays = (known.photos, known.weights, known.good, known.shares)
        finite = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays)
        if not (finite and 0 < known.steepness < np.inf):
            raise ValueError(f"{path} holds a number that no export writes; export the run again")
        return known

    @cached_property
    def _of_no_class(self) -> np.ndarray:
        """Return the places of the photos that are of no class."""
        return np.flatnonzero(~np.isin(self.kinds, [str(number) for number in range(len(self.shares))]))

    def _likeness(self, rows: np.ndarray) -> np.ndarray:
        """Return how like each class, and last all else, unit vectors (N, D) are: (N, classes + 1)."""
        kernel = np.exp(-self.steepness * (2 - 2 * similarity(rows, self.photos)))
        return similarity(kernel, self.weights.T)


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
        rows = unit_rows(others[judged])
        limits = [np.interp(share, QUANTILES, good) for share, good in zip(known.shares, known.good, strict=True)]
        return float((-known._likeness(rows)[:, :-1] > limits).all(axis=1).mean())

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
