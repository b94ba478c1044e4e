"""Read, append to and repair JSON-lines files, and lock what belongs to one process at a time.

Lines that were written whole stay; a torn last line is cut off. Imports nothing of the package: the scraper uses it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor


class JournalDamaged(ValueError):
    """A line of a journal, not the last one, is not JSON; the message names file and line and says what to do."""


class Busy(RuntimeError):
    """Another process holds a lock."""


class Journal(contextlib.AbstractContextManager):
    """An append-only file of JSON lines, held open; the caller ensures by `hold` that one process appends at a time."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        repair_journal(self.path)
        # Unbuffered: after a full disk no half-written buffer waits to be written again.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held as long as the journal is)

    def append(self, line: dict, sync: bool = True) -> int:
        """Write one line and return its offset in the file; with `sync` it is on the disk then."""
        place = os.fstat(self._file.fileno()).st_size
        try:
            text = json.dumps(line, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # what UTF-8 lacks, such as half a surrogate pair in a file's name
            text = json.dumps(line).encode()
        rest = memoryview(text + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # Another thread may find room later, and would write behind half a line.
            with contextlib.suppress(OSError):
                self._file.truncate(place)
            raise
        if sync:
            os.fsync(self._file.fileno())
        return place

    def replay(self) -> Iterator[tuple[int, dict]]:
        """Yield every line after its offset in the file. Raises JournalDamaged."""
        return _replay(self.path)

    def read(self, place: int) -> dict:
        """Return the line at an offset of the file."""
        with open(self.path, "rb") as lines:
            lines.seek(place)
            return json.loads(lines.readline())

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *_) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[dict]:
    """Yield the lines of a journal, none if there is no file; a torn last line is left out. Raises JournalDamaged."""
    return (line for _, line in _replay(path))


def append_line(path: Path, line: dict) -> None:
    """Add a line that survives a kill and a power cut, while other processes may add theirs."""
    with hold(path.with_name(f".{path.name}.lock")), Journal(path) as journal:
        journal.append(line)


def repair_journal(path: Path) -> None:
    """Cut off a torn last line; one that only lacks its newline gets it."""
    if not path.exists():
        return
    with open(path, "r+b") as lines:
        end = start = lines.seek(0, os.SEEK_END)
        tail = b""
        while start > 0 and b"\n" not in tail:  # from the end: a journal may be long
            start = max(0, start - 4096)
            lines.seek(start)
            tail = lines.read(end - start)
        tail = tail[tail.rfind(b"\n") + 1 :]
        if _is_whole(tail):
            lines.write(b"\n")
        elif tail:
            lines.truncate(end - len(tail))


@contextlib.contextmanager
def hold(lock: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file for this process, waiting for another holder; with `busy`, raise Busy with this message."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        if not lock_descriptor(file.fileno(), blocking=busy is None):
            raise Busy(busy)
        yield


def _replay(path: Path) -> Iterator[tuple[int, dict]]:
    if not Path(path).exists():
        return
    place = 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and not _is_whole(line):
                return
            try:
                content = json.loads(line)
            except ValueError:
                raise JournalDamaged(
                    f"{path}, line {number}: not JSON ({line[:60]!r}); correct or delete this line, then try again"
                ) from None
            yield place, content
            place += len(line)


def _is_whole(line: bytes) -> bool:
    """Return whether a line without its newline is whole: no part of an object is an object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
