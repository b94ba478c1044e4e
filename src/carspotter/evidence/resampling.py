"""Other training and validation sets from the same photos: smaller, resampled, split again; never sealed photos.

A sample is a list of hashes for `training_subset`, a new split a table as `read_splits` returns it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from carspotter.evidence.intervals import Interval


def group_folds(splits: pd.DataFrame, folds: int = 5, seed: int = 0, by_group: bool = True) -> list[pd.DataFrame]:
    """Return k splits of the training and validation photos, each photo once in validation, no group on both sides.

    Without `by_group` the photos are dealt out one by one: the leaky split. Raises ValueError where a class has fewer
    groups than folds. Method: scikit-learn's `StratifiedGroupKFold` (before 1.9 shuffling spoilt its balance).
    """
    photos = splits[splits["split"].isin(["train", "validation"])].sort_values("sha256", ignore_index=True)
    for label, members in photos.groupby("label"):
        found = members["group"].nunique() if by_group else len(members)
        if found < folds:
            raise ValueError(f"class {label} has {found} groups, too few for {folds} folds; use {found} folds or fewer")
    if by_group:
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = parts.split(photos, photos["label"], photos["group"])
    else:
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(photos, photos["label"])
    return [photos.assign(split=np.where(photos.index.isin(held), "validation", "train")) for _, held in parts]


def resplits(splits: pd.DataFrame, count: int = 10, by_group: bool = True) -> list[pd.DataFrame]:
    """Return `count` independent splits as large as the present one; those with and without `by_group` make pairs."""
    open_rows = splits["split"].isin(["train", "validation"])
    folds = max(2, round(open_rows.sum() / (splits["split"] == "validation").sum()))
    return [group_folds(splits, folds, seed, by_group)[0] for seed in range(count)]


def over_splits(values: Sequence[float], validation_share: float, level: float = 0.95) -> Interval:
    """Return the mean of one figure per split (an accuracy, or a paired difference), with its interval over splits.

    `validation_share`: of the photos that are split, 0 … 1. Method: corrected resampled t test for overlapping training
    photos, Nadeau and Bengio 2003, variance × (1/J + validation / training).
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 3 or not 0 < validation_share < 1:
        raise ValueError(f"need figures of three or more splits and a share in 0 … 1, found {values.shape}")
    spread = float(values.std(ddof=1))
    half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * spread
    half *= np.sqrt(1 / len(values) + validation_share / (1 - validation_share))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, 0, 0, level, len(values), spread)


def log_spaced_sizes(largest: int, count: int = 5) -> list[int]:
    """Return `count` training sizes, each twice the one before, up to `largest`; at least 8 photos each."""
    sizes = (round(largest / 2**step) for step in reversed(range(count)))
    return sorted({max(8, size) for size in sizes if size <= largest})


def nested_samples(splits: pd.DataFrame, sizes: Sequence[int], seed: int = 0) -> dict[int, list[str]]:
    """Draw nested training samples of whole groups, each with about the classes' shares: size asked for -> hashes.

    Each takes the number of whole groups nearest to its size. The order depends on group names and seed alone, and
    every smaller sample is part of every larger one. A group of several labels counts with its most frequent.
    """
    training = _training(splits)
    wrong = [size for size in sizes if not 1 <= size <= len(training)]
    if wrong:
        raise ValueError(f"sizes {wrong} cannot be drawn; there are {len(training)} training photos")
    groups = training.groupby("group")["label"].agg(
        label=lambda labels: labels.value_counts().sort_index().idxmax(), size="size"
    )
    groups["draw"] = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in groups.index]
    groups = groups.sort_values("draw")
    # how much of its class has been handed out when a group's turn is half over; sorting by it interleaves the classes
    of_class = groups.groupby("label")["size"]
    groups["turn"] = (of_class.cumsum() - groups["size"] / 2) / of_class.transform("sum")
    groups = groups.sort_values(["turn", "draw"])
    total = groups["size"].cumsum().to_numpy()
    rank = training["group"].map(pd.Series(range(len(groups)), groups.index)).to_numpy()
    return {size: training["sha256"][rank <= np.abs(total - size).argmin()].tolist() for size in sizes}


def bootstrap_sample(splits: pd.DataFrame, seed: int = 0, share: float = 1.0) -> list[str]:
    """Draw a training set as another collection might have given it: whole groups of each class, with replacement.

    `share`: how many groups are drawn, of those that there are (0 … 1). Photos of a group drawn twice are named twice.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; draw more than none of the groups, and at most all (1.0)")
    rng = np.random.default_rng(seed)
    hashes = []
    for _, members in _training(splits).groupby("label", sort=True):
        groups = [group["sha256"].tolist() for _, group in members.groupby("group", sort=True)]
        for number in rng.integers(len(groups), size=max(1, round(share * len(groups)))):
            hashes += groups[number]
    return hashes


def _training(splits: pd.DataFrame) -> pd.DataFrame:
    return splits[splits["split"] == "train"].sort_values("sha256")
