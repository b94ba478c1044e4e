"""Intervals and verdicts: what an accuracy or a difference between two accuracies is worth.

Photos of one listing resemble each other, so they are not independent: everything here resamples *groups* of photos.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES = 9_999
SEEDS_FOR_A_CLAIM = 3


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval."""

    estimate: float
    low: float
    high: float
    photos: int
    groups: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def accuracy_interval(correct, groups, level: float = 0.95, seed: int = 0) -> Interval:
    """Give the accuracy on a set of photos with its group-bootstrap interval.

    `correct`: bool (N,), whether each photo was named rightly; `groups`: (N,) any hashable values, photos of one group
    are resampled together. When no group differs from the others the bootstrap has nothing to resample, and the exact
    binomial interval over groups takes its place. Raises ValueError on empty or unequal input.

    Method: BCa bootstrap, Efron 1987, as in `scipy.stats.bootstrap`; exact interval: Clopper and Pearson 1934.
    """
    interval = _ratio_interval(np.asarray(correct, float), groups, level, seed)
    return replace(interval, low=max(0.0, interval.low))


def paired_difference(correct_a, correct_b, groups, level: float = 0.95, seed: int = 0) -> Interval:
    """Give accuracy of B minus accuracy of A on the same photos, with its paired group-bootstrap interval.

    `correct_a`, `correct_b`: bool (N,), or float (N,) means over seeds, for the same photos in the same order; `groups`,
    errors and method as in `accuracy_interval`.
    """
    correct_a, correct_b = np.asarray(correct_a, float), np.asarray(correct_b, float)
    if correct_a.shape != correct_b.shape:
        raise ValueError(f"a paired comparison needs the same photos: {correct_a.shape} against {correct_b.shape}")
    return _ratio_interval(correct_b - correct_a, groups, level, seed)


def verdict(difference: Interval, seeds: int) -> str:
    """Say in fixed words whether a difference is shown: "shown", or "not shown" and what would be needed.

    `seeds`: how many seeds each side was trained with; fewer than three show nothing, whatever the interval says.
    The number of photos needed assumes that the difference stays and the interval shrinks with the square root of them.
    """
    shown = difference.low > 0 or difference.high < 0
    if shown and seeds >= SEEDS_FOR_A_CLAIM:
        return "shown"
    if shown:
        return f"not shown (the interval leaves out zero, but a claim needs {SEEDS_FOR_A_CLAIM} seeds; this is {seeds})"
    if difference.estimate == 0:
        return "not shown (no difference seen)"
    half_width = (difference.high - difference.low) / 2
    needed = difference.photos * (half_width / abs(difference.estimate)) ** 2
    more = max(1, int(np.ceil(needed - difference.photos)))
    return f"not shown (about {more:,} more photos needed)"


def _ratio_interval(values: np.ndarray, groups, level: float, seed: int) -> Interval:
    """The mean of `values` with a BCa interval over groups: a ratio of two sums, both resampled by group."""
    groups = np.asarray(groups)
    if values.ndim != 1 or len(values) == 0 or len(groups) != len(values):
        raise ValueError(
            f"need one value and one group per photo, found {values.shape} values and {len(groups)} groups"
        )
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index).astype(float)
    count, estimate = len(sums), float(values.mean())
    if count < 2 or np.ptp(sums / sizes) == 0:
        low, high = _exact_interval(estimate, count, level)
        return Interval(estimate, low, high, len(values), count, level)
    result = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1_000,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(result.low), float(result.high), len(values), count, level)


def _exact_interval(estimate: float, count: int, level: float) -> tuple[float, float]:
    """The binomial interval when all groups agree, each group counted as one photo; differences are signed."""
    interval = stats.binomtest(round(abs(estimate) * count), count).proportion_ci(level, method="exact")
    low, high = float(interval.low), float(interval.high)
    if estimate == 0:
        return -high, high
    return (-high, -low) if estimate < 0 else (low, high)
