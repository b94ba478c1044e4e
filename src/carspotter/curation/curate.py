"""Duplicates, unusable photos, label conflicts: verdicts with reasons.

The machine rejects only unreadable files, label conflicts and surplus duplicates. The rest it keeps and *ranks*: a
score, 0 (fine) … 1 (surely bad), and a sentence why. A person's decision wins.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from carspotter.curation.appearance import describe_photos
from carspotter.curation.cross_validation import join_features, learn_photos
from carspotter.curation.ranking import first_listings, median_of_mates, rank_photos, stand_apart
from carspotter.curation.reviews import read_reviews
from carspotter.paths import Study
from carspotter.photos.duplicates import SAME_SHOT, relate_photos
from carspotter.photos.fingerprints import measure_photos
from carspotter.photos.grouping import Groups, name_clusters
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import OTHER_MODEL, kind_of, read_curation, read_photos, write_table

COLUMNS = ["sha256", "label", "verdict", "reason", "score", "duplicate_cluster", "car", "decided_by"]


class Quality(NamedTuple):
    """A question that size, light and sharpness of one photo answer: where its `figure` is below `limit`, it is bad.

    Figure and sentence use the photo's shorter `side` in pixels, of its fingerprint `brightness`, `contrast` and
    `sharpness`, and `mates`, the median sharpness of its listing's other photos.
    """

    kind: str
    figure: Callable[[pd.DataFrame], pd.Series]
    limit: float
    sentence: str


UNLIKE_MATES = "sharpness {sharpness:.2f}, its listing's other photos have {mates:.2f}"
# At the limit a photo is as likely bad as not (score .5). Of 1,201 photos from ads the darkest had a mean of 53, the
# brightest one of 202 and the softest a sharpness of .88; blurred over 1.1 % of their width, the best came to .72.
QUALITY = (
    Quality("too small", lambda of: of["side"], 150, "the shorter side has {side:.0f} pixels"),  # models see 150
    Quality("too dark", lambda of: of["brightness"], 35, "mean brightness {brightness:.0f} of 255"),
    Quality("too bright", lambda of: 255 - of["brightness"], 35, "mean brightness {brightness:.0f} of 255"),
    Quality("blurred", lambda of: of["sharpness"], 0.8, "sharpness {sharpness:.2f}; photos in focus have .9 and more"),
    # One phone took them all. Of 1,758 rendered photos in focus three in a thousand fall below half of their mates.
    Quality("blurred", lambda of: (of["sharpness"] / of["mates"]).fillna(np.inf), 0.5, UNLIKE_MATES),
)
STEEPNESS = 4.0  # how fast the score moves from 0 to 1 about these limits
# Rejects from which the ranking learns nothing: these faults are not in the features, or in other photos.
NO_EXAMPLES = ("poor quality", "duplicate")


def curate_study(
    study: Study,
    weights: str | Path | None = None,
    train: str | None = None,
    with_reviews: bool = True,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Describe, rank and judge all photos of the study's data folder, and write `data/curation.csv`; return the table.

    `weights`: a file of MobileNetV2's, whose features rank far better. `train`: a framework in which models learn from
    the photos and doubt labels. Without `with_reviews` people's decisions do not count and nothing is written.
    """
    photos = read_photos(study.data)
    features, doubts = describe_photos(study.data, photos, weights, show_progress), None
    if train:
        doubts, learnt = learn_photos(study.data, photos, train, weights)
        features = join_features(features, learnt)
    table = judge_photos(study.data, photos, features, doubts, with_reviews, show_progress)
    if with_reviews:
        write_curation(study, table)
    return table


def judge_photos(
    data: Path,
    photos: pd.DataFrame,
    features: pd.DataFrame | None = None,
    doubts: pd.Series | None = None,
    with_reviews: bool = True,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Return a verdict on every photo: the columns of curation.csv, one row per photo, sorted by sha256.

    verdict is keep or reject; reason starts with its kind and a colon, and is empty for a photo without a fault; score
    is 1 for a reject. A duplicate cluster (copies of one shot) and a car are named by the first digits of their lowest
    hash, empty for a photo that stands alone. `features` (float, by sha256) rank by content, see `ranking`; `doubts` (0
    … 1, by sha256) are those of models trained on the other photos. `data/reviews.jsonl` overrules the detectors and
    gives examples to the ranking, unless `with_reviews` is False.
    """
    photos = photos.sort_values("sha256", ignore_index=True)
    fingerprints, unreadable = measure_photos(data, photos, show_progress)
    readable = photos[~photos["sha256"].isin(unreadable)].reset_index(drop=True)
    related = relate_photos(data, readable, fingerprints, show_progress)
    copies = related[related["relation"] == SAME_SHOT]

    table = photos[["sha256", "label"]].copy()
    table["label"] = table["label"].fillna("")
    table["verdict"], table["reason"], table["score"], table["decided_by"] = "keep", "", 0.0, "machine"
    for column, pairs in (("duplicate_cluster", copies), ("car", related)):
        clusters = name_clusters(zip(pairs["first"], pairs["second"], strict=True))
        table[column] = table["sha256"].map(clusters).fillna("")
    table = table.set_index("sha256")

    quality = _judge_quality(readable, fingerprints)
    table.loc[quality.index, ["reason", "score"]] = quality
    rejects = {sha256: f"unreadable: {reason}" for sha256, reason in unreadable.items()}
    for photo in readable.itertuples():
        if len(photo.labels) > 1:
            rejects[photo.sha256] = f"label conflict: the same bytes are listed as {' and '.join(photo.labels)}"
        elif photo.kind:
            what = photo.label if photo.kind == OTHER_MODEL else "such"
            rejects[photo.sha256] = f"{photo.kind}: imported as {what}"
    # Of several reviewers the last has the word.
    reviews = read_reviews(data).drop_duplicates("sha256", keep="last")
    reviews = reviews[with_reviews & reviews["sha256"].isin(readable["sha256"])]
    for review in reviews.astype(object).where(reviews.notna(), None).itertuples():
        rejects.pop(review.sha256, None)
        label, reason = review.label or table.at[review.sha256, "label"], f"reviewed: {review.reason or review.verdict}"
        said = (label, review.verdict, reason, float(review.verdict == "reject"), review.reviewer)
        table.loc[review.sha256, ["label", "verdict", "reason", "score", "decided_by"]] = said
    rejects |= _reject_duplicates(table, readable.set_index("sha256"), rejects, set(reviews["sha256"]))
    for sha256, reason in rejects.items():
        table.loc[sha256, ["verdict", "reason", "score"]] = ("reject", reason, 1.0)
    if features is not None:
        palettes = pd.Series(list(fingerprints["palette"]), index=readable["sha256"])
        _rank_by_features(table, photos.set_index("sha256")["listings"], features, palettes, reviews, doubts)
    return table.reset_index()[COLUMNS]


def write_curation(study: Study, curation: pd.DataFrame) -> None:
    """Write the table of `judge_photos` to `data/curation.csv`."""
    write_table(study.curation, curation, float_format="%.4f")


def summary(table: pd.DataFrame) -> str:
    """Return a few lines: photos by verdict and kind of reason, clusters of duplicates."""
    kinds = table["reason"].map(kind_of).replace("", "nothing found")
    counts = pd.crosstab(kinds, table["verdict"]).rename_axis(index=None, columns=None)
    clusters = table.loc[table["duplicate_cluster"] != "", "duplicate_cluster"]
    return (
        f"{len(table):,} photos, {(table['verdict'] == 'keep').sum():,} kept\n{counts.to_string()}\n"
        f"{clusters.nunique():,} clusters of near-duplicates with {len(clusters):,} photos"
    )


def count_duplicates(study: Study) -> dict[str, int]:
    """Count clusters of copies, and those across listings and across parts of the split, if there is one."""
    cluster = read_curation(study).set_index("sha256")["duplicate_cluster"]
    clusters = cluster[cluster != ""]
    listings = read_photos(study.data).set_index("sha256")["listings"].explode().dropna()
    splits = read_splits(study).set_index("sha256")["split"] if study.splits.exists() else pd.Series(dtype=str)

    def count_across(memberships: pd.Series) -> int:
        of_copies = memberships[memberships.index.isin(clusters.index)]
        return int((of_copies.groupby(clusters[of_copies.index].to_numpy()).nunique() > 1).sum())

    return {
        "clusters": clusters.nunique(),
        "across listings": count_across(listings),
        "across parts of the split": count_across(splits[splits != "excluded"]),
        "surplus copies": len(clusters) - clusters.nunique(),
    }


def _judge_quality(photos: pd.DataFrame, fingerprints: np.ndarray) -> pd.DataFrame:
    """Rank photos by their worst fault in size, light and sharpness: reason and score by sha256."""
    names = ("brightness", "contrast", "sharpness")
    measured = pd.DataFrame({name: fingerprints[name].astype(float) for name in names})
    measured["side"] = photos[["width", "height"]].min(axis=1).to_numpy(dtype=float)
    measured["mates"] = median_of_mates(measured["sharpness"].to_numpy(), first_listings(photos["listings"]))
    scores = np.stack([1 / (1 + (asked.figure(measured) / asked.limit) ** STEEPNESS) for asked in QUALITY])
    worst, score = [QUALITY[question] for question in scores.argmax(axis=0)], scores.max(axis=0)
    reasons = [
        f"{asked.kind}: {asked.sentence.format(**known)}" if bad else ""
        for asked, known, bad in zip(worst, measured.to_dict("records"), score >= 0.5, strict=True)
    ]
    return pd.DataFrame({"reason": reasons, "score": score}, index=photos["sha256"])


def _rank_by_features(
    table: pd.DataFrame,
    listings: pd.Series,
    features: pd.DataFrame,
    palettes: pd.Series,
    reviews: pd.DataFrame,
    doubts: pd.Series | None,
) -> None:
    """Raise the score of photos that look wrong for their label, with a reason; reviewed ones are only learned from."""
    reviews = reviews.set_index("sha256")
    ranked = table.index[(table["verdict"] == "keep") | table.index.isin(reviews.index)]
    ranked = ranked[ranked.isin(features.index) & ranked.isin(palettes.index)]
    if ranked.empty:
        return
    groups = Groups()
    for sha256 in ranked:
        cluster = table.at[sha256, "duplicate_cluster"]
        groups.join([sha256, *listings[sha256], *([f"cluster {cluster}"] if cluster else [])])
    rejected = (reviews["verdict"] == "reject").astype(float).where(~reviews["reason"].isin(NO_EXAMPLES))
    body, rim = np.swapaxes(np.stack(palettes[ranked]), 0, 1)
    listing = first_listings(listings[ranked])
    found = rank_photos(
        features.loc[ranked].to_numpy(),
        table.loc[ranked, "label"],
        [groups.root(sha256) for sha256 in ranked],
        rejected.reindex(ranked).to_numpy(),
        np.hstack([stand_apart(body, listing, [np.max, np.median]), stand_apart(rim, listing, [np.max])]),
        listing,
        None if doubts is None else doubts.reindex(ranked).fillna(doubts.median()).to_numpy(),
    ).set_index(ranked)
    worse = found["score"] > table.loc[ranked, "score"]
    raised = ranked[worse & (table.loc[ranked, "decided_by"] == "machine")]
    table.loc[raised, ["score", "reason"]] = found.loc[raised, ["score", "reason"]]


def _reject_duplicates(table: pd.DataFrame, photos: pd.DataFrame, rejects: dict, reviews: set) -> dict[str, str]:
    """Keep one photo of each cluster, the largest or the one a person kept; reject all where the labels disagree."""
    reasons = {}
    for _, cluster in table[table["duplicate_cluster"] != ""].groupby("duplicate_cluster"):
        kept_by_person = [sha for sha in cluster.index if sha in reviews and cluster.loc[sha, "verdict"] == "keep"]
        open_cases = [sha for sha in cluster.index if sha not in reviews and sha not in rejects]
        trusted = kept_by_person or open_cases
        labels = sorted({cluster.loc[sha, "label"] for sha in trusted})
        if len(labels) > 1:
            for sha in open_cases:
                reasons[sha] = f"label conflict: the same shot is listed as {' and '.join(labels)}"
            continue
        by_size = photos.loc[trusted].assign(pixels=lambda p: p["width"] * p["height"]).reset_index()
        by_size = by_size.sort_values(["pixels", "bytes", "sha256"], ascending=[False, False, True])
        for sha in open_cases:
            best = by_size["sha256"].iloc[0]
            if cluster.loc[sha, "label"] != labels[0]:
                reasons[sha] = f"label conflict: the same shot as {best[:12]}, which a person calls {labels[0]}"
            elif sha != best:
                reasons[sha] = f"duplicate: the same shot as {best[:12]}"
    return reasons
