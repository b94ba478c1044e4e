"""Evaluate the chosen model on the test set once; it predicts before the labels are read."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from carspotter.evidence.bias_variance import generalisation_gap
from carspotter.evidence.intervals import Interval, accuracy_interval
from carspotter.evidence.results import correct_by_photo
from carspotter.evidence.selection import choose_run
from carspotter.models.store import Run, load_run
from carspotter.paths import Study
from carspotter.photos.images import load_images
from carspotter.photos.sealed_test import read_test_labels
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_curation, read_photos

BATCH = 256  # photos predicted at a time: 17 MB of pixels at 150 px


@dataclass(frozen=True)
class SealedScore:
    """What evaluation `look` of a sealed set found; `correct` and `groups` have one value per photo."""

    run: str
    split: str
    look: int
    interval: Interval
    parts: pd.DataFrame
    correct: np.ndarray | None = field(default=None, repr=False, compare=False)
    groups: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.split} accuracy {self.interval}, {self.interval.level * 100:.4g} % interval, "
            f"evaluation {self.look}, {self.interval.photos} photos in {self.interval.groups} groups"
        )


def score_sealed(study: Study, run: Run, reason: str, again: str | None = None, split: str = "test") -> SealedScore:
    """Open the sealed labels for `run`, score it, and write the score to `results/<study>/test_scores.jsonl`.

    `split`: "test" or "shifted". The interval of evaluation k is at 1 − .05/2^k, so that all together stay at 95 %.
    Raises what `sealed_test.read_test_labels` does, and FileNotFoundError without photos or checkpoint.
    """
    photos = read_splits(study).query("split == @split").drop(columns="label")
    if photos.empty:
        raise FileNotFoundError(f"{study.splits}: no {split} photos")
    table = read_photos(study.data)
    photos = photos.merge(table[["sha256", "path", "city"]], on="sha256", how="left").sort_values(
        "sha256", ignore_index=True
    )
    if photos["path"].isna().any():
        raise FileNotFoundError(
            f"{study.data}: {photos['path'].isna().sum()} of {len(photos)} {split} photos are not on this machine"
        )
    images = load_images(study.data, photos, int(run.row["image_size"]), show_progress=False)
    probabilities = np.concatenate([run.predict(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
    photos["predicted"] = np.array(run.class_names)[probabilities.argmax(axis=1)]
    known = read_curation(study).set_index("sha256")["label"] if study.curation.exists() else None

    labels, look = read_test_labels(study, run.id, photos[["sha256", "predicted"]], reason, again, split, known)
    photos = photos.merge(labels, on="sha256", validate="one_to_one").fillna({"city": "unknown"})
    photos["correct"] = photos["predicted"] == photos["label"]
    correct, groups, level = photos["correct"].to_numpy(bool), photos["group"].to_numpy(str), 1 - 0.05 / 2**look
    parts = _parts(photos, ["label", "city"], level)
    score = SealedScore(run.id, split, look, accuracy_interval(correct, groups, level), parts, correct, groups)
    with open(study.test_scores, "a", encoding="utf-8") as file:
        record = {"run": run.id, "split": split, "look": look, "interval": asdict(score.interval)}
        file.write(json.dumps(record | {"parts": parts.to_dict("records")}, ensure_ascii=False) + "\n")
    return score


def unseal(study: Study, run_id: str, reason: str, again: str | None = None) -> Iterator[str]:
    """Score a run, or the "chosen" one, on the test set and the shifted one, if any; yield what a terminal shows."""
    if run_id == "chosen":
        run, table = choose_run(study)
        yield f"chosen: {run.id}, the smallest of {table['within'].sum()} recipes within one standard error of the best"
    else:
        run = load_run(study, run_id)
    seen = correct_by_photo(study, run)
    validation = accuracy_interval(seen["correct"], seen["group"])
    yield f"validation accuracy {validation}, {validation.photos} photos, best epoch: chosen there, so optimistic"
    test = score_sealed(study, run, reason, again)
    yield str(test)
    yield f"drop from validation to test {drop(seen['correct'], seen['group'], test)}"
    yield parts_text(test)
    if "shifted" in set(read_splits(study)["split"]):
        shifted = score_sealed(study, run, reason, again, "shifted")
        yield str(shifted)
        fallen = drop(test.correct, test.groups, shifted)
        yield f"drop from test to shifted {fallen}: {'different' if fallen.low > 0 else 'undetermined'}"
        yield parts_text(shifted)


def parts_text(score: SealedScore) -> str:
    """Write a score's parts as lines."""
    return "\n".join(
        f"  {row.by:12} {row.part:28} {row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]  {row.photos} photos"
        for row in score.parts.itertuples()
    )


def read_scores(study: Study) -> list[SealedScore]:
    """Return the scores of all evaluations so far, oldest first; no label is read."""
    if not study.test_scores.exists():
        return []
    records = [json.loads(line) for line in study.test_scores.read_text(encoding="utf-8").splitlines()]
    return [
        SealedScore(r["run"], r["split"], r["look"], Interval(**r["interval"]), pd.DataFrame(r["parts"]))
        for r in records
    ]


def drop(correct, groups, after: SealedScore) -> Interval:
    """Return how much higher the accuracy was on other photos, bool (N,) with their groups, at the level of `after`."""
    return generalisation_gap(accuracy_interval(correct, groups, after.interval.level), after.interval)


def _parts(photos: pd.DataFrame, by: list[str], level: float) -> pd.DataFrame:
    rows = []
    for column in by:
        for part, members in photos.groupby(column, sort=True):
            interval = accuracy_interval(members["correct"], members["group"], level)
            bounds = {"accuracy": interval.estimate, "low": interval.low, "high": interval.high}
            rows.append({"by": column, "part": str(part), "photos": len(members), "groups": interval.groups} | bounds)
    return pd.DataFrame(rows, columns=["by", "part", "photos", "groups", "accuracy", "low", "high"])
