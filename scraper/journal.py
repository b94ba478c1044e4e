"""What stays: the journal of every URL's outcome, files written whole or not at all, one scraper per folder."""

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from carspotter.photos.journal import Busy, JournalDamaged, hold
from carspotter.photos.journal import Journal as Lines
from scraper.closing import CrawlStopped


class StorageError(CrawlStopped):
    """The folder cannot be written (full, read-only) or is in use."""


@dataclass(slots=True)
class Outcome:
    """What the journal knows of one URL: its newest status, and the place of the newest line in the file.

    `shown_by` has the same for each (listing, label) that showed the URL. `reason` and `judged_by`, the settings that
    led to it, are kept for refusals only, `content`, which is the same for the same bytes in this run, for photos that
    were fetched. The lines themselves stay on the disk: a week's crawl has hundreds of thousands.
    """

    status: str
    place: int
    shown_by: dict[tuple[str | None, str | None], int]
    reason: str | None = None
    judged_by: dict | None = None
    content: int | None = None

    @property
    def is_final(self) -> bool:
        return self.status != "failed"


class Journal(AbstractContextManager):
    """The record of one site folder, held open and locked: each photo URL's outcome, and the pages that were read.

    `journal.jsonl` has a line per photo URL; `pages.jsonl` has a line per page, with its archived HTML. Both are
    replayed at the start. Raises StorageError if another scraper holds the folder or it cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        # hashes of photos that somebody asked to be removed, from this site or from one beside it
        self.forgotten: set[str] = set()
        # listings' own pages whose photos all have their outcome, each with its label -> the line that says so
        self.collected: dict[tuple[str, str | None], dict] = {}
        busy = f"another scraper is at work in {folder}; wait for it, or give another --out"
        with ExitStack() as stack:
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(folder / ".lock", busy))  # as long as the journal is open
                self.is_new = not (folder / "journal.jsonl").exists()
                self._photos = stack.enter_context(Lines(folder / "journal.jsonl"))
                self._pages = stack.enter_context(Lines(folder / "pages.jsonl"))
                for leftover in folder.glob("**/*.part"):  # of a kill between writing and renaming
                    leftover.unlink()
                for beside in folder.parent.glob("*/journal.jsonl"):
                    self.forgotten |= _read_forgotten(beside)
                for place, line in self._photos.replay():
                    self._remember(line, place)
                for _, line in self._pages.replay():
                    self._note_collected(line)
            self._open = stack.pop_all()

    def _remember(self, line: dict, place: int) -> None:
        if url := line.get("url"):
            outcome = self.outcomes.setdefault(url, Outcome(line["status"], place, {}))
            outcome.status, outcome.place = line["status"], place
            is_refused = line["status"] == "refused"
            outcome.reason = sys.intern(line.get("reason") or "") if is_refused else None
            outcome.judged_by = line.get("judged_by") if is_refused else None
            outcome.content = hash(line.get("sha256")) if line["status"] == "fetched" else None
            outcome.shown_by[line.get("listing"), line.get("label")] = place

    def append(self, line: dict) -> None:
        """Record the outcome of a photo URL, with the time (UTC)."""
        with storage_errors(self.folder):
            self._remember(line, self._photos.append(line | _now()))

    def newest_line(self, url: str) -> dict:
        return self._photos.read(self.outcomes[url].place)

    def line_of(self, url: str, listing: str | None, label: str) -> dict | None:
        """Return the newest line of `url` as this listing showed it, or None if it did not."""
        place = self.outcomes[url].shown_by.get((listing, label))
        return None if place is None else self._photos.read(place)

    def append_page(self, line: dict) -> None:
        """Record what became of a page, with the time (UTC)."""
        with storage_errors(self.folder):
            self._pages.append(line | _now())
        self._note_collected(line)

    def _note_collected(self, line: dict) -> None:
        if line.get("status") == "collected":
            kept = ("refused", "judged_by", "read_by")
            self.collected[line["url"], line.get("label")] = {key: line[key] for key in kept if line.get(key)}

    def read_pages(self) -> Iterator[dict]:
        return (line for _, line in self._pages.replay())

    def close(self) -> None:
        self._open.close()

    def __exit__(self, *_) -> None:
        self.close()


def _now() -> dict:
    return {"time": datetime.now(UTC).isoformat(timespec="seconds")}


def _read_forgotten(journal: Path) -> set[str]:
    """Return the hashes that a journal marks as forgotten; lines that it cannot make sense of are passed over."""
    forgotten = set()
    with open(journal, "rb") as lines:
        for line in lines:
            if b'"forgotten"' in line:  # few lines are worth parsing
                with suppress(ValueError):
                    content = json.loads(line)
                    if content.get("status") == "forgotten":
                        forgotten.add(content["sha256"])
    return forgotten


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what keeps us from reading or writing the folder into a StorageError that says what to do."""
    try:
        yield
    except (Busy, JournalDamaged) as error:
        raise StorageError(str(error)) from error
    except OSError as error:
        raise StorageError(
            f"cannot write {error.filename or path}: {error.strerror or error}; make room or give --out another "
            "folder, then run the same command again: it goes on where it stopped"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, unless it is there, so that a kill or a power cut leaves the whole file or none.

    A temporary file in the same folder, synced, renamed, and the folder synced. Raises StorageError.
    """
    if path.exists():
        return
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def store_photo(folder: Path, sha256: str, extension: str, content: bytes) -> None:
    """Keep a photo's original bytes, once, as `<sha256[:2]>/<sha256>.<ext>`."""
    write_atomically(folder / sha256[:2] / f"{sha256}.{extension}", content)


def archive_page(folder: Path, html: str) -> Path:
    """Keep a page's HTML, compressed, as `pages/<sha256>.html.gz`, so that it can be parsed again offline."""
    content = html.encode()
    path = folder / "pages" / f"{hashlib.sha256(content).hexdigest()}.html.gz"
    write_atomically(path, gzip.compress(content, mtime=0))
    return path


def read_archived_page(path: Path) -> str:
    """Return the HTML that `archive_page` kept."""
    return gzip.decompress(path.read_bytes()).decode()
