"""Choosing on validation without fooling oneself: one-standard-error rule, optimism of best epochs, grouped folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from carspotter.evidence.comparison import group_means


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the best validation accuracy, and how much of that accuracy is due to having been chosen."""

    epoch: int
    accuracy: float
    optimism: float

    @property
    def corrected(self) -> float:
        return self.accuracy - self.optimism


def one_standard_error_rule(
    correct: Mapping[str, np.ndarray], groups, costs: Mapping[str, float]
) -> tuple[str, pd.DataFrame]:
    """Choose the cheapest model whose validation accuracy lies within one standard error of the best one's.

    `correct`: model -> bool (N,), or (seeds, N), on the same validation photos; `groups`: (N,); `costs`: model -> any
    cost (parameters, training seconds). Gives the name and a table, best first: model, accuracy, standard_error (over
    groups), cost, within (one standard error of the best). Raises ValueError where models and costs do not match.

    Method: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3.
    """
    if not correct or set(correct) != set(costs):
        raise ValueError(f"need a cost for each model, found models {sorted(correct)} and costs {sorted(costs)}")
    rows = []
    for model, values in correct.items():
        values = np.atleast_2d(np.asarray(values, float)).mean(axis=0, keepdims=True)
        means, pulls, sizes = group_means(values, groups)
        error = float(np.sqrt((pulls**2).sum() * len(sizes) / max(1, len(sizes) - 1)))
        rows.append({"model": model, "accuracy": means[0], "standard_error": error, "cost": costs[model]})
    # between equals the cheaper comes first, so that an expensive one cannot set the standard
    table = pd.DataFrame(rows).sort_values(["accuracy", "cost"], ascending=[False, True], kind="stable")
    table = table.reset_index(drop=True)
    table["within"] = table["accuracy"] >= table["accuracy"][0] - table["standard_error"][0]
    cheapest = table[table["within"]].sort_values("cost", kind="stable").iloc[0]
    return str(cheapest["model"]), table


def best_epoch_optimism(correct, groups, resamples: int = 1_000, seed: int = 0) -> BestEpoch:
    """Estimate how much too good the best epoch's validation accuracy is, for having been chosen on these photos.

    `correct`: bool (epochs, N), results on the same validation photos; `groups`: (N,). In each resample of
    groups the best epoch is chosen anew; the optimism is how much better it looks there than on the photos as they are.
    Epochs count from 1, the first of equals is chosen.

    Method: bootstrap estimate of optimism, Efron 1983, "Estimating the error rate of a prediction rule".
    """
    correct = np.asarray(correct, float)
    means, pulls, sizes = group_means(correct, groups)
    count, photos = len(sizes), correct.shape[1]
    sums = pulls * photos + means[:, None] * sizes
    rng = np.random.default_rng(seed)
    optimism = 0.0
    for _ in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        resampled = (sums @ times) / (sizes @ times)
        chosen = int(resampled.argmax())
        optimism += (resampled[chosen] - means[chosen]) / resamples
    best = int(means.argmax())
    return BestEpoch(best + 1, float(means[best]), float(max(0.0, optimism)))


def best_epoch_luck(history: pd.DataFrame, window: int = 5) -> float:
    """Give the most that choosing the best epoch can have gained, from a history alone.

    `history`: table with validation_accuracy by epoch. It is the best accuracy less the median of the `window` epochs
    around it: the whole of the epoch's lead over its neighbours counts as luck. For runs that kept no predictions of
    every epoch; `best_epoch_optimism` knows better.
    """
    accuracy = history["validation_accuracy"].to_numpy(float)
    around = history["validation_accuracy"].rolling(window, center=True, min_periods=1).median().to_numpy()
    best = int(accuracy.argmax())
    return float(max(0.0, accuracy[best] - around[best]))


def group_folds(labels, groups, folds: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Give k folds for a set too small to split: a list of (training, validation) positions, int64.

    `labels`, `groups`: (N,). No group is in both parts of a fold, every photo is in one validation part, classes are
    spread as evenly as whole groups allow. Raises ValueError where a class has fewer groups than there are folds.

    Method: scikit-learn's `StratifiedGroupKFold` (1.9 or newer: before, shuffling spoilt its balance).
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    for label in np.unique(labels):
        found = len(np.unique(groups[labels == label]))
        if found < folds:
            raise ValueError(f"class {label} has {found} groups, too few for {folds} folds; use {found} folds or fewer")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels, groups))
