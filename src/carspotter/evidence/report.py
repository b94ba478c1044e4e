"""The tables of a study's recorded runs, as printed by `python -m carspotter report`; README shows that of recipes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.comparison import Interval, accuracy_interval, equivalence
from carspotter.evidence.selection import best_epoch_optimism
from carspotter.models.experiments import SERIES
from carspotter.models.runs import Run, load_run, read_runs
from carspotter.paths import Study
from carspotter.photos.splitting import read_splits

RECIPE = ["experiment", "framework", "epochs", "image_size", "dtype", "weights"]  # all that seeds have in common


@dataclass(frozen=True)
class Results:
    """What runs named on the same validation photos, best epochs: arrays whose columns are photos, ordered by hash."""

    labels: np.ndarray  # text (N,)
    groups: np.ndarray  # text (N,)
    predicted: np.ndarray  # text (runs, N)

    @property
    def correct(self) -> np.ndarray:
        """Bool (runs, N)."""
        return self.predicted == self.labels


def results_of(study: Study, runs: Sequence[Run]) -> Results:
    """Put the validation predictions of runs side by side; raises ValueError where their photos are not the same."""
    tables = [correct_by_photo(study, run).sort_values("sha256", ignore_index=True) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        if table["sha256"].tolist() != tables[0]["sha256"].tolist():
            raise ValueError(f"{run.id} and {runs[0].id} were validated on different photos; compare runs of one split")
    first = tables[0]
    predicted = np.array([table["predicted"].to_numpy(str) for table in tables])
    return Results(first["label"].to_numpy(str), first["group"].to_numpy(str), predicted)


def epochs_of(study: Study, run: Run) -> Results:
    """Put a run's own epochs side by side, as `results_of` does runs; raises FileNotFoundError for older runs."""
    order = run.validation["sha256"].argsort(kind="stable")
    named = np.array(run.class_names)[run.epoch_probabilities.argmax(axis=2)][:, order]
    photos = correct_by_photo(study, run).sort_values("sha256")
    return Results(photos["label"].to_numpy(str), photos["group"].to_numpy(str), named)


def optimism(study: Study, run: Run) -> float | None:
    """Give how much of the best epoch's validation accuracy is due to choosing it; None where it is not known."""
    try:
        results = epochs_of(study, run)
    except FileNotFoundError:
        return None
    return best_epoch_optimism(results.correct, results.groups, resamples=300).optimism


def training_accuracy(run: Run) -> float:
    """Give the accuracy on the training photos as they are (at inference, best epoch); of older runs, as in training.

    The latter has augmentation and dropout in it and is too low where these are used.
    """
    at_inference = run.row["best_inference_train_accuracy"]
    return float(at_inference) if at_inference != "" else float(run.history["train_accuracy"].iloc[-1])


def correct_by_photo(study: Study, run: Run) -> pd.DataFrame:
    """Give one row per validation photo of a run: sha256, group, label, predicted, correct (best epoch)."""
    table = run.validation.merge(read_splits(study)[["sha256", "group"]], on="sha256", validate="one_to_one")
    # Photos that a later split excluded have no group there: each stands alone.
    table["group"] = table["group"].where(table["group"] != "", table["sha256"])
    predicted = table[run.class_names].idxmax(axis=1)
    return table[["sha256", "group", "label"]].assign(predicted=predicted, correct=predicted == table["label"])


def validation_interval(study: Study, run: Run) -> Interval:
    """Give the validation accuracy of a run at its best epoch, with its group-bootstrap interval."""
    table = correct_by_photo(study, run)
    return accuracy_interval(table["correct"], table["group"])


def runs_report(study: Study) -> pd.DataFrame:
    """Give one row per recorded run: accuracies with interval, gap, best and last epoch, minutes, device.

    Runs on a part of the training photos, as for learning curves, are left out. Training accuracy is that of
    `training_accuracy`. "Best epoch" is chosen on validation and optimistic; how much is estimated where the run kept
    its epochs' predictions. "gap" is training less the best epoch. Raises FileNotFoundError when nothing has been
    recorded.
    """
    recorded = read_runs(study)
    recorded = recorded[recorded["train_on"] == ""]
    if recorded.empty:
        raise FileNotFoundError(f"{study.runs_table} holds no runs; train one: python -m carspotter train baseline_cnn")
    rows = []
    for row in recorded.sort_values(["experiment", "framework", "seed"], kind="stable").itertuples():
        run = load_run(study, row.run)
        last = run.history.iloc[-1]
        trained, luck = training_accuracy(run), optimism(study, run)
        rows.append(
            {
                "experiment": row.experiment,
                "framework": row.framework,
                "seed": row.seed,
                "photos (train / validation)": f"{row.train_photos} / {row.validation_photos}",
                "training": f"{trained:.3f}",
                "validation, best epoch [95 %]": str(validation_interval(study, run)),
                "of it optimism": "" if luck is None else f"{luck:.3f}",
                "validation, last epoch": f"{last.validation_accuracy:.3f}",
                "gap": f"{trained - row.best_validation_accuracy:+.3f}",
                "best / last epoch": f"{row.best_epoch} / {int(last.epoch)}",
                "minutes": f"{row.seconds / 60:.1f}",
                "device": row.device,
                "quick": "quick" if row.quick else "",
            }
        )
    table = pd.DataFrame(rows)
    return table if (table["quick"] != "").any() else table.drop(columns="quick")


def full_runs(study: Study) -> pd.DataFrame:
    """Give the rows of the newest recipe version that are neither quick ones nor on a part of the training photos.

    Runs of an older version were trained otherwise under the same names: they are no seeds of these.
    """
    rows = read_runs(study)
    rows = rows[(rows["quick"].astype(str) != "True") & (rows["train_on"] == "")]
    versions = pd.to_numeric(rows["recipe_version"], errors="coerce").fillna(0)
    return rows[versions == versions.max()]


def recorded_recipes(study: Study) -> dict[tuple, list[Run]]:
    """Give the full runs on the newest split by recipe, what RECIPE names: the seeds of each in their order."""
    rows = full_runs(study)
    newest = rows.sort_values("finished_time")["split_version"].iloc[-1:]
    recipes = rows[rows["split_version"].isin(newest)].groupby(RECIPE, sort=False)
    return {recipe: [load_run(study, run) for run in seeds.sort_values("seed")["run"]] for recipe, seeds in recipes}


def recipes_report(study: Study) -> pd.DataFrame:
    """Give one row per recipe of `recorded_recipes`, all its seeds together; none where only quick runs are recorded.

    Validation accuracy is that of the best epochs, with an interval over seeds and groups of photos, and the mean of
    the last five epochs, which were not chosen. ± is the standard deviation between seeds; one seed has none. Rows are
    in the order of the series, those of an experiment from large images and long runs to small and short ones.
    """
    places = {name: place for place, name in enumerate(SERIES)}

    def place_of(recipe: tuple) -> tuple:
        experiment, framework, epochs, image_size, *_ = recipe
        return places.get(experiment, len(places)), experiment, -image_size, -epochs, framework

    found = []
    recipes = recorded_recipes(study)
    for recipe in sorted(recipes, key=place_of):
        runs, (experiment, framework, epochs, image_size, dtype, *_) = recipes[recipe], recipe
        results = results_of(study, runs)
        interval = accuracy_interval(results.correct, results.groups)
        spread = "" if interval.seed_spread is None else f" ± {interval.seed_spread:.3f}"
        last_five = [float(run.row["mean_last_five_validation_accuracy"]) for run in runs]
        found.append(
            {
                "experiment": experiment,
                "framework": framework,
                "pixels": image_size,
                "epochs": epochs,
                "dtype": dtype,
                "seeds": len(runs),
                "training": f"{np.mean([training_accuracy(run) for run in runs]):.3f}",
                "validation, best epoch [95 %]": f"{interval}{spread}",
                "mean of the last five": f"{np.mean(last_five):.3f}",
                "minutes a run": f"{np.mean([float(run.row['seconds']) for run in runs]) / 60:.1f}",
            }
        )
    return pd.DataFrame(found)


def framework_verdicts(study: Study, experiment: str, margin: float = 0.03) -> pd.DataFrame:
    """Compare an experiment's recorded full runs between frameworks: one row per pair that share seeds.

    Columns: frameworks, seeds, difference (second less first, with its 90 % interval), verdict on equality within
    `margin`, in the words of `comparison.verdict`.
    """
    rows = full_runs(study)
    rows = rows[rows["experiment"] == experiment]
    found = []
    options = ["epochs", "image_size", "dtype", "weights", "split_version"]
    for _, alike in rows.groupby(options, sort=True):
        for first, second in itertools.combinations(sorted(alike["framework"].unique()), 2):
            sides = [alike[alike["framework"] == name].set_index("seed")["run"] for name in (first, second)]
            seeds = sorted(set(sides[0].index) & set(sides[1].index))
            if seeds:
                runs = [load_run(study, side[seed]) for side in sides for seed in seeds]
                results = results_of(study, runs)
                a, b = results.correct[: len(seeds)], results.correct[len(seeds) :]
                interval, words = equivalence(a, b, results.groups, margin)
                found.append(
                    {
                        "frameworks": f"{first} → {second}",
                        "seeds": len(seeds),
                        "difference [90 %]": str(interval),
                        "verdict": words,
                    }
                )
    return pd.DataFrame(found, columns=["frameworks", "seeds", "difference [90 %]", "verdict"])


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, one line per row."""
    lines = [table.columns.tolist(), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
