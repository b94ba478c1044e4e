"""Intervals and verdicts: what an accuracy or a difference between two accuracies is worth.

Photos of one listing resemble each other, so they are not independent: intervals here resample *groups* of photos.
A run is one training; a recipe is what all its seeds have in common. Give one row of results for a claim about a run,
one row per seed for a claim about the recipe: its interval then holds the luck of the seeds as well as of the photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

RESAMPLES = 2_000  # gives the bootstrap's standard error to about 1.6 %
SEEDS_FOR_A_CLAIM = 3
SEEDS_FOR_EQUALITY = 5
SHOWN, NOT_SHOWN, EQUAL = "shown", "not shown", "equal within"


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


def accuracy_interval(correct, groups, level: float = 0.95, seed: int = 0) -> Interval:
    """Give the accuracy on a set of photos with its group-bootstrap interval.

    `correct`: bool (N,), whether each photo was named rightly, for a run; bool (seeds, N) for a recipe. `groups`: (N,)
    any hashable values, photos of one group are resampled together. When no group differs from the others the bootstrap
    has nothing to resample, and the exact binomial interval over groups takes its place. Raises ValueError on empty or
    unequal input.

    Method: bootstrap standard error over groups, Student t, on the logit scale (Efron and Tibshirani, "An Introduction
    to the Bootstrap", 1993, ch. 12; the scale: Korn and Graubard 1998). At 100 groups it covered better than BCa, see
    benchmarks/coverage.py. Exact interval: Clopper and Pearson 1934.
    """
    return _interval(np.asarray(correct, float), groups, level, seed, logit=True)


def paired_difference(correct_a, correct_b, groups, level: float = 0.95, seed: int = 0) -> Interval:
    """Give accuracy of B minus accuracy of A on the same photos, with its paired group-bootstrap interval.

    `correct_a`, `correct_b`: bool (N,), or float (N,) means over seeds, or (seeds, N), for the same photos in the same
    order; with seeds, row s of A is paired with row s of B. `groups`, errors and method as in `accuracy_interval`, but
    on the plain scale. Where the two differ in fewer than about ten groups the interval is too narrow.
    """
    correct_a, correct_b = np.asarray(correct_a, float), np.asarray(correct_b, float)
    if correct_a.shape != correct_b.shape:
        raise ValueError(f"a paired comparison needs the same photos: {correct_a.shape} against {correct_b.shape}")
    return _interval(correct_b - correct_a, groups, level, seed, logit=False)


def equivalence(
    correct_a, correct_b, groups, margin: float = 0.03, level: float = 0.95, seed: int = 0
) -> tuple[Interval, str]:
    """Test whether two recipes are equally accurate within ± `margin`: the interval used, and the verdict's words.

    Two one-sided tests at 1 − `level` each, which is the same as asking whether the two-sided interval at
    2 × `level` − 1 lies within the margin. Arguments as in `paired_difference`; equality needs five seeds.

    Method: Schuirmann 1987 ("A comparison of the two one-sided tests procedure …").
    """
    interval = paired_difference(correct_a, correct_b, groups, 2 * level - 1, seed)
    return interval, verdict(interval, equal_within=margin)


def verdict(difference: Interval, seeds: int | None = None, equal_within: float | None = None) -> str:
    """Say in fixed words what a difference is worth: "shown", "equal within d points", "not shown" and what lacks.

    `seeds`: how many seeds each side was trained with, by default those of the interval; fewer than three show nothing,
    whatever the interval says. With `equal_within` (.03 is three points) the question is equality instead, and needs
    five seeds. The number of photos needed assumes that the difference stays as seen and the photo's part of the
    interval shrinks with the square root of them; it gives an even chance, see `photos_needed` for a better one.
    """
    seeds = difference.seeds if seeds is None else seeds
    if equal_within is None:
        proven, needs, words = difference.low > 0 or difference.high < 0, SEEDS_FOR_A_CLAIM, SHOWN
        holds, claim, room = "leaves out zero", "a claim", abs(difference.estimate)
        nothing_to_show = "no difference seen"
    else:
        margin = f"{equal_within * 100:g} points"
        proven, needs, words = (
            max(-difference.low, difference.high) < equal_within,
            SEEDS_FOR_EQUALITY,
            f"{EQUAL} {margin}",
        )
        holds, claim, room = f"lies within ± {margin}", "equality", equal_within - abs(difference.estimate)
        nothing_to_show = f"the difference seen is {difference.estimate * 100:+.1f} points"
    if proven and seeds >= needs:
        return words
    if proven:
        return f"{NOT_SHOWN} (the interval {holds}, but {claim} needs {needs} seeds; this is {seeds})"
    if room <= 0:
        return f"{NOT_SHOWN} ({nothing_to_show})"
    needed = photos_needed(difference, room, power=0.5)
    if np.isinf(needed):
        return f"{NOT_SHOWN} (seeds spread too much for any number of photos; more than {seeds} seeds needed)"
    and_seeds = f", and {needs} seeds instead of {seeds}" if seeds < needs else ""
    return f"{NOT_SHOWN} (about {max(1, int(needed) - difference.photos):,} more photos needed{and_seeds})"


def photos_needed(measured: Interval, difference: float, seeds: int | None = None, power: float = 0.8) -> float:
    """Give how many photos in all would show a `difference` (.02 is two points), from an interval measured before.

    `seeds`: how many are planned, by default as many as measured. `power`: the chance that the interval then leaves out
    zero. Photos are assumed to come in groups as before. Gives inf when the seeds alone spread too much: plan more.
    """
    quantile = stats.norm.ppf(0.5 + measured.level / 2)
    reach = (measured.high - measured.low) / 2 * (quantile + stats.norm.ppf(power)) / quantile
    of_seeds = reach**2 * measured.seed_share * measured.seeds / (seeds or measured.seeds)
    room = difference**2 - of_seeds
    return float(np.ceil(measured.photos * reach**2 * (1 - measured.seed_share) / room)) if room > 0 else np.inf


def seeds_needed(measured: Interval, difference: float, power: float = 0.8) -> float:
    """Give how many seeds would show a `difference` on as many photos as measured; `power` as in `photos_needed`.

    Gives inf where the photos alone leave too wide an interval: plan more of them. Few seeds also know little about
    their own spread, so a claim needs three whatever this says.
    """
    quantile = stats.norm.ppf(0.5 + measured.level / 2)
    reach = (measured.high - measured.low) / 2 * (quantile + stats.norm.ppf(power)) / quantile
    room = difference**2 - reach**2 * (1 - measured.seed_share)
    needed = reach**2 * measured.seed_share * measured.seeds / room if room > 0 else np.inf
    return float(np.ceil(needed)) if np.isfinite(needed) else np.inf


def independent_photos_needed(difference: float, disagreement: float, power: float = 0.8, level: float = 0.95) -> int:
    """Give how many independent photos McNemar's test needs to show a `difference` between two models.

    `disagreement`: the share of photos that exactly one of the two names rightly, at least |difference|.

    Method: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design".
    """
    if not 0 < abs(difference) <= disagreement <= 1:
        raise ValueError(
            f"difference {difference}, disagreement {disagreement}: models disagree at least as often as they differ"
        )
    to_reject, to_succeed = stats.norm.ppf(0.5 + level / 2), stats.norm.ppf(power)
    root = to_reject * np.sqrt(disagreement) + to_succeed * np.sqrt(disagreement - difference**2)
    return int(np.ceil((root / difference) ** 2))


def independent_interval(correct, level: float = 0.95, method: str = "wilson") -> Interval:
    """Give an accuracy with its interval for *independent* photos (one photo a listing); others need groups.

    `correct`: bool (N,). `method`: "wilson" or "exact". Sources: Wilson 1927; Clopper and Pearson 1934.
    """
    correct = np.asarray(correct, bool)
    if correct.ndim != 1 or len(correct) == 0:
        raise ValueError(f"need one truth value per photo, found shape {correct.shape}")
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(level, method=method)
    return Interval(float(correct.mean()), float(interval.low), float(interval.high), len(correct), len(correct), level)


def mcnemar(correct_a, correct_b) -> float:
    """Give the exact two-sided p-value for "A and B are equally accurate" on *independent* photos.

    `correct_a`, `correct_b`: bool (N,). Only photos on which they disagree count. Method: McNemar 1947, exact form.
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if correct_a.shape != correct_b.shape:
        raise ValueError(f"a paired comparison needs the same photos: {correct_a.shape} against {correct_b.shape}")
    won, lost = int((correct_b & ~correct_a).sum()), int((correct_a & ~correct_b).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def group_means(values: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give mean over photos (rows,), each group's pull on it, float (rows, groups), and group sizes (groups,).

    `values`: float (rows, N). A group's pull is what its photos add to the mean; the pulls of a row sum to zero, and
    the sum of their squares is the variance of the mean over groups, but for the factor groups / (groups − 1).
    Raises ValueError on empty or unequal input. Method: linearised ratio, Cochran, "Sampling Techniques", 1977, ch. 6.
    """
    groups = np.asarray(groups)
    if values.ndim != 2 or values.size == 0 or values.shape[1] != len(groups):
        raise ValueError(
            f"need one value and one group per photo, found {values.shape} values and {len(groups)} groups"
        )
    _, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    sums = np.stack([np.bincount(index, row) for row in values])
    means = values.mean(axis=1)
    return means, (sums - means[:, None] * sizes) / len(groups), sizes


def _interval(values: np.ndarray, groups, level: float, seed: int, logit: bool) -> Interval:
    """The mean of `values`, (N,) or (seeds, N), with a t interval whose errors come from groups and from seeds.

    Seeds and groups are crossed. The variance between seeds' means holds the chance of the photos a second time, which
    is taken off (Cameron, Gelbach and Miller 2011); degrees of freedom after Satterthwaite 1946, as few seeds know
    little about their spread.
    """
    values = np.atleast_2d(values)
    means, pulls, sizes = group_means(values, groups)
    seeds, photos, count, estimate = len(values), values.shape[1], len(sizes), float(values.mean())
    pull = pulls.mean(axis=0)
    spread = float(means.std(ddof=1)) if seeds > 1 else None
    if count < 2 or np.allclose(pull, 0, atol=1e-12):
        low, high = _exact_interval(estimate, count, level)
        low = max(0.0, low) if logit else low
        if not logit and estimate:  # all groups differ alike: sure of the sign only as far as a sign test is
            share = stats.binomtest(count, count).proportion_ci(level, method="exact").low
            near = abs(estimate) * (2 * float(share) - 1)
            low, high = (near, high) if estimate > 0 else (low, -near)
        return Interval(estimate, low, high, photos, count, level, seeds, spread)

    resampled = _resampled_means(pull * photos + estimate * sizes, sizes, seed)
    slope = 1.0
    if logit:
        slope = 1 / (estimate * (1 - estimate))
        half_photo = 0.5 / photos  # keeps the logit finite where a resample holds no mistake
        resampled = special.logit((resampled + half_photo) / (1 + 2 * half_photo))
    of_photos = resampled.var() * count / (count - 1)
    if not logit:
        # Few groups with a difference know little of its spread: as if two more had one (after Bonett and Price 2012).
        differing = (np.bincount(np.unique(groups, return_inverse=True)[1], np.abs(values).sum(axis=0)) > 0).sum()
        of_photos *= 1 + 2 / differing
    of_seeds = counted = 0.0
    if seeds > 1:
        counted = slope**2 * spread**2 / seeds
        interaction = slope**2 * ((pulls - pull) ** 2).sum() * count / (count - 1) / (seeds - 1) / seeds
        of_seeds = max(0.0, counted - interaction)
    variance = of_photos + of_seeds
    freedom = variance**2 / (of_photos**2 / (count - 1) + counted**2 / max(1, seeds - 1))
    half = stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance)
    if logit:
        low, high = special.expit(special.logit(estimate) + np.array([-half, half]))
    else:
        low, high = max(-1.0, estimate - half), min(1.0, estimate + half)
    share = float(of_seeds / variance)
    return Interval(estimate, float(low), float(high), photos, count, level, seeds, spread, share)


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Means over photos of `RESAMPLES` draws of as many groups as there are, with replacement."""
    rng, count, block = np.random.default_rng(seed), len(sums), 500
    means = []
    for _ in range(RESAMPLES // block):  # in blocks, as draws × groups would not fit for many groups
        drawn = rng.integers(count, size=(block, count)) + count * np.arange(block)[:, None]
        times = np.bincount(drawn.ravel(), minlength=block * count).reshape(block, count).astype(float)
        means.append((times @ sums) / (times @ sizes))
    return np.concatenate(means)


def _exact_interval(estimate: float, count: int, level: float) -> tuple[float, float]:
    """The binomial interval when all groups agree, each group counted as one photo; differences are signed."""
    interval = stats.binomtest(round(abs(estimate) * count), count).proportion_ci(level, method="exact")
    low, high = float(interval.low), float(interval.high)
    if estimate == 0:
        return -high, high
    return (-high, -low) if estimate < 0 else (low, high)
