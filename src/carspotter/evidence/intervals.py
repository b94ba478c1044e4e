"""Intervals of an accuracy, and of a difference between two accuracies on the same photos.

Photos of one listing are not independent, so *groups* of photos are counted. Pass one row of results for a claim about
a run, one row per seed for a claim about the recipe: its interval then covers seeds as well as photos.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

# What is assumed of photos of one group until enough groups with a mistake have shown it, and how many groups that
# assumption counts for. Without it a study with one mistake has a narrower interval than a study without any.
ASSUMED_CORRELATION, ASSUMED_GROUPS = 1 / 3, 4


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval.

    `seed_spread`: standard deviation between seeds, None when there is one. `seed_share`: the part, 0 … 1, of the
    squared half-width that comes from the seeds; more photos shrink only the rest.
    """

    estimate: float
    low: float
    high: float
    photos: int
    groups: int
    level: float = 0.95
    seeds: int = 1
    seed_spread: float | None = None
    seed_share: float = 0.0

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def in_points(self) -> str:
        """Return a difference in points, as in "+2.0 [-1.0, +5.0]"."""
        return f"{100 * self.estimate:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def clopper_pearson(hits: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a share, `hits` of `trials`; effective numbers need not be whole.

    Its upper end at `level` 1 − 2δ is the one-sided bound at 1 − δ. Method: Clopper and Pearson 1934.
    """
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, hits, trials - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


def accuracy_interval(correct, groups, level: float = 0.95) -> Interval:
    """Return the accuracy on a set of photos with its interval over groups of photos, and over seeds.

    `correct`: bool (N,) for a run, or (seeds, N) for a recipe; floats 0 … 1 where it is a mean over epochs. `groups`:
    (N,). Raises ValueError on unequal input, missing values, and integers, which are taken for class numbers.

    Method: Korn and Graubard 1998, the exact interval at the effective number of photos, N / design effect. The design
    effect is drawn towards that of a correlation of 1/3 within groups, the more the fewer groups have mistakes.
    """
    values = as_shares(correct, "correct")
    parts = _variances(values, groups)
    estimate = float(values.mean())
    binomial = estimate * (1 - estimate) / parts.photos
    seen = (parts.of_photos / binomial if binomial > 0 else 0.0) * parts.informative
    effect = max(1.0, (seen + ASSUMED_GROUPS * parts.assumed_effect) / (parts.informative + ASSUMED_GROUPS))
    effective, of_seeds = parts.photos / effect, parts.of_seeds
    if binomial > 0:
        variance = binomial * effect + of_seeds
        freedom = variance**2 / ((binomial * effect) ** 2 / max(1, parts.count - 1) + parts.seed_term)
        narrowing = stats.norm.ppf(0.5 + level / 2) / stats.t.ppf(0.5 + level / 2, max(1.0, freedom))
        effective = estimate * (1 - estimate) / variance * narrowing**2
        parts = replace(parts, of_photos=binomial * effect)
    low, high = clopper_pearson(estimate * effective, effective, level)
    return parts.interval(estimate, low, high, level)


def paired_difference(correct_a, correct_b, groups, level: float = 0.95) -> tuple[Interval, float]:
    """Return accuracy of B minus accuracy of A on the same photos with its interval, and p for "no difference".

    Arguments as in `accuracy_interval`; row s of A is paired with row s of B. p is below 1 − `level` just where the
    interval excludes zero. Groups that all differ alike are as certain as a sign test.

    Method: linearised variance over crossed groups and seeds (Cameron, Gelbach and Miller 2011), Student t with degrees
    of freedom after Satterthwaite 1946, and two groups more than there are that differ (after Bonett and Price 2012).
    """
    a, b = as_shares(correct_a, "correct_a"), as_shares(correct_b, "correct_b")
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same photos and as many seeds: {a.shape} against {b.shape}")
    values = b - a
    parts = _variances(values, groups)
    estimate, alike = float(values.mean()), np.isclose(parts.of_photos, 0, atol=1e-12)
    parts = replace(parts, of_photos=parts.of_photos + 2 * parts.assumed_effect / parts.photos**2)
    variance = parts.of_photos + parts.of_seeds
    freedom = max(1.0, variance**2 / (parts.of_photos**2 / max(1, parts.count - 1) + parts.seed_term))
    half = stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance)
    low, high = max(-1.0, estimate - half), min(1.0, estimate + half)
    p = 2 * float(stats.t.sf(abs(estimate) / np.sqrt(variance), freedom))
    if estimate and alike:
        share = clopper_pearson(parts.count, parts.count, level)[0]
        near = abs(estimate) * (2 * share - 1)
        low, high = (min(low, near), high) if estimate > 0 else (low, max(high, -near))
        p = max(p, 2 * 0.5**parts.count)
    return parts.interval(estimate, low, high, level), min(1.0, p)


def as_shares(correct, name: str) -> np.ndarray:
    """Return results as floats (seeds, N). Raises ValueError for class numbers, missing values and wrong shapes."""
    values = np.asarray(correct)
    if values.dtype.kind not in "bf":
        raise ValueError(f"{name} holds {values.dtype} values; give booleans: predicted == labels")
    values = np.atleast_2d(values.astype(float))
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name} has shape {np.shape(correct)}; give one value per photo, or (seeds, photos)")
    if np.isnan(values).any():
        raise ValueError(f"{name} has {np.isnan(values).sum()} missing values; every photo needs a prediction")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"{name} holds values outside 0 … 1; give booleans: predicted == labels")
    return values


def group_means(values: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means over photos (rows,), how each group moves them (rows, groups), and group sizes (groups,).

    `values`: float (rows, N); `groups`: (N,). A group's influence is what it adds to the mean; the sum of squares is
    the variance over groups, but for the factor groups / (groups − 1). Method: linearised ratio, Cochran 1977, ch. 6.
    """
    index = group_index(groups)
    if values.ndim != 2 or values.size == 0 or values.shape[1] != len(index):
        raise ValueError(
            f"need one value and one group per photo, found {values.shape} values and {index.shape} groups"
        )
    sizes = np.bincount(index).astype(float)
    sums = np.stack([np.bincount(index, row) for row in values])
    means = values.mean(axis=1)
    return means, (sums - means[:, None] * sizes) / len(index), sizes


def group_index(groups) -> np.ndarray:
    """Return the number of each photo's group, int (N,), in the order of names. Raises ValueError for missing ones."""
    groups = np.asarray(groups)
    if missing := int(pd.isna(groups).sum()):
        raise ValueError(f"{missing} photos have no group; give every photo one, or one of its own if nothing is known")
    return np.unique(groups.astype(str) if groups.dtype == object else groups, return_inverse=True)[1].ravel()


@dataclass(frozen=True)
class _Variances:
    """The variance of a mean over crossed groups and seeds, by where it comes from."""

    of_photos: float
    of_seeds: float
    seed_term: float  # what the seeds put into Satterthwaite's denominator
    spread: float | None
    seeds: int
    count: int
    photos: int
    assumed_effect: float  # the design effect of the assumed correlation
    informative: int  # groups with a mistake, or those with a hit where these are fewer

    def interval(self, estimate: float, low: float, high: float, level: float) -> Interval:
        total = self.of_photos + self.of_seeds
        share = self.of_seeds / total if total > 0 else 0.0
        ends = float(low), float(high)
        return Interval(estimate, *ends, self.photos, self.count, level, self.seeds, self.spread, share)


def _variances(values: np.ndarray, groups) -> _Variances:
    """Take the variance of the mean of `values` (seeds, N) apart into that of photos and that of seeds."""
    means, influences, sizes = group_means(values, groups)
    seeds, count = len(values), len(sizes)
    correction = count / max(1, count - 1)
    influence = influences.mean(axis=0)
    of_groups = np.bincount(group_index(groups), values.mean(axis=0)) / sizes
    of_seeds = counted = 0.0
    if seeds > 1:
        counted = float(means.var(ddof=1)) / seeds
        interaction = ((influences - influence) ** 2).sum() * correction / (seeds - 1) / seeds
        of_seeds = max(0.0, counted - interaction)  # the means' variance has that of the photos in it
    return _Variances(
        of_photos=float((influence**2).sum() * correction),
        of_seeds=float(of_seeds),
        seed_term=counted**2 / max(1, seeds - 1),
        spread=float(means.std(ddof=1)) if seeds > 1 else None,
        seeds=seeds,
        count=count,
        photos=values.shape[1],
        assumed_effect=1 + ASSUMED_CORRELATION * ((sizes**2).sum() / sizes.sum() - 1),
        informative=int(min((of_groups < 1).sum(), (of_groups > 0).sum())),
    )
