"""Journals and class folders -> one table of photos; the import of a folder; the removal of a photo on request."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from carspotter.paths import Study
from carspotter.photos.archive import unpack_archive
from carspotter.photos.decoding import FORMATS, Limits, UnreadablePhoto, inspect
from carspotter.photos.images import CHUNK, WORKERS
from carspotter.photos.journal import Journal, hold, read_journal
from carspotter.progress import progress_bar

IGNORED_FILES = {"thumbs.db", "desktop.ini"}
PARTS_OF_A_SPLIT = {"train", "training", "val", "valid", "validation", "test", "testing"}
COLUMNS = ["sha256", "path", "site", "label", "labels", "listings", "sites", "city", "width", "height", "bytes"]


@dataclass(frozen=True)
class ImportReport:
    """What an import did: `photos` counts new and known photos per label, `refused` has the columns file and reason."""

    photos: pd.DataFrame
    refused: pd.DataFrame

    def __str__(self) -> str:
        lines = [self.photos.to_string()]
        if len(self.refused):
            lines += [f"refused: {len(self.refused)}", *(f"  {r.file}: {r.reason}" for r in self.refused.itertuples())]
        return "\n".join(lines)


def read_photos(data: Path) -> pd.DataFrame:
    """Join the journals of all sites into one table, one row per photo, sorted by sha256.

    Columns: sha256, path (posix, relative to `data`), site, label, labels (tuple: more than one is a label conflict),
    listings (tuple of "site:listing"), sites (tuple), city, width, height (pixels as stored), bytes. Forgotten photos
    are left out. Raises FileNotFoundError when there is no journal or when a photo's bytes are missing.
    """
    data = Path(data)
    if not list(data.glob("raw/*/journal.jsonl")):
        unpack_archive(data)
    journals = sorted(data.glob("raw/*/journal.jsonl"))
    if not journals:
        raise FileNotFoundError(f"{data / 'raw'}: no photos here yet; scrape a site or import a folder first")
    forgotten, lines = set(), defaultdict(list)
    for journal in journals:
        for line in read_journal(journal):
            if line["status"] == "forgotten":
                forgotten.add(line["sha256"])
            elif line["status"] == "fetched":
                lines[line["sha256"]].append((journal.parent.name, line))
    stored = {file.stem: file for file in sorted(data.glob("raw/*/[0-9a-f][0-9a-f]/*.*"), reverse=True)}
    missing = sorted(lines.keys() - stored.keys() - forgotten)
    if missing:
        raise FileNotFoundError(
            f"{data / 'raw'}: the bytes of {len(missing)} journalled photos are missing, {missing[0]} first; "
            f"import or scrape them again, or remove them for good with `forget`"
        )
    rows = []
    for sha256 in sorted(lines.keys() - forgotten):
        sites = tuple(sorted({site for site, _ in lines[sha256]}))
        claims = [line for _, line in lines[sha256]]
        labels = tuple(sorted({line["label"] for line in claims if line.get("label")}))
        listings = tuple(sorted({f"{site}:{line['listing']}" for site, line in lines[sha256] if line.get("listing")}))
        cities = sorted({line["city"] for line in claims if line.get("city")})
        rows.append(
            {
                "sha256": sha256,
                "path": stored[sha256].relative_to(data).as_posix(),
                "site": sites[0],
                "label": labels[0] if labels else None,
                "labels": labels,
                "listings": listings,
                "sites": sites,
                "city": cities[0] if cities else None,
                "width": claims[0]["width"],
                "height": claims[0]["height"],
                "bytes": claims[0]["bytes"],
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def find_photos(data: Path, hashes: Iterable[str]) -> dict[str, Path]:
    """Give the files of those photos that are on this machine, by sha256; recorded runs can be read without photos."""
    stored = {sha256: next(Path(data).glob(f"raw/*/{sha256[:2]}/{sha256}.*"), None) for sha256 in hashes}
    return {sha256: file for sha256, file in stored.items() if file}


def import_folder(
    data: Path,
    folder: Path,
    classes: list[str] | None = None,
    site: str = "import",
    show_progress: bool = True,
) -> ImportReport:
    """Copy the photos of FOLDER/<class>/… into `data/raw/<site>/` and journal every file's fate.

    A file named `<listing>__<number>.<ext>` belongs to that listing; FOLDER/listings.csv (columns file, listing, city)
    says the same for other names. Files that are no photos are refused, with their reasons, and stop nothing. Importing
    again adds nothing; an import that was killed goes on where it stopped. Raises FileNotFoundError for a missing
    folder and ValueError for a folder without class folders, an unknown class or an empty one.
    """
    data, folder = Path(data), Path(folder)
    files = _find_files(folder, classes)
    listings = _read_listings(folder)
    journal_path = data / "raw" / site / "journal.jsonl"
    journal_path.parent.mkdir(parents=True, exist_ok=True)
    journalled = {_fate(line) for line in read_journal(journal_path)}
    forgotten = read_forgotten(data)

    def read(job: tuple[str, Path]) -> dict:
        label, file = job
        relative = file.relative_to(folder).as_posix()
        listing, city = listings.get(relative) or (_listing_in_name(file), None)
        line = {
            "url": f"import:{relative}",
            "page_url": None,
            "listing": listing,
            "label": label,
            "city": city,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            return line | {"status": "fetched", "reason": None} | _store(file, data / "raw" / site, forgotten)
        except UnreadablePhoto as refusal:
            nothing = dict.fromkeys(("sha256", "bytes", "width", "height"))
            return line | {"status": "refused", "reason": refusal.reason} | nothing

    jobs = [(label, file) for label, found in files.items() for file in found]
    counts = pd.DataFrame(0, index=pd.Index(files, name="label"), columns=["new", "known", "refused"])
    refused = []
    with (
        Journal(journal_path) as journal,
        ThreadPoolExecutor(WORKERS) as pool,
        progress_bar(len(jobs), "import", "files", show_progress) as progress,
    ):
        for start in range(0, len(jobs), CHUNK):
            for line in pool.map(read, jobs[start : start + CHUNK]):
                progress.update()
                known = _fate(line) in journalled
                if line["status"] == "refused":
                    refused.append((line["url"].removeprefix("import:"), line["reason"]))
                    counts.loc[line["label"], "refused"] += 1
                else:
                    counts.loc[line["label"], "known" if known else "new"] += 1
                if not known:
                    journal.append(line, sync=False)
    return ImportReport(counts, pd.DataFrame(refused, columns=["file", "reason"]))


def forget(data: Path, sha256: str, reason: str = "removal requested") -> list[str]:
    """Delete a photo's bytes everywhere under `data`; its hash stays in the journals and is never fetched again.

    Gives the deleted files, relative to `data`. The original goes, and so does every file derived from it: image
    arrays and fingerprints, reports (rebuilt on demand) and its copies laid out for an upload. Raises ValueError for a
    hash that no journal knows, RuntimeError while a crawl writes to a journal.
    """
    data = Path(data)
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256: 64 hexadecimal digits name a photo")
    known = False
    with contextlib.ExitStack() as locks:
        for journal in sorted(data.glob("raw/*/journal.jsonl")):
            _lock(journal.parent, locks)
            known = _bury(journal, sha256, reason) or known
    if not known:
        raise ValueError(f"{sha256}: no journal under {data / 'raw'} knows this photo")
    doomed = list(data.glob(f"raw/*/{sha256[:2]}/*{sha256}*"))
    for contents in data.glob("images/*.txt"):
        if sha256 in contents.read_text().split():
            doomed += [contents.with_suffix(".npy"), contents]
    doomed += [*data.glob("images/*.part"), *data.glob("fingerprints*")]
    doomed += [file for file in data.glob("reports/**/*") if file.suffix in (".html", ".ipynb")]  # any may show it
    uploads = (file for file in data.glob("kaggle/publish/**/*") if file.is_file())
    doomed += [file for file in uploads if hashlib.sha256(file.read_bytes()).hexdigest() == sha256]
    doomed = sorted(file for file in doomed if file.exists())
    for file in doomed:
        file.unlink()
    return [file.relative_to(data).as_posix() for file in doomed]


def _lock(folder: Path, locks: contextlib.ExitStack) -> None:
    """Keep a crawl, which holds the same lock, from writing to the journal; raises RuntimeError where one does."""
    locks.enter_context(
        hold(folder / ".lock", f"{folder}: a crawl is writing here; stop it first, it goes on where it was")
    )


def _bury(journal: Path, sha256: str, reason: str) -> bool:
    """Write a tombstone for every address of a photo; say whether the journal knows it."""
    lines = [line for line in read_journal(journal) if line["sha256"] == sha256]
    buried = {line["url"] for line in lines if line["status"] == "forgotten"}
    # The tombstones come first: if we are killed between the two steps, asking again finishes the job.
    with Journal(journal) as tombstones:
        for url in dict.fromkeys(line["url"] for line in lines):
            if url not in buried:
                time = datetime.now(UTC).isoformat(timespec="seconds")
                stone = {"url": url, "time": time, "status": "forgotten", "reason": reason, "sha256": sha256}
                tombstones.append(stone)
    return bool(lines)


def read_forgotten(data: Path) -> set[str]:
    """Give the hashes of the photos that were removed on request."""
    journals = Path(data).glob("raw/*/journal.jsonl")
    return {line["sha256"] for journal in journals for line in read_journal(journal) if line["status"] == "forgotten"}


def read_curation(study: Study) -> pd.DataFrame:
    """Read `data/curation.csv`; empty cells are empty strings. Raises FileNotFoundError when nothing was curated."""
    if not study.curation.exists():
        raise FileNotFoundError(f"{study.curation}: not curated yet; run `python -m carspotter curate` first")
    table = pd.read_csv(study.curation, dtype=str, keep_default_na=False)
    return table.astype({"score": float})


def kind_of(reason: str) -> str:
    """Give the kind of a reason: what stands before its colon."""
    return reason.partition(":")[0]


def slugify(name: str) -> str:
    """Turn a folder's or a model's name into a label: lower-case ASCII letters, digits and single hyphens."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")


def _find_files(folder: Path, classes: list[str] | None) -> dict[str, list[Path]]:
    """Give the files of each class, by label, in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = defaultdict(list)
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith((".", "__")):
            label = slugify(child.name)
            if not label:
                raise ValueError(f"{child}: no label can be made of this name; use letters and digits")
            found[label] += sorted(
                file
                for file in child.rglob("*")
                if file.is_file() and not file.name.startswith(".") and file.name.lower() not in IGNORED_FILES
            )
    if not found:
        raise ValueError(f"{folder}: no class folders; photos belong in {folder.name}/<class>/, one folder per class")
    if found.keys() <= PARTS_OF_A_SPLIT:
        raise ValueError(
            f"{folder}: {', '.join(found)} are parts of a split, not classes; import the folders inside them instead, "
            f"one by one (the split is made here)"
        )
    wanted = [slugify(name) for name in classes] if classes else list(found)
    for label in wanted:
        if label not in found:
            raise ValueError(f"{folder}: no class {label!r}; there are {', '.join(found)}")
        if not found[label]:
            raise ValueError(f"{folder}: the class folder {label!r} is empty; fill it or name the classes you want")
    return {label: found[label] for label in dict.fromkeys(wanted)}


def _read_listings(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    table = folder / "listings.csv"
    if not table.exists():
        return {}
    rows = pd.read_csv(table, dtype=str)
    if not {"file", "listing"} <= set(rows.columns):
        raise ValueError(f"{table}: needs the columns file and listing, has {', '.join(rows.columns)}")
    rows = rows.reindex(columns=["file", "listing", "city"]).astype(object)
    rows = rows.where(rows.notna(), None)
    return {file: (listing, city) for file, listing, city in rows.itertuples(index=False)}


def _listing_in_name(file: Path) -> str | None:
    listing, separator, number = file.stem.rpartition("__")
    return listing if separator and listing and number.isdigit() else None


def _fate(line: dict) -> tuple:
    """Say what makes a journal line the same as an earlier one: everything but the time."""
    return tuple(line.get(key) for key in ("url", "sha256", "status", "reason", "label", "listing", "city"))


def _store(file: Path, site_folder: Path, forgotten: set[str]) -> dict:
    """Verify a photo by decoding it and keep its bytes, written under another name first. Raises UnreadablePhoto."""
    try:
        if file.stat().st_size > Limits.bytes:
            raise UnreadablePhoto(file.name, f"larger than the limit of {Limits.bytes:,} bytes")
        photo = file.read_bytes()
    except OSError as error:
        raise UnreadablePhoto(file.name, f"cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(photo).hexdigest()
    if sha256 in forgotten:
        raise UnreadablePhoto(file.name, "forgotten on request; its hash is a tombstone")
    facts = inspect(photo)
    kept = site_folder / sha256[:2] / f"{sha256}.{FORMATS[facts.format]}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        # The same bytes may lie in two class folders and be stored by two threads at once.
        part = kept.with_name(f".{sha256}.{os.getpid()}.{threading.get_ident()}.part")
        part.write_bytes(photo)
        os.replace(part, kept)
    return {"sha256": sha256, "bytes": len(photo), "width": facts.width, "height": facts.height}
