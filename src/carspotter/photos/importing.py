"""Import a folder of photos, one sub-folder per class."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pandas as pd

from carspotter.paths import atomic_write
from carspotter.photos.decoding import FORMATS, LIMITS, Facts, UnreadablePhoto, inspect
from carspotter.photos.folders import Found, Job, find_files, name_listings, name_some
from carspotter.photos.images import in_threads
from carspotter.photos.journal import Journal, hold, read_journal
from carspotter.photos.table import read_forgotten, retract, standing_claims


@dataclass(frozen=True)
class ImportReport:
    """What an import did, by label; listings and groups are counted before near-duplicates are searched."""

    photos: pd.DataFrame
    refused: pd.DataFrame
    with_listing: int
    without: int
    groups: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self.photos.to_string()]
        if len(self.refused):
            lines += [f"refused: {len(self.refused)}", *(f"  {r.file}: {r.reason}" for r in self.refused.itertuples())]
        lines += [f"NOTE {note}" for note in self.notes]
        lines.append(
            f"{self.with_listing + self.without:,} photos in {len(self.photos)} classes: {self.with_listing:,} with a "
            f"listing, {self.without:,} without, {self.groups:,} groups"
        )
        return "\n".join(lines)


def import_folder(
    data: Path,
    folder: Path | None,
    classes: list[str] | None = None,
    site: str = "import",
    show_progress: bool = True,
    rejects: Path | None = None,
    others: Path | None = None,
    listing_from: str = "auto",
    ignore_split: bool = False,
    replace_all: bool = False,
) -> ImportReport:
    """Copy the photos of FOLDER/<class>/… into `data/raw/<site>/` and journal the outcome of every file.

    FOLDER/listings.csv (columns file, listing, city) says which photos show one car; else, by `listing_from`, the
    sub-folder of a class ("folder"), a name <listing>__<number>.<ext> ("name"), either ("auto") or nothing ("none").
    `rejects` and `others`: folders of unusable photos and of other models. `ignore_split`: pool
    FOLDER/{train,val,test}/<class>. Earlier labels and listings of photos in the folder are replaced; `replace_all`
    also withdraws photos that are no longer there. Importing again adds nothing; a killed import goes on.
    """
    data = Path(data)
    folder, rejects, others = (given and Path(given) for given in (folder, rejects, others))
    found = find_files(folder, classes, rejects, others, ignore_split)
    jobs = name_listings(found, folder and folder / "listings.csv", listing_from)
    store = data / "raw" / site
    journal_path = store / "journal.jsonl"
    with hold(store / ".lock"):
        earlier = list(read_journal(journal_path))
        standing = standing_claims(earlier)
        refused_before = {_content(line) for line in earlier if line["status"] == "refused"}
        forgotten = read_forgotten(data)
        counts = pd.DataFrame(0, index=pd.Index(found.labels, name="label"), columns=["new", "known", "refused"])
        refused, lines = list(found.left_out), defaultdict(list)
        with Journal(journal_path) as journal:
            write = partial(journal.append, sync=False)
            results = in_threads(partial(_read, store, forgotten), jobs, "import", "files", show_progress)
            for job, line in zip(jobs, results, strict=True):
                if line["status"] == "refused":
                    refused.append((job.name, line["reason"]))
                    counts.loc[job.row, "refused"] += 1
                    if _content(line) not in refused_before:
                        write(line)
                    continue
                lines[line["sha256"]].append(line)
                before = [was for was in standing.get(line["sha256"], ()) if was["url"] == line["url"]]
                counts.loc[job.row, "known" if line["sha256"] in standing else "new"] += 1
                if not any(_content(was) == _content(line) for was in before):
                    if before:
                        write(retract(line, "withdrawn", "imported again with another label, listing or city"))
                    write(line)
            notes = found.notes + _override(standing, lines, listing_from, write)
            notes += _missing_photos(standing, lines, found, replace_all, write)
    with_listing = sum(any(line["listing"] for line in claims) for claims in lines.values())
    listings = {line["listing"] for claims in lines.values() for line in claims if line["listing"]}
    if lines and not listings:
        notes.append(
            "no photo has a listing: what shows one car is kept on one side only where the pixels tell; say it by "
            "sub-folders (class/car/photo.jpg), by names (car__1.jpg) or in listings.csv (columns file, listing)"
        )
    without, refused = len(lines) - with_listing, pd.DataFrame(refused, columns=["file", "reason"])
    return ImportReport(counts, refused, with_listing, without, len(listings) + without, tuple(notes))


def _content(line: dict) -> tuple:
    """Return all of a journal line but its time."""
    return tuple(line.get(key) for key in ("url", "sha256", "reason", "label", "kind", "listing", "city"))


def _override(standing: dict, lines: dict, listing_from: str, write: Callable[[dict], None]) -> list[str]:
    """Withdraw earlier claims that the folder now contradicts; return a note that lists them."""
    changes = []
    for sha256, now in lines.items():
        for was in standing.get(sha256, ()):
            same = [line for line in now if line["url"] == was["url"]]
            moved = not same and (
                any((line["label"], line.get("kind")) != (was["label"], was.get("kind")) for line in now)
                or any(line["listing"] for line in now)
                or listing_from == "none"
            )
            if moved:
                write(retract(was, "withdrawn", f"now {now[0]['url'].removeprefix('import:')}"))
            if moved or same:
                new = (same or now)[0]
                told = [
                    f"{key} {was.get(key) or 'none'} -> {new.get(key) or 'none'}"
                    for key in ("label", "kind", "listing")
                    if was.get(key) != new.get(key)
                ]
                if told:
                    changes.append(f"{new['url'].removeprefix('import:')} ({', '.join(told)})")
    if not changes:
        return []
    return [
        f"the folder's present state replaces what was imported before for {len(changes)} photos: "
        f"{name_some(changes)}; to undo, change it back and import again"
    ]


def _missing_photos(
    standing: dict, lines: dict, found: Found, replace_all: bool, write: Callable[[dict], None]
) -> list[str]:
    """Name, or with `replace_all` withdraw, earlier photos of these class folders that are no longer in them."""
    tops = tuple(f"import:{name}/" for name in found.folders)
    gone = [
        claim
        for sha256, claims in standing.items()
        if sha256 not in lines
        for claim in claims
        if claim["url"].startswith(tops)
    ]
    if not gone:
        return []
    names = name_some([claim["url"].removeprefix("import:") for claim in gone])
    if not replace_all:
        return [
            f"{len(gone)} photos imported earlier are not in this folder now and stay ({names}); import again with "
            f"--replace to take them out, or `forget` one for good"
        ]
    for claim in gone:
        write(retract(claim, "withdrawn", "no longer in the folder"))
    return [f"{len(gone)} photos that are no longer in this folder were taken out: {names}; put them back to undo"]


def _read(store: Path, forgotten: set[str], job: Job) -> dict:
    """Return the journal line of a file, whose bytes are kept if it is a photo."""
    line = {
        "url": f"import:{job.name}",
        "page_url": None,
        "listing": job.listing,
        "label": job.label,
        "city": job.city,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    } | ({"kind": job.kind} if job.kind else {})
    try:
        return line | {"status": "fetched", "reason": None} | _store(job.file, store, forgotten)
    except UnreadablePhoto as refusal:
        nothing = dict.fromkeys(("sha256", "bytes", "width", "height"))
        return line | {"status": "refused", "reason": refusal.reason} | nothing


def _store(file: Path, site_folder: Path, forgotten: set[str]) -> dict:
    """Verify a photo by decoding it and keep its bytes."""
    photo, sha256, facts = read_photo(file)
    if sha256 in forgotten:
        raise UnreadablePhoto(file.name, "forgotten on request; its hash is a tombstone")
    kept = site_folder / sha256[:2] / f"{sha256}.{FORMATS[facts.format]}"
    # A stored file that was emptied or changed is repaired.
    if not kept.exists() or kept.stat().st_size != len(photo) or kept.read_bytes() != photo:
        with atomic_write(kept) as part:
            part.write_bytes(photo)
    return {"sha256": sha256, "bytes": len(photo), "width": facts.width, "height": facts.height}


def read_photo(file: Path) -> tuple[bytes, str, Facts]:
    """Return a photo's bytes, their SHA-256 and its facts. Raises UnreadablePhoto unless it can be decoded whole."""
    try:
        with open(file, "rb") as content:
            photo = content.read(LIMITS.bytes + 1)  # one more than `inspect` allows
    except OSError as error:
        raise UnreadablePhoto(file.name, f"cannot be read: {error.strerror}; allow it (chmod)") from error
    return photo, hashlib.sha256(photo).hexdigest(), inspect(photo)
