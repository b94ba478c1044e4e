"""Journals -> one table of photos; the removal of a photo on request."""

import contextlib
import functools
import hashlib
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from carspotter.paths import Study, atomic_write
from carspotter.photos.archive import unpack_archive
from carspotter.photos.journal import Journal, hold, read_journal

# Kinds of photos that are no examples of a class: what an import says of them. Others have none.
UNUSABLE, OTHER_MODEL = "unusable", "other model"
COLUMNS = ["sha256", "path", "site", "label", "labels", "kind", "listings", "sites", "city", "width", "height", "bytes"]


def read_photos(data: Path) -> pd.DataFrame:
    """Join the journals of all sites into one table, one row per photo, sorted by sha256.

    Columns: COLUMNS. path is relative to `data`; labels (tuple) are more than one for a label conflict; kind is "",
    UNUSABLE or OTHER_MODEL; listings is a tuple of "site:listing"; width and height are in pixels as stored. Raises
    FileNotFoundError without journals and where a photo's bytes are missing.
    """
    data = Path(data)
    if not list(data.glob("raw/*/journal.jsonl")):
        unpack_archive(data)
    journals = _read_journals(data)
    if not journals:
        raise FileNotFoundError(f"{data / 'raw'}: no photos here yet; scrape a site or import a folder first")
    forgotten = read_forgotten(data)
    claims_of = defaultdict(list)
    for site, lines in journals.items():
        for sha256, claims in standing_claims(lines).items():
            claims_of[sha256] += [(site, claim) for claim in claims]
    stored = {file.stem: file for file in sorted(data.glob("raw/*/[0-9a-f][0-9a-f]/*.*"), reverse=True)}
    if missing := sorted(claims_of.keys() - stored.keys() - forgotten):
        raise FileNotFoundError(
            f"{data / 'raw'}: the bytes of {len(missing)} journalled photos are missing, {missing[0]} first; "
            f"import or scrape them again, or remove them for good with `forget`"
        )
    rows = []
    for sha256 in sorted(claims_of.keys() - forgotten):
        claims = [claim for _, claim in claims_of[sha256]]
        sites = tuple(sorted({site for site, _ in claims_of[sha256]}))
        labels = tuple(sorted({claim["label"] for claim in claims if claim.get("label")}))
        listings = {f"{site}:{claim['listing']}" for site, claim in claims_of[sha256] if claim.get("listing")}
        rows.append(
            {
                "sha256": sha256,
                "path": stored[sha256].relative_to(data).as_posix(),
                "site": sites[0],
                "label": next(iter(labels), None),
                "labels": labels,
                "kind": next((claim["kind"] for claim in claims if claim.get("kind")), ""),
                "listings": tuple(sorted(listings)),
                "sites": sites,
                "city": min((claim["city"] for claim in claims if claim.get("city")), default=None),
                **{key: claims[0][key] for key in ("width", "height", "bytes")},
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def standing_claims(lines: Iterable[dict]) -> dict[str, list[dict]]:
    """Return the "fetched" lines of each photo, by sha256, less those withdrawn after them."""
    claims = defaultdict(list)
    for line in lines:
        if line["status"] == "fetched":
            claims[line["sha256"]].append(line)
        elif line["status"] == "withdrawn":
            claims[line["sha256"]] = [claim for claim in claims[line["sha256"]] if claim["url"] != line["url"]]
    return {sha256: standing for sha256, standing in claims.items() if standing}


def find_photos(data: Path, hashes: Iterable[str]) -> dict[str, Path]:
    """Return the files of those photos that are on this machine, by sha256."""
    stored = {sha256: next(Path(data).glob(f"raw/*/{sha256[:2]}/{sha256}.*"), None) for sha256 in hashes}
    return {sha256: file for sha256, file in stored.items() if file}


def forget(data: Path, sha256: str) -> list[str]:
    """Delete a photo and every file made from it; its hash stays in the journals and is never fetched again.

    Returns the deleted files, relative to `data`. Raises RuntimeError while a crawl writes to a journal.
    """
    data = Path(data)
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256: 64 hexadecimal digits name a photo")
    known = False
    with contextlib.ExitStack() as locks:
        for journal in sorted(data.glob("raw/*/journal.jsonl")):
            busy = f"{journal.parent}: a crawl or an import is writing here; stop it first, it goes on where it was"
            locks.enter_context(hold(journal.parent / ".lock", busy))
            known = _bury(journal, sha256) or known
    if not known:
        raise ValueError(f"{sha256}: no journal under {data / 'raw'} knows this photo")
    patterns = [f"kaggle/{file.name}" for file in data.glob("kaggle/*.zip") if _may_hold(file, sha256)]
    patterns += [f"raw/*/{sha256[:2]}/*{sha256}*", "images/*.part", "fingerprints*"]
    patterns += ["reports/**/*.html", "reports/**/*.ipynb"]  # any may show it
    for contents in data.glob("images/*.txt"):
        if sha256 in contents.read_text().split():
            patterns.append(f"images/{contents.stem}.*")
    doomed = sorted({file for pattern in patterns for file in data.glob(pattern)})
    for file in doomed:
        file.unlink()
    return [file.relative_to(data).as_posix() for file in doomed]


def _may_hold(archive: Path, sha256: str) -> bool:
    """Tell whether a file of this hash is in a zip file, or in one that cannot be read whole."""
    try:
        with zipfile.ZipFile(archive) as files:
            return any(hashlib.sha256(files.read(name)).hexdigest() == sha256 for name in files.namelist())
    except (zipfile.BadZipFile, EOFError):
        return True


def _bury(journal: Path, sha256: str) -> bool:
    """Write a tombstone for every address of a photo; say whether the journal knows it."""
    lines = [line for line in read_journal(journal) if line["sha256"] == sha256]
    buried = {line["url"] for line in lines if line["status"] == "forgotten"}
    # The tombstones come first: if we are killed between the two steps, asking again finishes the job.
    with Journal(journal) as tombstones:
        for line in {line["url"]: line for line in lines if line["url"] not in buried}.values():
            tombstones.append(retract(line, "forgotten", "removal requested"))
    return bool(lines)


def retract(claim: dict, status: str, reason: str) -> dict:
    """Return the journal line after which a claim no longer counts; `status`: forgotten or withdrawn."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return {"url": claim["url"], "time": time, "status": status, "reason": reason, "sha256": claim["sha256"]}


def read_forgotten(data: Path) -> set[str]:
    """Return the hashes of the photos that were removed on request."""
    journals = _read_journals(data).values()
    return {line["sha256"] for lines in journals for line in lines if line["status"] == "forgotten"}


def read_removed(data: Path) -> set[str]:
    """Return the hashes of forgotten photos and of those taken out of all folders they were imported from."""
    journals = _read_journals(data).values()
    withdrawn = {line["sha256"] for lines in journals for line in lines if line["status"] == "withdrawn"}
    return read_forgotten(data) | withdrawn.difference(*map(standing_claims, journals))


def _read_journals(data: Path) -> dict[str, tuple[dict, ...]]:
    """Return the lines of all journals by site, parsed once per process as long as they do not change."""
    journals = sorted(Path(data).glob("raw/*/journal.jsonl"))
    return {file.parent.name: _parse(file, file.stat().st_size, file.stat().st_mtime_ns) for file in journals}


@functools.lru_cache(maxsize=16)
def _parse(journal: Path, size: int, changed: int) -> tuple[dict, ...]:
    return tuple(read_journal(journal))


def read_curation(study: Study) -> pd.DataFrame:
    """Read `data/curation.csv`; empty cells are empty strings."""
    if not study.curation.exists():
        raise FileNotFoundError(f"{study.curation}: not curated yet; run `python -m carspotter curate` first")
    columns = ["sha256", "label", "verdict", "reason", "score", "duplicate_cluster", "car"]
    return read_table(study.curation, columns).astype({"score": float})


def read_table(file: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file that has these columns, all as text."""
    remedy = "save it with commas and in UTF-8, or restore it (from git, a backup or the command that wrote it)"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:  # of the encoding, or of the table's shape
        raise ValueError(f"{file}: not a table ({error}); {remedy}") from None
    if not set(columns) <= set(table.columns):
        raise ValueError(f"{file}: needs the columns {', '.join(columns)}, has {', '.join(table.columns)}; {remedy}")
    return table


def write_table(file: Path, table: pd.DataFrame, **options) -> None:
    """Write a CSV file, whole or not at all; `options` as in `to_csv`."""
    with atomic_write(file) as part:
        table.to_csv(part, index=False, lineterminator="\n", **options)


def kind_of(reason: str) -> str:
    """Return the kind of a reason: the part before its colon."""
    return reason.partition(":")[0]


def slugify(name: str) -> str:
    """Turn a name in any script into a label: lower-case letters without Latin accents, digits and single hyphens."""
    plain = re.sub("([a-zA-Z])[\u0300-\u036f]+", r"\1", unicodedata.normalize("NFKD", name))
    plain = unicodedata.normalize("NFC", plain).lower()
    kept = (letter if unicodedata.category(letter)[0] in "LNM" else "-" for letter in plain)
    return re.sub("-+", "-", "".join(kept)).strip("-")
