"""Unpack a study's photos that come as one zip file."""

import json
import zipfile
from pathlib import Path

import pandas as pd

from carspotter.paths import Study, atomic_write, find_archive
from carspotter.progress import progress_bar


def unpack_archive(data: Path) -> bool:
    """Lay out the archive of `data` as scraper and reviewer would, journals last; return False without one."""
    if (archive := find_archive(data)) is None:
        return False
    root = zipfile.Path(archive) if archive.is_file() else archive
    entries = list(root.iterdir())
    journals = {entry.name: entry / "journal.jsonl" for entry in entries if (entry / "journal.jsonl").exists()}
    lines = {site: [json.loads(line) for line in file.read_bytes().splitlines()] for site, file in journals.items()}
    fetched = [(site, line) for site in lines for line in lines[site] if line["status"] == "fetched"]
    with progress_bar(len(fetched), f"unpack {archive.name}", "photos") as bar:
        for site, line in fetched:
            name = line["url"].rpartition("/")[2]
            photo = (root / site / line["label"] / name).read_bytes()
            stored = data / "raw" / site / line["sha256"][:2] / (line["sha256"] + Path(name).suffix)
            _write(stored, photo)
            bar.update()
    study = Study.open(data.name, data)
    if study.splits.exists():
        splits = pd.read_csv(study.splits, dtype=str, keep_default_na=False)
        labels = pd.DataFrame([line for _, line in fetched])[["sha256", "label"]]
        labels = labels.drop_duplicates().sort_values("sha256")
        sealed = labels[labels["sha256"].isin(splits.loc[splits["label"] == "", "sha256"])]
        _write(study.sealed, sealed.to_csv(index=False, lineterminator="\n").encode())
    for entry in entries:
        if entry.is_file():
            _write(data / entry.name, entry.read_bytes())
    for site, journal in journals.items():
        _write(data / "raw" / site / "journal.jsonl", journal.read_bytes())
    return True


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as part:
        part.write_bytes(content)
