"""What recorded runs predicted on the same validation photos, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.comparison import Comparison, compare
from carspotter.evidence.intervals import Interval, accuracy_interval
from carspotter.models.store import Run
from carspotter.paths import Study
from carspotter.photos.splitting import read_splits

LAST_EPOCHS = 5


@dataclass(frozen=True)
class Results:
    """What runs predicted on the same validation photos: arrays whose last axis is photos, ordered by hash."""

    labels: np.ndarray  # text (N,)
    groups: np.ndarray  # text (N,)
    predicted: np.ndarray  # text (runs, epochs, N)

    @property
    def correct(self) -> np.ndarray:
        """Return the share of the epochs in which each photo was classified correctly: float (runs, N)."""
        return (self.predicted == self.labels).mean(axis=1)

    def interval(self) -> Interval:
        """Return the accuracy of all runs together, over groups and seeds."""
        return accuracy_interval(self.correct, self.groups)


def results_of(study: Study, runs: Sequence[Run], epochs: str | int = LAST_EPOCHS) -> Results:
    """Return the validation predictions of runs side by side: of their last `epochs`, or of the "best" one."""
    tables = [correct_by_photo(study, run) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        if table["sha256"].tolist() != tables[0]["sha256"].tolist():
            raise ValueError(f"{run.id} and {runs[0].id} were validated on different photos; compare runs of one split")
    if epochs == "best":
        predicted = [table["predicted"].to_numpy(str)[np.newaxis] for table in tables]
    else:
        predicted = []
        for run in runs:
            by_hash = run.validation["sha256"].argsort(kind="stable")
            classes = run.epoch_probabilities[-int(epochs) :].argmax(axis=2)[:, by_hash]
            predicted.append(np.array(run.class_names)[classes])
    return Results(tables[0]["label"].to_numpy(str), tables[0]["group"].to_numpy(str), np.stack(predicted))


def compare_runs(
    study: Study, a: Sequence[Run], b: Sequence[Run], comparisons: int = 1, names: Sequence[str] = ()
) -> Comparison:
    """Compare two recipes by the seeds that both have recorded, on the mean of the last five epochs.

    `comparisons`: m, how many this is one of. Raises ValueError where no seed is shared.
    """
    a, b = ({int(run.row["seed"]): run for run in side} for side in (a, b))
    seeds = sorted(set(a) & set(b))
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(a)} and {sorted(b)}; train both with the same seeds")
    found = results_of(study, [side[seed] for side in (a, b) for seed in seeds])
    first, second = found.predicted[: len(seeds)], found.predicted[len(seeds) :]
    names = tuple(names) or tuple(side[seeds[0]].row["experiment"] for side in (a, b))
    return compare(found.labels, first, second, found.groups, comparisons=comparisons, names=names)


def correct_by_photo(study: Study, run: Run) -> pd.DataFrame:
    """Return one row per validation photo of a run, by hash: sha256, group, label, predicted, correct (best epoch)."""
    table = run.validation.merge(read_splits(study)[["sha256", "group"]], on="sha256", validate="one_to_one")
    # Photos that a later split excluded have no group there: each stands alone.
    table["group"] = table["group"].where(table["group"] != "", table["sha256"])
    predicted = table[run.class_names].idxmax(axis=1)
    table = table[["sha256", "group", "label"]].assign(predicted=predicted, correct=predicted == table["label"])
    return table.sort_values("sha256", ignore_index=True)


def beside_recorded(accuracies: Sequence[float], runs: Sequence[Run]) -> str:
    """Say how a training in a notebook compares with recorded runs of its experiment, over its last three epochs.

    `accuracies`: on validation, after each epoch from the first.
    """
    last, here = list(range(1, len(accuracies) + 1))[-3:], np.mean(accuracies[-3:])
    then = np.mean([run.history.set_index("epoch")["validation_accuracy"][last].mean() for run in runs])
    of = f"{runs[0].framework}, {runs[0].image_size} px, {runs[0].row['train_photos']:,} photos, seeds: {len(runs)}"
    return f"validation, epochs {last[0]} to {last[-1]}: {here:.3f} here, {then:.3f} in recorded runs ({of})"


def training_accuracy(run: Run) -> float:
    """Return the accuracy on the training photos as they are, in evaluation mode, after the last epoch."""
    return float(run.row["last_inference_train_accuracy"])
