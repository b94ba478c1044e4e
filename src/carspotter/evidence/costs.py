"""What an accuracy costs, and which recipes are worth their cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from carspotter.evidence.results import results_of
from carspotter.evidence.selection import has_checkpoint
from carspotter.models.store import Run
from carspotter.paths import Study


def cost_table(study: Study, recipes: Mapping[str, Sequence[Run]], images: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """Return one row per recipe: accuracy with its interval over photos and seeds, and what it costs.

    `recipes`: name -> its runs, one per seed; `images`: image size -> uint8 (N, S, S, 3), sizes without any are not
    measured. Columns: recipe, seeds, accuracy, low, high, seed_spread, training_seconds (mean over
    seeds), parameters, inference_ms (per photo, NaN where a checkpoint is missing), front (on training_seconds).
    """
    rows = []
    for name, runs in recipes.items():
        interval = results_of(study, runs).interval()
        rows.append(
            {
                "recipe": name,
                "seeds": interval.seeds,
                "accuracy": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "seed_spread": interval.seed_spread,
                "training_seconds": float(np.mean([run.row["seconds"] for run in runs])),
                "parameters": int(runs[0].row["parameters"]),
                "inference_ms": inference_ms(runs[0], images.get(int(runs[0].row["image_size"]))),
            }
        )
    table = pd.DataFrame(rows)
    table["front"] = pareto_front(table["training_seconds"], table["accuracy"])
    return table


def pareto_front(costs, accuracies) -> np.ndarray:
    """Return which recipes no other one beats, bool (N,). One beats another that costs no less and is no better,
    unless both are equal.
    """
    costs, accuracies = np.asarray(costs, float), np.asarray(accuracies, float)
    no_dearer, no_worse = costs[:, None] <= costs, accuracies[:, None] >= accuracies
    better = (costs[:, None] < costs) | (accuracies[:, None] > accuracies)
    return ~(no_dearer & no_worse & better).any(axis=0)


def inference_ms(run: Run, images: np.ndarray | None, repeats: int = 3) -> float:
    """Measure milliseconds per photo of a run on `images` of its own size: the best of `repeats` after a first one.

    NaN without images, or where the checkpoint, which is not in git, is missing.
    """
    if images is None or not has_checkpoint(run):
        return np.nan
    run.predict(images)  # the first builds and compiles
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run.predict(images)
        seconds.append(time.perf_counter() - started)
    return 1_000 * min(seconds) / len(images)
