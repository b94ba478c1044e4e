"""The curation of a study on one page: how much junk, of which kind, what is left of it, and which copies."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from carspotter.curation.reviews import read_audit, read_reviews
from carspotter.paths import Study, atomic_write
from carspotter.photos.decoding import UnreadablePhoto, decode
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import kind_of, read_curation, read_photos

EXAMPLES, SIDE = 8, 200  # photos shown for each reason, and their longest side in pixels


def count_duplicates(study: Study) -> dict[str, int]:
    """Count clusters of copies and where they reach: within a listing, across listings, and across parts of the split.

    Where there is no split yet, none of its parts is counted.
    """
    table = read_curation(study)
    listings = read_photos(study.data).set_index("sha256")["listings"]
    splits = read_splits(study).set_index("sha256")["split"] if study.splits.exists() else pd.Series(dtype=str)
    clusters = table[table["duplicate_cluster"] != ""].groupby("duplicate_cluster")["sha256"].agg(list)
    counts = Counter({"clusters": 0, "across listings": 0, "across parts of the split": 0, "surplus copies": 0})
    for photos in clusters:
        cars = set(itertools.chain.from_iterable(listings[sha256] for sha256 in photos))
        parts = {splits.get(sha256, "excluded") for sha256 in photos} - {"excluded"}
        counts["clusters"] += 1
        counts["surplus copies"] += len(photos) - 1
        counts["across listings"] += len(cars) > 1
        counts["across parts of the split"] += len(parts) > 1
    return dict(counts)


def write_report(study: Study, audit_seed: int = 0) -> Path:
    """Write `data/reports/curation-STUDY.html`, which shows photos and so is not in git; return its path.

    The junk left is estimated from the audit drawn by `audit_seed`, if somebody has looked at any of it.
    """
    table = read_curation(study)
    files = read_photos(study.data).set_index("sha256")
    kinds = table["reason"].map(kind_of).replace("", "nothing found")
    counts = pd.crosstab(kinds, table["verdict"]).rename_axis(index="reason", columns=None)
    grids = []
    for kind, part in table.groupby(kinds):
        shown = part.sort_values(["score", "sha256"], ascending=[False, True]).head(EXAMPLES)
        pictures = "".join(
            figure(study.data / files.at[row.sha256, "path"], f"{row.label}, {row.score:.2f}. {row.reason}")
            for row in shown.itertuples()
        )
        grids.append(f"<h2>{html.escape(kind)}: {len(part):,}</h2><div>{pictures}</div>")
    by_person = read_reviews(study.data).drop_duplicates("sha256", keep="last")
    lines = [
        f"{len(table):,} photos, {(table['verdict'] == 'keep').sum():,} kept, {len(by_person):,} decided by a person, "
        f"{(by_person['verdict'] == 'reject').sum():,} rejected",
        str(read_audit(study, len(table), audit_seed)),
        ", ".join(f"{name}: {count:,}" for name, count in count_duplicates(study).items()),
    ]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    page = PAGE.format(
        title=f"Curation of {html.escape(study.name)}",
        items=items,
        table=counts.to_html(border=0),
        grids="".join(grids),
    )
    path = study.data / "reports" / f"curation-{study.name}.html"
    with atomic_write(path) as part_file:
        part_file.write_text(page, encoding="utf-8")
    return path


def figure(path: Path, caption: str) -> str:
    """Return a <figure> that holds a small copy of a photo, grey where it cannot be decoded."""
    try:
        image, _ = decode(path, at_least=SIDE // 2, verify=False)
    except (UnreadablePhoto, OSError):
        image = Image.fromarray(np.full((SIDE * 3 // 4, SIDE, 3), 90, np.uint8))
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=70)
    picture = base64.b64encode(stream.getvalue()).decode()
    caption = html.escape(caption)
    return f'<figure><img alt="" src="data:image/jpeg;base64,{picture}"><figcaption>{caption}</figcaption></figure>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ margin: 2rem 0 .5rem; font-size: 1.1rem; }} h2::first-letter {{ text-transform: uppercase; }}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .8rem; }}
figure {{ margin: 0; }} img {{ max-width: 100%; display: block; }} figcaption {{ font-size: .75rem; color: #566; }}
figcaption {{ overflow-wrap: anywhere; }} .group {{ grid-column: span 2; border: 1px solid #c8d0d8; padding: .5rem; }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; }}
</style></head><body><h1>{title}</h1><ul>{items}</ul>{table}{grids}</body></html>
"""
