"""Which files of a folder are photos of which class and listing."""

import csv
import io
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from carspotter.photos.table import OTHER_MODEL, UNUSABLE, slugify

LISTING_FROM = ("auto", "folder", "name", "none")
# The parts of a split, and what folders of them are called; a shot in two parts counts for the first of these.
PARTS = {"test": ("test", "testing"), "validation": ("validation", "valid", "val"), "train": ("train", "training")}
UNUSABLE_FOLDERS = {"unusable", "rejects", "rejected", "junk"}
OTHER_FOLDERS = {"other-model", "other-models", "others", "another-model"}
# What systems leave in folders of photos; whatever starts with a dot or a dollar sign goes as well.
SYSTEM_NAMES = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "recycler", "recycled"),
    *("system volume information", "lost+found", "__macosx", "__pycache__"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
NAMED = 8  # files named in a note, before "and 12 more"
WHOLE_CLASS = 3  # photos of a class from which a listing that holds them all is questioned


@dataclass(frozen=True)
class Job:
    """A file to import: `name` is its address in the journal, `inside` its path below the folder of its class."""

    file: Path
    name: str
    inside: PurePosixPath
    label: str | None
    kind: str | None = None
    listing: str | None = None
    city: str | None = None

    @property
    def row(self) -> str:
        return self.label or UNUSABLE


@dataclass
class Found:
    """The files of an import, what was left out and why, and notes."""

    jobs: list[Job] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # of classes, as their photos' names in the journal begin
    parts: list[str] = field(default_factory=list)  # of a split, where they are not pooled
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_system_name(name: str) -> bool:
    """Return whether a name is hidden or that of an operating system's own file or folder."""
    return name.startswith((".", "$")) or name.casefold() in SYSTEM_NAMES


def read_rows(file: Path, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> list[dict[str, str | None]]:
    """Read a table that a spreadsheet may have written: one dict of `needed` and `wanted` columns per row, "" as None.

    Separators , ; tab or |, perhaps after Excel's line "sep=;"; UTF-8, UTF-16 or Windows-1252; any case of the header.
    """
    content = file.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:64]  # the mark may be missing
    encodings = ("utf-16" if content[:1] != b"\0" else "utf-16-be",) if wide else ("utf-8-sig", "cp1252")
    try:
        text = content.decode(encodings[0])
    except UnicodeDecodeError:
        text = content.decode(encodings[-1], errors="replace")
    if text.startswith("sep="):
        text = text.partition("\n")[2]
    header = text.lstrip().partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=header.count))
    names = [name.strip().casefold() for name in next(rows, [])]
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"{file}: needs the columns {' and '.join(needed)}, has {', '.join(filter(None, names))[:200]!r}; "
            f"add {' and '.join(missing)} to its first line"
        )
    if twice := [name for name in (*needed, *wanted) if names.count(name) > 1]:
        raise ValueError(f"{file}: its first line names {twice[0]} {names.count(twice[0])} times; keep one")
    table = []
    for cells in rows:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise ValueError(
                f"{file}, line {rows.line_num}: {len(cells)} cells where the first line has {len(names)}; put a cell "
                f"that holds a comma into double quotes, or remove what is too much"
            )
        row = {name: cell.strip() or None for name, cell in zip(names, cells, strict=False)}
        if any(row.values()):
            table.append({name: row.get(name) for name in (*needed, *wanted)})
    return table


def find_files(
    folder: Path | None, classes: list[str] | None, rejects: Path | None, others: Path | None, ignore_split: bool
) -> Found:
    found, seen = Found(), set()
    if folder is not None:
        roots, loose = _list(folder), 0
        if parts := split_folders(folder):
            if not ignore_split:
                whole = {part_of(part.name) for part in parts} >= PARTS.keys()
                keep = f"`carspotter kaggle fetch --from {shlex.quote(str(folder))} --study NAME`"
                raise ValueError(
                    f"{folder}: {', '.join(part.name for part in parts)} are parts of a split, not classes. To keep "
                    f"this split: {keep if whole else 'add what it lacks of train, validation and test'}; to discard "
                    f"it and split anew: `carspotter import {shlex.quote(str(folder))} --ignore-split`"
                )
            roots = [child for part in parts for child in _list(part)]
        folders, unnamed = defaultdict(list), []
        for child in roots:
            if not child.is_dir():
                loose += child.name.casefold() != "listings.csv"
            elif label := slugify(child.name):
                folders[label].append(child)
            else:
                unnamed.append(child)
        if not folders and not unnamed:
            raise ValueError(
                f"{folder}: no class folders; photos belong in {folder.name}/<class>/, one folder per class"
            )
        wanted = [slugify(name) for name in classes] if classes else list(folders)
        for label in wanted:
            if label not in folders:
                raise ValueError(f"{folder}: no class {label!r}; there are {', '.join(folders)}")
            if len(names := sorted({child.name for child in folders[label]})) > 1:
                raise ValueError(
                    f"{folder}: the folders {' and '.join(map(repr, names))} would both become the class {label!r}; "
                    f"rename one, or put the photos into one folder if they are one class"
                )
        if unnamed and not classes:
            raise ValueError(f"{unnamed[0]}: no label can be made of this name; rename it, or name the --classes")
        if left := sorted(folders.keys() - set(wanted)):
            found.notes.append(f"left out, since --classes does not name them: {', '.join(left)}")
        if loose:
            found.notes.append(f"{loose} files lie outside the class folders and were left out")
        for label in dict.fromkeys(wanted):
            kind = kind_of_folder(label)
            for child in folders[label]:
                _add_files(found, child, child.relative_to(folder).as_posix(), label, kind, seen)
    for given, kind in ((rejects, UNUSABLE), (others, OTHER_MODEL)):
        if given is not None:
            _list(given)
            _add_files(found, given, given.resolve().name, slugify(kind), kind, seen)
    if not found.jobs:
        left_out = "".join(f"; {name}: {reason}" for name, reason in found.left_out[:NAMED])
        raise ValueError(f"{folder or rejects or others}: no files in its class folders{left_out}")
    return found


def find_files_of_any(folder: Path) -> Found:
    """Return the files of a folder in any layout, with or without parts of a split; classes are named by folders."""
    found = Found(parts=sorted(part.name for part in split_folders(folder)))
    for file in walk_files(folder, lambda path, why: found.notes.append(f"{path.relative_to(folder)}: {why}"), set()):
        name = PurePosixPath(file.relative_to(folder).as_posix())
        inside = name.parts[name.parts[0] in found.parts :]
        label = inside[0] if len(inside) > 1 else folder.name
        below = PurePosixPath(*inside[1:] or inside)
        found.jobs.append(Job(file, name.as_posix(), below, label, kind_of_folder(slugify(label))))
    rejects = "taken as examples of what to reject, not as a class; copies of them are looked for"
    found.notes += [f"{label}: {rejects}" for label in sorted({job.label for job in found.jobs if job.kind})]
    if not found.jobs:
        raise ValueError(f"{folder}: no files in it, but for what systems leave behind")
    return found


def split_folders(folder: Path) -> list[Path]:
    """Return the sub-folders that are parts of a split (train, val, test …), none where they are classes."""
    folders = [child for child in _list(folder) if child.is_dir()]
    parts = [child for child in folders if part_of(child.name)]
    return parts if len(parts) > 1 or parts == folders else []


def part_of(name: str) -> str | None:
    """Return which of PARTS a folder of this name holds, None where it is none of them."""
    return next((part for part, names in PARTS.items() if name.casefold() in names), None)


def kind_of_folder(label: str) -> str | None:
    """Return UNUSABLE or OTHER_MODEL for the label of a folder of such photos, None for a class."""
    return UNUSABLE if label in UNUSABLE_FOLDERS else OTHER_MODEL if label in OTHER_FOLDERS else None


def _list(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "not a folder; unzip it first if it is an archive" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}")
    return sorted(child for child in folder.iterdir() if not is_system_name(child.name))


def _add_files(found: Found, folder: Path, name: str, label: str, kind: str | None, seen: set) -> None:
    """Add the files of one class folder; below a folder of other models, a sub-folder names the model."""
    found.folders.append(name)
    before = len(found.left_out), len(found.jobs)
    if kind:
        what = "unusable photos, examples of what to reject" if kind == UNUSABLE else "photos of other models"
        found.notes.append(f"{name}: taken as {what}, not as a class")

    def leave_out(path: Path, why: str) -> None:
        found.left_out.append((f"{name}/{path.relative_to(folder).as_posix()}", why))

    for file in walk_files(folder, leave_out, seen):
        inside = PurePosixPath(file.relative_to(folder).as_posix())
        job = Job(file, f"{name}/{inside}", inside, None if kind == UNUSABLE else label, kind)
        if kind == OTHER_MODEL and len(inside.parts) > 1 and slugify(inside.parts[0]):
            job = replace(job, label=slugify(inside.parts[0]), inside=PurePosixPath(*inside.parts[1:]))
        found.jobs.append(job)
        if job.row not in found.labels:
            found.labels.append(job.row)
    if (len(found.left_out), len(found.jobs)) == before:
        found.notes.append(f"the class folder {name} is empty")


def walk_files(folder: Path, leave_out: Callable[[Path, str], None], seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files below a folder by name, following links once; `leave_out` is told what cannot be read."""
    try:
        place = folder.stat()
        children = _list(folder)
        if (place.st_dev, place.st_ino) in seen:
            leave_out(folder, "a link to a folder that was read already")
            return
    except OSError as error:
        leave_out(folder, f"cannot be read: {error.strerror}; allow it (chmod) or leave it")
        return
    seen.add((place.st_dev, place.st_ino))
    for child in children:
        try:
            if child.is_dir():
                yield from walk_files(child, leave_out, seen)
            elif child.exists():
                yield child
            else:
                leave_out(child, "a link that leads nowhere")
        except OSError as error:
            leave_out(child, f"cannot be read: {error.strerror}")


def name_listings(found: Found, table: Path | None, listing_from: str) -> list[Job]:
    """Return the jobs with their listings; notes question listings that look wrong."""
    if listing_from not in LISTING_FROM:
        raise ValueError(f"listing_from {listing_from!r}: choose one of {', '.join(LISTING_FROM)}")
    if listing_from == "none":
        return found.jobs
    told = _match_listings(found, table) if table is not None and table.is_file() else {}
    jobs, folders = [], Counter()
    for job in found.jobs:
        listing, city = told.get(job.name, (None, None))
        if not listing:
            parts = job.inside.parent.parts if job.kind != UNUSABLE and listing_from in ("auto", "folder") else ()
            name, _, number = job.file.stem.rpartition("__")
            in_name = name if number.isdigit() and listing_from in ("auto", "name") else ""
            if parts:
                folders["/".join((job.row, *parts))] += 1
            # A listing is of one class: numbers may start anew in each of them.
            if own := "/".join(parts) or in_name:
                listing = f"{job.row}/{own}"
        jobs.append(replace(job, listing=listing, city=city))
    if folders:
        only = found.labels if len(found.labels) == 1 else []
        found.notes.append(
            f"{len(folders)} sub-folders were taken as one car each ({', '.join(list(folders)[:3])} …); if one is "
            f"not one car, run this again with --listing-from name, or none"
            + "".join(f"; if they are the classes, import the folder {label} itself" for label in only)
        )
    of_class = Counter(job.label for job in jobs if not job.kind)
    for (label, listing), count in Counter((job.label, job.listing) for job in jobs if not job.kind).items():
        if listing and count == of_class[label] >= WHOLE_CLASS:
            found.notes.append(
                f"all {count} photos of {label} are one listing, {listing!r}: are they one car? If not, name the cars "
                f"in listings.csv, or run this again with --listing-from none"
            )
    return jobs


def _match_listings(found: Found, table: Path) -> dict[str, tuple[str | None, str | None]]:
    """Return (listing, city) by file name, whatever slashes, case, Unicode form or root the table's paths have."""
    rows = read_rows(table, ("file", "listing"), ("city",))
    names = {_plain_parts(job.name): job.name for job in found.jobs}
    tails = defaultdict(set)
    for parts, name in names.items():
        for start in range(len(parts)):
            tails[parts[start:]].add(name)
    told, unmatched, contradicted = {}, [], 0
    for row in rows:
        parts = _plain_parts(row["file"] or "")
        whole = [names[parts[start:]] for start in range(len(parts)) if parts[start:] in names]
        match = whole[:1] or list(tails.get(parts, ()))
        if len(match) == 1:
            contradicted += told.get(match[0], (row["listing"],))[0] != row["listing"]
            told[match[0]] = (row["listing"], row["city"])
        else:
            unmatched.append(f"{row['file']} ({len(match)} photos)" if match else str(row["file"]))
    if rows and not told:
        raise ValueError(
            f"{table}: 0 of {len(rows)} rows match a photo, {unmatched[0]} first; write paths below its folder, "
            f"as in {found.jobs[0].name}, or say --listing-from none"
        )
    if unmatched:
        found.notes.append(
            f"{table.name}: {len(rows) - len(unmatched)} of {len(rows)} rows match a photo; these do not: "
            f"{name_some(unmatched)}"
        )
    if contradicted:
        found.notes.append(
            f"{table.name}: {contradicted} rows give a photo another listing than a row above; the last counts"
        )
    return told


def _plain_parts(path: str) -> tuple[str, ...]:
    plain = unicodedata.normalize("NFC", path.strip()).casefold().replace("\\", "/")
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def name_some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
