"""What people decided: a log that survives a kill, and how far two reviewers agree."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from carspotter.paths import Study
from carspotter.photos.journal import read_journal
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_curation

# What a person can hold against a photo, in the order of the digits on the page.
REASONS = {
    "other model": "not the car it is said to be",
    "interior": "inside, boot or engine",
    "close-up": "only a part of the car",
    "document": "papers, logo, drawing",
    "no car": "something else is shown",
    "poor quality": "dark, bright, small, blurred",
    "duplicate": "same shot as another photo",
    "covered": "car hidden, or one of many",
    "other": "none of these",
}


def read_reviews(data: Path) -> pd.DataFrame:
    """Return the decisions that stand: the last one of each reviewer on each photo, oldest first.

    `data`: the folder that holds reviews.jsonl. Columns: sha256, reviewer, verdict (keep or reject), label, reason,
    time, audit (its seed, or None). Withdrawn decisions are left out. Raises ValueError for a damaged line.
    """
    columns = ["sha256", "reviewer", "verdict", "label", "reason", "time", "audit"]
    standing = standing_lines(read_journal(Path(data) / "reviews.jsonl"), "verdict")
    return pd.DataFrame(list(standing.values()), columns=columns)


def cohens_kappa(first, second) -> float:
    """Agreement of two reviewers beyond chance: 1 is complete, 0 what chance would give, below 0 less than that.

    `first`, `second`: the categories they gave to the same photos, in the same order. nan when chance alone would
    agree always (both used one and the same category). Raises ValueError for different lengths or no photos.
    Source: Cohen (1960), A coefficient of agreement for nominal scales.
    """
    first, second = np.asarray(first, dtype=str), np.asarray(second, dtype=str)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"kappa needs the same photos from both, and some: got {first.size} and {second.size}")
    observed = np.mean(first == second)
    expected = sum(np.mean(first == category) * np.mean(second == category) for category in np.unique(first))
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def standing_lines(lines: Iterable[dict], field: str, *more_keys: str) -> dict[tuple, dict]:
    """Return the last line of each photo and reviewer, in the order of writing, less those that withdraw.

    What is withdrawn in an audit is what was said in that audit: an earlier verdict stands again.
    """
    said: dict[tuple, dict] = {}
    for number, line in enumerate(lines):
        occasions = said.setdefault((line["sha256"], line["reviewer"], *(line[name] for name in more_keys)), {})
        occasions.pop(line.get("audit"), None)
        if line[field] is not None:
            occasions[line.get("audit")] = number, line
    latest = [(*max(occasions.values(), key=itemgetter(0)), key) for key, occasions in said.items() if occasions]
    return {key: line for _, line, key in sorted(latest, key=itemgetter(0))}


def pair_reviewers(data: Path) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Return every two reviewers who decided on the same photos, with a column of categories for each, by sha256."""
    reviews = read_reviews(data)
    category = reviews["label"].where(reviews["verdict"] == "keep", "reject")
    table = reviews.assign(category=category).pivot(index="sha256", columns="reviewer", values="category")
    for first, second in itertools.combinations(table.columns, 2):
        both = table[[first, second]].dropna()
        if len(both):
            yield first, second, both


def draw_audit(study: Study, count: int, seed: int = 0) -> pd.DataFrame:
    """Draw `count` of the kept photos at random, to be looked at once more: the columns of `read_curation`.

    The draw orders photos by a hash of seed and SHA-256, so it stays the same when other photos come or go; photos
    that this very audit rejected stay in it. Raises ValueError when nothing is kept.
    """
    reviews = standing_lines(_lines_of_audit(study, seed), "verdict")
    table = read_curation(study)
    pool = table[(table["verdict"] == "keep") | table["sha256"].isin([sha256 for sha256, _ in reviews])]
    if pool.empty:
        raise ValueError(f"{study.curation}: no photo is kept, so there is nothing to audit")
    order = [hashlib.sha256(f"{seed}:{sha256}".encode()).digest() for sha256 in pool["sha256"]]
    return pool.iloc[sorted(range(len(pool)), key=order.__getitem__)[:count]].reset_index(drop=True)


class Audit(NamedTuple):
    """What an audit found: `junk` (bool) for each audited photo, how many photos were drawn, and kept in all."""

    junk: np.ndarray
    drawn: int
    kept: int

    def __str__(self) -> str:
        if not len(self.junk):
            return "Junk left among the kept photos: unknown; `review --audit 100` asks about a random sample"
        low, high = binomtest(int(self.junk.sum()), len(self.junk)).proportion_ci()  # exact: Clopper & Pearson 1934
        return (
            f"Junk left among the {self.kept:,} kept photos: {self.junk.mean():.1%} [{low:.1%}, {high:.1%}], "
            f"{self.junk.sum()} of {len(self.junk)} photos of a random sample"
        )


def read_audit(study: Study, count: int, seed: int = 0) -> Audit:
    """Return what reviewers said in an audit; junk is what one of them rejected or would keep under another label only.

    What was decided about a photo outside the audit changes nothing: the sample stays random.
    """
    drawn = draw_audit(study, count, seed).set_index("sha256")["label"]
    found: dict[str, bool] = {}
    for (sha256, _), line in standing_lines(_lines_of_audit(study, seed), "verdict").items():
        if sha256 in drawn.index:
            wrong = line["verdict"] == "reject" or line["label"] != drawn[sha256]
            found[sha256] = found.get(sha256, False) or wrong
    kept = int((read_curation(study)["verdict"] == "keep").sum())
    return Audit(np.array(list(found.values()), dtype=bool), len(drawn), kept)


def draw_quiz(study: Study, count: int, seed: int = 0) -> pd.DataFrame:
    """Draw `count` validation photos (sha256, label, group), the classes in turn, a second one of a group last.

    Test photos are never drawn. Raises ValueError when the split holds no validation photos.
    """
    splits = read_splits(study)
    photos = splits[splits["split"] == "validation"].sort_values("sha256").sample(frac=1, random_state=seed)
    if photos.empty:
        raise ValueError(f"{study.splits}: no validation photos to ask about; run `split` first")
    photos = photos.assign(turn=photos.groupby("group").cumcount()).sort_values("turn", kind="stable")
    photos = photos.assign(turn=photos.groupby("label").cumcount()).sort_values("turn", kind="stable").head(count)
    # Once more at random: in strict turn the answer would follow from the one before.
    return photos[["sha256", "label", "group"]].sample(frac=1, random_state=seed).reset_index(drop=True)


def read_quiz(study: Study, reviewer: str | None = None) -> pd.DataFrame:
    """Return the answers to the quiz about this study: sha256, reviewer, seed, answer, label, group, correct (bool).

    Labels come from the split as it is now; photos that left the validation part are left out.
    """
    lines = [line for line in read_journal(quiz_log(study)) if line["study"] == study.name]
    answers = pd.DataFrame(
        list(standing_lines(lines, "answer", "seed").values()), columns=["sha256", "reviewer", "seed", "answer"]
    )
    splits = read_splits(study)
    truth = splits.loc[splits["split"] == "validation", ["sha256", "label", "group"]]
    answers = answers.merge(truth, on="sha256")
    if reviewer is not None:
        answers = answers[answers["reviewer"] == reviewer]
    return answers.assign(correct=answers["answer"] == answers["label"]).reset_index(drop=True)


def _lines_of_audit(study: Study, seed: int) -> list[dict]:
    return [line for line in read_journal(study.reviews) if line.get("audit") == seed]


def quiz_log(study: Study) -> Path:
    return study.data / "quiz.jsonl"
