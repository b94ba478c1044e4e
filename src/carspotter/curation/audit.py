"""What is wrong with a folder of photos: one command, no study, no split, and nothing written into the folder.

The photos go through the import's decoder and the curation's detectors as if they were imported; what these say of one
photo is said here of files: copies under two names, in two classes, or in two parts of the folder's own split.
"""

from __future__ import annotations

import hashlib
import html
import re
import shlex
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from carspotter.curation.appearance import describe_table
from carspotter.curation.curate import curate
from carspotter.curation.report import PAGE, figure
from carspotter.paths import atomic_write
from carspotter.photos.decoding import FORMATS, UnreadablePhoto, inspect
from carspotter.photos.folders import Found, Job, kind_of_folder, name_listings, split_folders, walk_files
from carspotter.photos.images import WORKERS
from carspotter.photos.table import kind_of, slugify
from carspotter.progress import progress_bar

SUFFIXES = {*FORMATS.values(), "jpeg", "jpe", "jfif", "tiff", "heif"}  # of files that ought to be photos
SHOWN = 60  # photos of a kind on the page; the table has all
SIDES = {"tes": 0, "val": 1, "tra": 2}  # of copies on two sides the one in the test part stays
COLUMNS = ["kind", "file", "part", "label", "score", "reason", "other", "group", "command"]

# What is found: title, and what to do about it. The commands of the first three are certain, the others are doubts.
KINDS = {
    "unreadable": ("Unreadable or damaged", "Training stops at them, or learns half a photo. Fetch them again."),
    "leak": (
        "Copies on two sides of the split",
        "What is trained on is tested on, which flatters every score. The copy in the test part stays.",
    ),
    "copy": ("Copies", "The same shot more than once, perhaps cropped, mirrored or resized. The largest stays."),
    "two labels": ("One shot under two labels", "One of the labels is wrong, perhaps both: keep the right one."),
    "car on two sides": (
        "Probably one car, or one scene, on two sides of the split",
        "Moments apart, or the same paint in the same place: scores flatter. Split anew by cars: `carspotter import "
        "FOLDER --ignore-split`, then `carspotter curate` and `carspotter split --study NAME`.",
    ),
    "car under two labels": ("Probably one car, or one scene, under two labels", "One of the labels may be wrong."),
    "label": ("Labels in doubt", "The other photos speak against the label: a ranking, worst first, not a verdict."),
    "junk": ("Unlike the rest", "Perhaps no photo of its class: a ranking, worst first, not a verdict."),
    "poor": ("Too small, dark, bright or blurred", "A model may not see what you see."),
}
SURE = ("unreadable", "leak", "copy")
LABEL_REASONS = ("another model", "label in doubt")
JUNK_REASONS = ("unlike its class", "unlike its listing", "like rejects")


@dataclass(frozen=True)
class Audit:
    """What an audit found: photos by label and part, findings (COLUMNS, one row per file and kind), notes, its page."""

    photos: pd.DataFrame
    findings: pd.DataFrame
    notes: tuple[str, ...]
    page: Path

    def __str__(self) -> str:
        counts = self.findings["kind"].value_counts()
        lines = [self.photos.to_string(), ""]
        lines += [f"{counts[kind]:6,}  {title}" for kind, (title, _) in KINDS.items() if kind in counts]
        lines += ["nothing found"] if counts.empty else []
        lines += [f"NOTE {note}" for note in self.notes]
        lines += [f"Page with pictures: {self.page}", f"Table: {self.page.with_name('findings.csv')}"]
        return "\n".join([*lines, f"Commands that move what is certain aside: sh {self.page.with_name('fix.sh')}"])


def audit_folder(
    folder: Path, out: Path, weights: Path | None = None, listing_from: str = "auto", show_progress: bool = True
) -> Audit:
    """Look for all that is wrong in any folder of photos; write index.html, findings.csv and fix.sh to `out`.

    Photos may lie in FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/…, or in no class. `weights` (MobileNetV2's)
    and `listing_from` as in curation and import. Nothing is written into `folder`. Raises FileNotFoundError for a
    missing folder, ValueError for one without files and for an `out` inside it.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if out.is_relative_to(folder):
        raise ValueError(f"{out} lies in the audited folder, into which nothing is written; name another --out")
    found = find_photos(folder)
    jobs = name_listings(found, folder / "listings.csv", listing_from)
    files, findings = _read_files(jobs, found, show_progress)
    if len(files):
        photos = _one_per_photo(files, folder)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".work-", dir=out) as work:
            features = describe_table(Path(work), photos, weights, show_progress)
            judged = curate(Path(work), photos, show_progress, features).set_index("sha256")
        files = files.join(judged[["duplicate_cluster", "car", "verdict", "reason", "score"]], on="sha256")
        files["shot"] = files["duplicate_cluster"].where(files["duplicate_cluster"] != "", files["sha256"])
        files = files.sort_values(["side", "pixels", "bytes", "file"], ascending=[True, False, False, True])
        findings += [*_find_copies(files), *_find_cars(files), *_find_doubts(files)]
    table = pd.DataFrame(findings, columns=COLUMNS).fillna({"score": 1.0, "other": "", "group": ""})
    # What cannot be typed, such as a line break in a name, gets no command.
    table["command"] = [f"aside {shlex.quote(file)}" if file.isprintable() else "" for file in table["file"]]
    table.loc[table["kind"] == "car on two sides", "command"] = ""
    counts = pd.crosstab(files["label"], files["part"].replace("", "photos")).rename_axis(index=None, columns=None)
    audit = Audit(counts, table, tuple(found.notes), out / "index.html")
    _write(audit, folder)
    return audit


def find_photos(folder: Path) -> Found:
    """Return the files of a folder with their classes as they are named; system files are left out."""
    found = Found()
    parts = {part.name for part in split_folders(folder)}
    found.labels = sorted(parts)

    def leave_out(path: Path, why: str) -> None:
        found.notes.append(f"{path.relative_to(folder)}: {why}")

    for file in walk_files(folder, leave_out, set()):
        name = PurePosixPath(file.relative_to(folder).as_posix())
        inside = name.parts[name.parts[0] in parts :]
        label = inside[0] if len(inside) > 1 else folder.name
        below = PurePosixPath(*inside[1:] or inside)
        found.jobs.append(Job(file, name.as_posix(), below, label, kind_of_folder(slugify(label))))
    for label in sorted({job.label for job in found.jobs if job.kind}):
        found.notes.append(
            f"{label}: taken as examples of what to reject, not as a class; copies of them are looked for"
        )
    if not found.jobs:
        raise ValueError(f"{folder}: no files in it, but for what systems leave behind")
    return found


def _read_files(jobs: list[Job], found: Found, show_progress: bool) -> tuple[pd.DataFrame, list[dict]]:
    """Decode every file; return a row for each photo, and the findings about those that cannot be decoded."""

    def read(job: Job) -> tuple[Job, dict | UnreadablePhoto]:
        try:
            facts = inspect(job.file)
            with open(job.file, "rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            size = {"width": facts.width, "height": facts.height, "bytes": job.file.stat().st_size}
            return job, {"sha256": sha256, **size, "pixels": facts.width * facts.height}
        except UnreadablePhoto as refusal:
            return job, refusal
        except OSError as error:
            return job, UnreadablePhoto(job.name, f"cannot be read: {error.strerror}; allow it (chmod)")

    rows, findings, no_photos = [], [], 0
    with ThreadPoolExecutor(WORKERS) as pool, progress_bar(len(jobs), "read", "files", show_progress) as progress:
        for job, facts in pool.map(read, jobs):
            progress.update()
            part = job.name.partition("/")[0] if job.name.partition("/")[0] in found.labels else ""
            row = {"file": job.name, "part": part, "label": job.label}
            if isinstance(facts, dict):
                side = SIDES.get(part[:3].casefold(), 3)
                rows.append(row | facts | {"kind": job.kind or "", "listing": job.listing or "", "side": side})
            elif facts.kind == "format" and job.file.suffix.lstrip(".").lower() not in SUFFIXES:
                no_photos += 1
            else:
                findings.append(row | {"kind": "unreadable", "reason": facts.reason})
    if no_photos:
        found.notes.append(f"{no_photos} files are no photos by name and content, and were left alone")
    columns = ["file", "part", "label", "sha256", "width", "height", "bytes", "pixels", "kind", "listing", "side"]
    return pd.DataFrame(rows, columns=columns), findings


def _one_per_photo(files: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the table that `curate` wants, one row for files of the same bytes."""
    rows = []
    for _, same in files.groupby("sha256"):
        row = same.iloc[0][["sha256", "label", "width", "height", "bytes"]].to_dict()
        listings = tuple(sorted(set(same["listing"]) - {""}))
        kind = max(same["kind"])  # one of them may lie among the rejects
        labels = tuple(sorted(set(same["label"])))
        rows.append(row | {"path": str(folder / same["file"].iloc[0])} | {"kind": kind, "listings": listings})
        rows[-1]["labels"] = labels
    return pd.DataFrame(rows)


def _find_copies(files: pd.DataFrame) -> Iterator[dict]:
    for shot, same in files.groupby("shot", sort=False):
        kept, *surplus = same.itertuples()
        if same["label"].nunique() > 1:
            for copy in same.itertuples():
                others = same.loc[same["label"] != copy.label, "label"].unique()
                yield _finding("two labels", copy, f"the same shot is in {' and '.join(others)}", group=shot)
            continue
        for copy in surplus:
            alike = "the same bytes" if copy.sha256 == kept.sha256 else "the same shot"
            kind = "copy" if copy.part == kept.part else "leak"
            yield _finding(kind, copy, f"{alike} as {kept.file}", group=shot, other=kept.file)


def _find_cars(files: pd.DataFrame) -> Iterator[dict]:
    """Yield photos of one listing, or of one car by their pixels, that lie under two labels or on two sides."""
    told = set()
    for column, words in (("listing", "listing {}"), ("car", "by its pixels one car, or one scene")):
        shots = files[files[column] != ""].drop_duplicates("shot")
        for name, car in shots.groupby(column):
            for kind, varies in (("car on two sides", "part"), ("car under two labels", "label")):
                if car[varies].nunique() > 1:
                    where = ", ".join(car[varies].unique())
                    for photo in car.itertuples():
                        if (kind, photo.file) not in told:
                            told.add((kind, photo.file))
                            yield _finding(kind, photo, f"{words.format(name)}, in {where}", group=name)


def _find_doubts(files: pd.DataFrame) -> Iterator[dict]:
    """Yield what the curation holds against photos, worst first; of copies the file that stays stands for all."""
    doubted = files[(files["verdict"] == "keep") & (files["reason"] != "")].drop_duplicates("shot")
    doubted = doubted.set_index("shot").sort_values(["score", "file"], ascending=[False, True])
    stays = files.drop_duplicates("shot").set_index("shot").loc[doubted.index]
    for photo, said in zip(stays.itertuples(), doubted.itertuples(), strict=True):
        why = kind_of(said.reason)
        kind = "label" if why in LABEL_REASONS else "junk" if why in JUNK_REASONS else "poor"
        reason = said.reason.removeprefix("another model: ").removeprefix("label in doubt: ")
        yield _finding(kind, photo, reason, score=round(said.score, 3))


def _finding(kind: str, photo, reason: str, **more: object) -> dict:
    return {"kind": kind, "file": photo.file, "part": photo.part, "label": photo.label, "reason": reason} | more


def _write(audit: Audit, folder: Path) -> None:
    findings = audit.findings
    beside = "Beside this page: findings.csv, the whole table; fix.sh, the commands that move what is certain aside."
    items = [f"<li>{html.escape(note)}</li>" for note in (beside, *audit.notes)]
    script = [FIX.format(folder=shlex.quote(str(folder)), removed=shlex.quote(str(audit.page.with_name("removed"))))]
    grids = []
    for kind, (title, advice) in KINDS.items():
        part = findings[findings["kind"] == kind]
        if part.empty:
            continue
        items.append(f'<li><a href="#{slugify(kind)}">{title}: {len(part):,}</a></li>')
        first = f" The first {SHOWN} are shown, findings.csv has all." if len(part) > SHOWN else ""
        pictures = "".join(_picture_groups(part.head(SHOWN), folder))
        heading = f'<h2 id="{slugify(kind)}">{title}: {len(part):,}</h2>'
        advised = re.sub("`(.+?)`", r"<code>\1</code>", advice)
        grids.append(f"{heading}<p>{advised}{first}</p><div>{pictures}</div>")
        script.append(f"\n# {title}. {advice}")
        comment = "" if kind in SURE else "# "
        script += [
            f"{comment}{found.command}  # {''.join(filter(str.isprintable, found.reason))}"
            for found in part.itertuples()
            if found.command
        ]
    title = html.escape(f"Audit of {folder.name}")
    page = PAGE.format(title=title, items="".join(items), table=audit.photos.to_html(border=0), grids="".join(grids))
    with atomic_write(audit.page) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")
    with atomic_write(audit.page.with_name("findings.csv")) as part:
        findings.to_csv(part, index=False, lineterminator="\n", errors="backslashreplace")
    with atomic_write(audit.page.with_name("fix.sh")) as part:
        part.write_text("\n".join(script) + "\n", encoding="utf-8", errors="backslashreplace")


def _picture_groups(findings: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Yield a frame for each group of photos that are held against each other, a figure for what stands alone."""
    groups = findings["group"].where(findings["group"] != "", findings["file"])
    for _, group in findings.groupby(groups, sort=False):
        figures = [figure(folder / name, f"{name}: stays") for name in group["other"].unique() if name]
        figures += [figure(folder / row.file, f"{row.file}: {row.reason}") for row in group.itertuples()]
        yield f'<div class="group">{"".join(figures)}</div>' if len(figures) > 1 else figures[0]


FIX = """#!/bin/sh
# Written by `carspotter audit`. Nothing is deleted: files move to $removed under the same names.
# What begins with "# aside" is a doubt: look at the page, and take the # away where you agree.
folder={folder}
removed={removed}
aside() {{
  [ -e "$folder/$1" ] || return 0
  mkdir -p -- "$(dirname -- "$removed/$1")" && mv -n -- "$folder/$1" "$removed/$1"
}}"""
