"""What people decided, and how much junk a random sample says is left."""

import hashlib
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from carspotter.paths import Study
from carspotter.photos.journal import read_journal
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
    time, audit (its seed, or None). Withdrawn decisions are left out.
    """
    columns = ["sha256", "reviewer", "verdict", "label", "reason", "time", "audit"]
    standing = standing_lines(read_journal(Path(data) / "reviews.jsonl"), "verdict")
    return pd.DataFrame(list(standing.values()), columns=columns)


def standing_lines(lines: Iterable[dict], field: str, *more_keys: str) -> dict[tuple, dict]:
    """Return the last line of each photo and reviewer, in the order of writing, less those that withdraw.

    Withdrawing in an audit withdraws that audit's line: an earlier verdict stands again.
    """
    said: dict[tuple, dict] = {}
    for number, line in enumerate(lines):
        occasions = said.setdefault((line["sha256"], line["reviewer"], *(line[name] for name in more_keys)), {})
        occasions.pop(line.get("audit"), None)
        if line[field] is not None:
            occasions[line.get("audit")] = number, line
    latest = [(*max(occasions.values(), key=itemgetter(0)), key) for key, occasions in said.items() if occasions]
    return {key: line for _, line, key in sorted(latest, key=itemgetter(0))}


def draw_audit(study: Study, count: int, seed: int = 0) -> pd.DataFrame:
    """Draw `count` of the kept photos at random, to be reviewed once more: the columns of `read_curation`.

    Photos are ordered by a hash of seed and SHA-256, so the draw stays the same when other photos come or go; photos
    that this very audit rejected stay in it.
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
    """Return what reviewers said in an audit; junk is what one of them rejected or would keep under another label."""
    drawn = draw_audit(study, count, seed).set_index("sha256")["label"]
    found: dict[str, bool] = {}
    for (sha256, _), line in standing_lines(_lines_of_audit(study, seed), "verdict").items():
        if sha256 in drawn.index:
            wrong = line["verdict"] == "reject" or line["label"] != drawn[sha256]
            found[sha256] = found.get(sha256, False) or wrong
    kept = int((read_curation(study)["verdict"] == "keep").sum())
    return Audit(np.array(list(found.values()), dtype=bool), len(drawn), kept)


def _lines_of_audit(study: Study, seed: int) -> list[dict]:
    return [line for line in read_journal(study.reviews) if line.get("audit") == seed]
