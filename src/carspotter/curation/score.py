"""A curation held against the truth: what was found of each kind of junk and copy, and how soon a reviewer meets it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from carspotter.photos.table import kind_of

# The detector that looks for a kind of junk in truth.csv; all others are looked for by the ranking alone.
DETECTORS = {"too_dark": "too dark", "too_blurred": "blurred", "thumbnail": "too small", "other_model": "another model"}
WORST = 0.15  # share of the photos that a person should have to look at
LOOKED_AT = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


def score_curation(table: pd.DataFrame, truth: Path) -> pd.DataFrame:
    """Return photos, recall, precision and worst_15 by kind of junk and of copy, from the truth.csv of rendered photos.

    Copies ("copy: cropped", …): recall counts pairs of copy and original that share bytes or a cluster; precision is
    that of all pairs in one cluster, the same for every kind. Junk: recall and precision of the detector of that kind
    (none for what the ranking alone finds), and the share of it among the worst-ranked 15 % of the photos kept.
    "all junk" sums up; its recall and precision are those of having any reason. Raises ValueError when the truth knows
    none of the photos.
    """
    facts, kept = _join(table, truth)
    # Photos that truly are one shot, against photos that share a cluster.
    shots = facts.drop_duplicates("sha256").set_index("sha256")["origin"]
    clusters = table.set_index("sha256").loc[shots.index, "duplicate_cluster"]
    true_pairs, found = _pairs_within(shots), _pairs_within(clusters[clusters != ""])
    precision = len(found & true_pairs) / len(found) if found else np.nan
    # Of a copy whose original was not collected there is no pair to be found.
    copies = facts[(facts["copy"] != "") & facts["origin"].isin(table["sha256"])]
    hit = [
        sha == origin or (min(sha, origin), max(sha, origin)) in found
        for sha, origin in zip(copies["sha256"], copies["origin"], strict=True)
    ]
    rows = [
        (f"copy: {kind}", len(hits), hits.mean(), precision, np.nan)
        for kind, hits in pd.Series(hit, index=copies["copy"], dtype=float).groupby(level=0)
    ]
    flagged = kept["reason"].map(kind_of)
    worst = np.arange(len(kept)) < WORST * len(kept)
    for kind in sorted(set(kept["kind"]) - {"car"}):
        right, detected = kept["kind"] == kind, flagged == DETECTORS.get(kind, "no detector")
        rows.append((kind, *_hits(right, detected), worst[right].mean()))
    junk = kept["kind"] != "car"
    if junk.any():
        rows.append(("all junk", *_hits(junk, flagged != ""), worst[junk].mean()))
    return pd.DataFrame(rows, columns=["kind", "photos", "recall", "precision", "worst_15"]).set_index("kind").round(3)


def review_curve(table: pd.DataFrame, truth: Path) -> pd.Series:
    """Return the share of junk found, by the share of photos looked at, worst first."""
    _, kept = _join(table, truth)
    found = (kept["kind"] != "car").to_numpy().cumsum()
    ends = np.maximum(np.ceil(np.array(LOOKED_AT) * len(kept)).astype(int), 1) - 1
    shares = found[ends] / max(found[-1], 1)
    return pd.Series(shares, index=pd.Index(LOOKED_AT, name="looked at"), name="junk found").round(3)


def _join(table: pd.DataFrame, truth: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the truth about these photos, and those that are kept with their true kind, worst first."""
    facts = pd.read_csv(truth, dtype=str, keep_default_na=False)
    original = facts["duplicate_of"].map(facts.set_index("file")["sha256"])
    facts["origin"] = original.fillna(facts["sha256"])
    facts = facts[facts["sha256"].isin(table["sha256"])]
    if facts.empty:
        raise ValueError(f"{truth}: knows none of these {len(table)} photos; is it the truth of another import?")
    kinds = facts.drop_duplicates("sha256").set_index("sha256")["kind"]
    kept = table[table["sha256"].isin(kinds.index) & (table["verdict"] == "keep")]
    kept = kept.sort_values(["score", "sha256"], ascending=[False, True]).set_index("sha256")
    return facts, kept.assign(kind=kinds)


def _hits(right: pd.Series, detected: pd.Series) -> tuple[int, float, float]:
    both = (right & detected).sum()
    return right.sum(), both / right.sum(), both / detected.sum() if detected.any() else np.nan


def _pairs_within(sets: pd.Series) -> set[tuple[str, str]]:
    """Return all pairs of index values that share a value."""
    members = sets.groupby(sets).groups.values()
    return {pair for shas in members for pair in itertools.combinations(sorted(shas), 2)}
