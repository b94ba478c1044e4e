"""What is wrong with a folder of photos, by the detectors of import and curation; nothing is written into it."""

import html
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from carspotter.curation.appearance import describe_photos
from carspotter.curation.curate import judge_photos
from carspotter.page import figure, section, write_page
from carspotter.paths import atomic_write
from carspotter.photos.decoding import FORMATS, UnreadablePhoto
from carspotter.photos.folders import PARTS, Found, Job, find_files_of_any, name_listings, part_of
from carspotter.photos.images import in_threads
from carspotter.photos.importing import read_photo
from carspotter.photos.table import kind_of, slugify, write_table

SUFFIXES = {*FORMATS.values(), "jpeg", "jpe", "jfif", "tiff", "heif"}  # of files that ought to be photos
SHOWN = 60  # photos of a kind on the page; the table has all
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
        script = shlex.quote(str(self.page.with_name("fix.sh")))
        is_moved = self.findings["kind"].isin(SURE) & (self.findings["command"] != "")
        count = self.findings.loc[is_moved, "file"].nunique()
        return "\n".join([*lines, f"Commands that move what is certain aside (files: {count}): sh {script}"])


def audit_folder(
    folder: Path, out: Path, weights: Path | None = None, listing_from: str = "auto", show_progress: bool = True
) -> Audit:
    """Look for all that is wrong in any folder of photos; write index.html, findings.csv and fix.sh to `out`.

    Photos may lie in FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/…, or in no class. `weights` (MobileNetV2's)
    and `listing_from` as in curation and import. Raises ValueError without files and for an `out` in the folder.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if out.is_relative_to(folder):
        raise ValueError(f"{out} lies in the audited folder, into which nothing is written; name another --out")
    found = find_files_of_any(folder)
    jobs = name_listings(found, folder / "listings.csv", listing_from)
    files, findings = _read_files(jobs, found, show_progress)
    if len(files):
        photos = _one_per_photo(files, folder)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".work-", dir=out) as work:
            features = describe_photos(Path(work), photos, weights, show_progress)
            judged = judge_photos(Path(work), photos, features, show_progress=show_progress).set_index("sha256")
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


def _read_files(jobs: list[Job], found: Found, show_progress: bool) -> tuple[pd.DataFrame, list[dict]]:
    """Decode every file; return a row for each photo, and the findings about those that cannot be decoded."""

    def read(job: Job) -> dict | UnreadablePhoto:
        try:
            content, sha256, (_, width, height) = read_photo(job.file)
        except UnreadablePhoto as refusal:
            return refusal
        return {"sha256": sha256, "width": width, "height": height, "bytes": len(content), "pixels": width * height}

    rows, findings, no_photos = [], [], 0
    for job, facts in zip(jobs, in_threads(read, jobs, "read", "files", show_progress), strict=True):
        top = job.name.partition("/")[0]
        row = {"file": job.name, "part": top if top in found.parts else "", "label": job.label}
        if isinstance(facts, dict):
            side = [*PARTS, None].index(part_of(row["part"]))  # of copies on two sides the one in the test part stays
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
    """Return the table that `judge_photos` wants, one row for files of the same bytes."""
    taken = dict.fromkeys(("file", "label", "width", "height", "bytes"), "first") | {"kind": "max"}  # "" or a reject
    files = files.assign(labels=files["label"], listings=files["listing"])
    names = dict.fromkeys(("labels", "listings"), lambda column: tuple(sorted(set(column) - {""})))
    photos = files.groupby("sha256", as_index=False).agg(taken | names)
    return photos.assign(path=[str(folder / name) for name in photos["file"]])


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
    """Yield the curation's doubts about photos, worst first; one file stands for all its copies."""
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
    findings, links, grids = audit.findings, [], []
    script = [FIX.format(folder=shlex.quote(str(folder)), removed=shlex.quote(str(audit.page.with_name("removed"))))]
    for kind, (title, advice) in KINDS.items():
        part = findings[findings["kind"] == kind]
        if part.empty:
            continue
        heading = f"{title}: {len(part):,}"
        links.append(f'<li><a href="#{slugify(kind)}">{heading}</a></li>')
        first = f" The first {SHOWN} are shown, findings.csv has all." if len(part) > SHOWN else ""
        advised = re.sub("`(.+?)`", r"<code>\1</code>", advice) + first
        pictures = "".join(_picture_groups(part.head(SHOWN), folder))
        grids.append(section(heading, f'<p>{advised}</p><div class="photos">{pictures}</div>', slugify(kind)))
        script.append(f"\n# {title}. {advice}")
        comment = "" if kind in SURE else "# "
        script += [
            f"{comment}{found.command}  # {''.join(filter(str.isprintable, found.reason))}"
            for found in part.itertuples()
            if found.command
        ]
    notes = [f"<li>{html.escape(note)}</li>" for note in audit.notes]
    body = f"<ul>{''.join(notes + links)}</ul>{audit.photos.to_html(border=0)}{''.join(grids)}"
    beside = "Beside this page: findings.csv, the whole table; fix.sh, the commands that move what is certain aside."
    write_page(audit.page, f"Audit of {folder.name}", beside, body)
    write_table(audit.page.with_name("findings.csv"), findings, errors="backslashreplace")
    with atomic_write(audit.page.with_name("fix.sh")) as part:
        part.write_text("\n".join(script) + "\n", encoding="utf-8", errors="backslashreplace")


def _picture_groups(findings: pd.DataFrame, folder: Path) -> Iterator[str]:
    """Yield a frame for each group of related photos, a figure for a photo that stands alone."""
    groups = findings["group"].where(findings["group"] != "", findings["file"])
    for _, group in findings.groupby(groups, sort=False):
        figures = [figure(folder / name, f"{name}: stays") for name in group["other"].unique() if name]
        figures += [figure(folder / row.file, f"{row.file}: {row.reason}") for row in group.itertuples()]
        yield f'<div class="photos group">{"".join(figures)}</div>' if len(figures) > 1 else figures[0]


FIX = """#!/bin/sh
# Written by `carspotter audit`. Nothing is deleted: files move to $removed under the same names.
# What begins with "# aside" is a doubt: look at the page, and take the # away where you agree.
folder={folder}
removed={removed}
aside() {{
  [ -e "$folder/$1" ] || return 0
  mkdir -p -- "$(dirname -- "$removed/$1")" && mv -n -- "$folder/$1" "$removed/$1"
}}"""
