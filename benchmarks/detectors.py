"""What did the curation find of each kind of junk and of copy? Rendered photos come with the truth.

    python -m carspotter sample photos --seed 11 --out FOLDER
    python -m carspotter import FOLDER && python -m carspotter curate
    python benchmarks/detectors.py FOLDER/truth.csv

Use seeds that no limit was tuned on.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics.cluster import pair_confusion_matrix

from carspotter.paths import Study
from carspotter.photos.table import kind_of, read_curation

# The detector that looks for a kind of junk in truth.csv; all others are looked for by the ranking alone.
DETECTORS = {"too_dark": "too dark", "too_blurred": "blurred", "thumbnail": "too small", "other_model": "another model"}
WORST = 0.15  # share of the photos that a person should have to look at


def score_curation(table: pd.DataFrame, truth: Path) -> pd.DataFrame:
    """Return photos, recall, precision and worst_15 by kind of junk and of copy, from the truth.csv of rendered photos.

    Copies ("copy: cropped", …): recall counts pairs of copy and original that share bytes or a cluster; precision is
    that of all pairs in one cluster, the same for every kind. Junk: recall and precision of the detector of that kind
    (none for what the ranking alone finds), and the share of it among the worst-ranked 15 % of the photos kept.
    "all junk" sums up; its recall and precision are those of having any reason. Raises ValueError when the truth knows
    none of the photos.
    """
    facts = pd.read_csv(truth, dtype=str, keep_default_na=False)
    original = facts["duplicate_of"].map(facts.set_index("file")["sha256"])
    facts["origin"] = original.fillna(facts["sha256"])
    facts = facts[facts["sha256"].isin(table["sha256"])]
    if facts.empty:
        raise ValueError(f"{truth}: knows none of these {len(table)} photos; is it the truth of another import?")
    photos = facts.drop_duplicates("sha256").set_index("sha256")
    cluster = table.set_index("sha256")["duplicate_cluster"]
    cluster = cluster.where(cluster != "", cluster.index)  # a photo that stands alone
    # Of all pairs of photos: those that share a cluster, and those of them that are one shot.
    (_, false), (_, true) = pair_confusion_matrix(photos["origin"], cluster[photos.index])
    precision = true / (true + false) if true + false else np.nan
    # Of a copy whose original was not collected there is no pair to be found.
    copies = facts[(facts["copy"] != "") & facts["origin"].isin(cluster.index)]
    hits = cluster[copies["sha256"]].to_numpy() == cluster[copies["origin"]].to_numpy()
    rows = [
        (f"copy: {kind}", len(hit), hit.mean(), precision, np.nan)
        for kind, hit in pd.Series(hits, index=copies["copy"], dtype=float).groupby(level=0)
    ]
    kept = table[table["sha256"].isin(photos.index) & (table["verdict"] == "keep")]
    kept = kept.sort_values(["score", "sha256"], ascending=[False, True]).set_index("sha256")
    kinds, found = photos.loc[kept.index, "kind"], kept["reason"].map(kind_of)
    junk, worst = kinds != "car", np.arange(len(kept)) < WORST * len(kept)
    asked = [(kind, kinds == kind, found == DETECTORS.get(kind, "none")) for kind in sorted(set(kinds[junk]))]
    for name, right, detected in [*asked, ("all junk", junk, found != "")]:
        if right.any():
            both = (right & detected).sum()
            share = both / detected.sum() if detected.any() else np.nan
            rows.append((name, right.sum(), both / right.sum(), share, worst[right].mean()))
    return pd.DataFrame(rows, columns=["kind", "photos", "recall", "precision", "worst_15"]).set_index("kind").round(3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--data", type=Path, help="holds curation.csv (default: data)")
    options = parser.parse_args()
    print(score_curation(read_curation(Study.open(data=options.data)), options.truth))
