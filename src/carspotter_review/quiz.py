"""The quiz about validation photos, and what several reviewers said of the same photos."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from carspotter.curation.reviews import read_reviews, standing_lines
from carspotter.paths import Study
from carspotter.photos.journal import read_journal
from carspotter.photos.splitting import read_splits


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
    standing = list(standing_lines(lines, "answer", "seed").values())
    answers = pd.DataFrame(standing, columns=["sha256", "reviewer", "seed", "answer"])
    splits = read_splits(study)
    truth = splits.loc[splits["split"] == "validation", ["sha256", "label", "group"]]
    answers = answers.merge(truth, on="sha256")
    if reviewer is not None:
        answers = answers[answers["reviewer"] == reviewer]
    return answers.assign(correct=answers["answer"] == answers["label"]).reset_index(drop=True)


def quiz_log(study: Study) -> Path:
    return study.data / "quiz.jsonl"


def pair_reviewers(data: Path) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield every two reviewers who decided on the same photos, with a column of categories for each, by sha256."""
    reviews = read_reviews(data)
    category = reviews["label"].where(reviews["verdict"] == "keep", "reject")
    table = reviews.assign(category=category).pivot(index="sha256", columns="reviewer", values="category")
    for first, second in itertools.combinations(table.columns, 2):
        both = table[[first, second]].dropna()
        if len(both):
            yield first, second, both
