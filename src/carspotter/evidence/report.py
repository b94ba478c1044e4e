"""The table of a study's recorded runs, as printed by `python -m carspotter report` and shown in README."""

from __future__ import annotations

import pandas as pd

from carspotter.evidence.comparison import Interval, accuracy_interval
from carspotter.models.runs import Run, load_run, read_runs
from carspotter.paths import Study
from carspotter.photos.splitting import read_splits


def correct_by_photo(study: Study, run: Run) -> pd.DataFrame:
    """Give one row per validation photo of a run: sha256, group, label, predicted, correct (best epoch)."""
    table = run.validation.merge(read_splits(study)[["sha256", "group"]], on="sha256", validate="one_to_one")
    predicted = table[run.class_names].idxmax(axis=1)
    return table[["sha256", "group", "label"]].assign(predicted=predicted, correct=predicted == table["label"])


def validation_interval(study: Study, run: Run) -> Interval:
    """Give the validation accuracy of a run at its best epoch, with its group-bootstrap interval."""
    table = correct_by_photo(study, run)
    return accuracy_interval(table["correct"], table["group"])


def runs_report(study: Study) -> pd.DataFrame:
    """Give one row per recorded run: accuracies with interval, gap, best and last epoch, minutes, device.

    Training and "last epoch" figures belong to the last epoch; "best epoch" is chosen on validation and optimistic.
    Raises FileNotFoundError when nothing has been recorded.
    """
    recorded = read_runs(study)
    if recorded.empty:
        raise FileNotFoundError(f"{study.runs_table} holds no runs; train one: python -m carspotter train baseline_cnn")
    rows = []
    for row in recorded.sort_values(["experiment", "framework", "seed"], kind="stable").itertuples():
        run = load_run(study, row.run)
        last = run.history.iloc[-1]
        rows.append(
            {
                "experiment": row.experiment,
                "framework": row.framework,
                "seed": row.seed,
                "photos (train / validation)": f"{row.train_photos} / {row.validation_photos}",
                "training": f"{last.train_accuracy:.3f}",
                "validation, best epoch [95 %]": str(validation_interval(study, run)),
                "validation, last epoch": f"{last.validation_accuracy:.3f}",
                "gap": f"{last.train_accuracy - last.validation_accuracy:+.3f}",
                "best / last epoch": f"{row.best_epoch} / {int(last.epoch)}",
                "minutes": f"{row.seconds / 60:.1f}",
                "device": row.device,
                "quick": "quick" if row.quick else "",
            }
        )
    table = pd.DataFrame(rows)
    return table if (table["quick"] != "").any() else table.drop(columns="quick")


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, one line per row."""
    lines = [table.columns.tolist(), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
