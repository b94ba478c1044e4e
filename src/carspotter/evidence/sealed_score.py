"""One honest look at the test set: which model, how good, how much worse on photos from elsewhere.

Everything is computed before the seal is broken, so that a run that cannot predict costs no look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carspotter.evidence.bias_variance import generalisation_gap
from carspotter.evidence.comparison import NOT_SHOWN, SHOWN, Interval, accuracy_interval
from carspotter.evidence.report import recorded_recipes, results_of, validation_interval
from carspotter.evidence.selection import one_standard_error_rule
from carspotter.models.runs import Run, load_run
from carspotter.paths import Study
from carspotter.photos.images import load_images
from carspotter.photos.sealed_test import read_test_labels
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

# What a scored photo has already; facts must not bring other columns of these names.
OWN_COLUMNS = {"sha256", "label", "group", "split", "path", "named", "correct", "city", "resolution", "compression"}
BATCH = 256  # photos predicted at a time: 17 MB of pixels at 150 px


@dataclass(frozen=True)
class SealedScore:
    """What one look at a sealed set found; `parts` has a row per part: by, part, photos, accuracy, low, high."""

    run: str
    split: str
    look: int
    interval: Interval
    parts: pd.DataFrame

    def __str__(self) -> str:
        level = f"{self.interval.level:.2%}".replace(".00%", "%").replace("%", " %")
        return (
            f"{self.split} accuracy {self.interval}, {level} interval, look #{self.look}, "
            f"{self.interval.photos} photos in {self.interval.groups} groups"
        )


def choose_run(study: Study) -> tuple[Run, pd.DataFrame]:
    """Choose on validation, by the one-standard-error rule with parameters as the cost; give run and table.

    Recipes are the recorded full runs on the whole training set, with all their seeds; the run given is the chosen
    recipe's first seed, not its luckiest. The table is that of `selection.one_standard_error_rule`. Raises
    FileNotFoundError where nothing is recorded that could be chosen.
    """
    recipes = recorded_recipes(study)
    if not recipes:
        raise FileNotFoundError(f"{study.runs_table}: no full run to choose; train some, or make a sweep")
    correct, costs, first, groups = {}, {}, {}, None
    for recipe, runs in sorted(recipes.items()):
        name = ", ".join(str(part) for part in recipe if part != "")
        results = results_of(study, runs)
        correct[name], groups = results.correct, results.groups
        costs[name], first[name] = float(runs[0].row["parameters"]), runs[0]
    chosen, table = one_standard_error_rule(correct, groups, costs)
    return first[chosen], table


def score_sealed(
    study: Study,
    run: Run,
    reason: str,
    again: str | None = None,
    split: str = "test",
    facts: pd.DataFrame | None = None,
) -> SealedScore:
    """Open the sealed labels for `run`, score it, and write the score to `results/<study>/test_scores.jsonl`.

    `split`: "test" or "shifted"; `facts`: sha256 and columns to take the score apart by, `photo_facts` when None. The
    interval is at 1 − .05/k at the k-th look, over groups. Raises what `sealed_test.read_test_labels` does, and
    FileNotFoundError without photos or checkpoint; then no look is counted.
    """
    photos = read_splits(study).query("split == @split").drop(columns="label")
    if photos.empty:
        raise FileNotFoundError(f"{study.splits}: no {split} photos")
    table = read_photos(study.data)
    photos = photos.merge(table[["sha256", "path"]], on="sha256", how="left").sort_values("sha256", ignore_index=True)
    if photos["path"].isna().any():
        raise FileNotFoundError(
            f"{study.data}: {photos['path'].isna().sum()} of {len(photos)} {split} photos are not on this machine"
        )
    images = load_images(study.data, photos, run.spec["image_size"], show_progress=False)
    probabilities = np.concatenate([run.predict(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
    named = np.array(run.class_names)[probabilities.argmax(axis=1)]
    facts = photo_facts(study) if facts is None else facts

    labels, look = read_test_labels(study, run.id, reason, again, split)
    photos = photos.assign(named=named).merge(labels, on="sha256", validate="one_to_one")
    photos = photos.merge(facts, on="sha256", how="left")
    photos["correct"] = photos["named"] == photos["label"]
    level = 1 - 0.05 / look
    by = ["label", *facts.columns.drop("sha256")]
    score = SealedScore(
        run.id, split, look, accuracy_interval(photos["correct"], photos["group"], level), _parts(photos, by, level)
    )
    with open(scores_file(study), "a", encoding="utf-8") as file:
        record = {"run": run.id, "split": split, "look": look, "interval": asdict(score.interval)}
        file.write(json.dumps(record | {"parts": score.parts.to_dict("records")}, ensure_ascii=False) + "\n")
    return score


def unseal(
    study: Study, run_id: str, reason: str, again: str | None = None, facts: pd.DataFrame | None = None
) -> Iterator[str]:
    """Score a run (or the "chosen" one, see `choose_run`) on the test set, and on the shifted one if there is one.

    `facts` as from `read_facts`, beside those of `photo_facts`. Gives what a terminal shows, line by line. Raises as
    `score_sealed` does, ValueError for an unknown run.
    """
    known = photo_facts(study)
    facts = known if facts is None else known.merge(facts, on="sha256", how="left").fillna("unknown")
    if run_id == "chosen":
        run, table = choose_run(study)
        cheapest = table[table["within"]]
        yield f"chosen: {run.id}, the smallest of {len(cheapest)} recipes within one standard error of the best"
    else:
        run = load_run(study, run_id)
    validation = validation_interval(study, run)
    yield f"validation accuracy {validation}, {validation.photos} photos, best epoch: chosen there, so optimistic"
    test = score_sealed(study, run, reason, again, facts=facts)
    yield str(test)
    yield f"drop from validation to test {drop(validation, test.interval)}"
    yield parts_text(test)
    if "shifted" in set(read_splits(study)["split"]):
        shifted = score_sealed(study, run, reason, again, "shifted", facts)
        yield str(shifted)
        fallen = drop(test.interval, shifted.interval)
        found = SHOWN if fallen.low > 0 else NOT_SHOWN
        yield f"drop from test to shifted {fallen}: {found}"
        yield parts_text(shifted)


def parts_text(score: SealedScore) -> str:
    """Write a score's parts as lines; parts are many and small, so they hint and do not prove."""
    return "\n".join(
        f"  {row.by:12} {row.part:28} {row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]  {row.photos} photos"
        for row in score.parts.itertuples()
    )


def read_scores(study: Study) -> list[SealedScore]:
    """Give the scores of all looks so far, oldest first; no label is read."""
    if not scores_file(study).exists():
        return []
    records = [json.loads(line) for line in scores_file(study).read_text(encoding="utf-8").splitlines()]
    return [
        SealedScore(r["run"], r["split"], r["look"], Interval(**r["interval"]), pd.DataFrame(r["parts"]))
        for r in records
    ]


def scores_file(study: Study) -> Path:
    return study.folder / "test_scores.jsonl"


def drop(before: Interval, after: Interval) -> Interval:
    """Give how much lower the accuracy is on `after`, another set of photos (shifted, or test after validation).

    Positive where accuracy fell. Method: as `bias_variance.generalisation_gap`, two separate sets of groups.
    """
    return generalisation_gap(before, after)


def photo_facts(study: Study) -> pd.DataFrame:
    """Give what is known of each photo without looking at it: sha256, city, resolution and compression, as text.

    Resolution and compression are thirds of all photos of the study, by shorter side and by bytes per pixel.
    """
    table = read_photos(study.data)
    table = table[table["sha256"].isin(read_splits(study)["sha256"])]
    shorter = table[["width", "height"]].min(axis=1)
    density = table["bytes"] / (table["width"] * table["height"])
    return pd.DataFrame(
        {
            "sha256": table["sha256"],
            "city": table["city"].fillna("unknown"),
            "resolution": _thirds(shorter, "{:.0f}–{:.0f} px"),
            "compression": _thirds(density, "{:.2f}–{:.2f} bytes/pixel"),
        }
    )


def read_facts(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read what else is known of photos (their view, the camera) from a CSV file: sha256 and `columns`, as text.

    Raises ValueError, naming the file, where a column is missing or two rows disagree about a photo.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if taken := OWN_COLUMNS & set(columns):
        raise ValueError(f"{path}: {', '.join(sorted(taken))} is a name of ours; call the column something else")
    if missing := {"sha256", *columns} - set(table):
        raise ValueError(f"{path}: no column {', '.join(sorted(missing))}; there are {', '.join(table)}")
    facts = table[["sha256", *columns]].drop_duplicates()
    if len(twice := facts["sha256"][facts["sha256"].duplicated()]):
        raise ValueError(f"{path}: {twice.iloc[0]} has two rows that disagree about {', '.join(columns)}")
    return facts.replace("", "unknown")


def _thirds(values: pd.Series, words: str) -> pd.Series:
    """Name the third of all values that each lies in by that third's ends; equal values stay together."""
    parts = pd.qcut(values.astype(float), 3, labels=False, duplicates="drop").fillna(0)
    names = {number: words.format(part.min(), part.max()) for number, part in values.groupby(parts)}
    return parts.map(names)


def _parts(photos: pd.DataFrame, by: list[str], level: float) -> pd.DataFrame:
    rows = []
    for column in by:
        for part, members in photos.groupby(column, sort=True):
            interval = accuracy_interval(members["correct"], members["group"], level)
            bounds = {"accuracy": interval.estimate, "low": interval.low, "high": interval.high}
            rows.append({"by": column, "part": str(part), "photos": len(members), "groups": interval.groups} | bounds)
    return pd.DataFrame(rows, columns=["by", "part", "photos", "groups", "accuracy", "low", "high"])
