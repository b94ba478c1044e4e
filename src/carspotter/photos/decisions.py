"""What people decided: a log that survives a kill, and how far two reviewers agree."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from carspotter.photos.table import read_journal, repair_journal

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
    """Give the decisions that stand: the last one of each reviewer on each photo, oldest first.

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


def measure_agreement(data: Path) -> pd.DataFrame:
    """Compare every two reviewers on the photos that both decided: first, second, photos, agreed, kappa.

    A category is "reject" or the label under which a photo was kept; why it was rejected does not count.
    """
    rows = []
    for first, second, both in pair_reviewers(data):
        agreed = int((both[first] == both[second]).sum())
        rows.append((first, second, len(both), agreed, cohens_kappa(both[first], both[second])))
    return pd.DataFrame(rows, columns=["first", "second", "photos", "agreed", "kappa"])


def append_line(log: Path, line: dict) -> None:
    """Add a line that survives a kill and a power cut; a last line torn by an earlier kill is cut off first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)  # a second reviewer may have a server of their own
        repair_journal(log)
        lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        lines.flush()
        os.fsync(lines.fileno())


def standing_lines(lines: Iterable[dict], field: str, *more_keys: str) -> dict[tuple, dict]:
    """Give the last line of each photo and reviewer, in the order of writing, less those that withdraw.

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
    """Give every two reviewers who decided on the same photos, with a column of categories for each, by sha256."""
    reviews = read_reviews(data)
    category = reviews["label"].where(reviews["verdict"] == "keep", "reject")
    table = reviews.assign(category=category).pivot(index="sha256", columns="reviewer", values="category")
    for first, second in itertools.combinations(table.columns, 2):
        both = table[[first, second]].dropna()
        if len(both):
            yield first, second, both
