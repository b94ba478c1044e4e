"""Fetch a data set from Kaggle and take over its published split; open a study on the data that Kaggle mounts.

The traffic is that of Kaggle's own client, run as a process of its own: it knows every kind of credentials (a token in
`KAGGLE_API_TOKEN`, `~/.kaggle/access_token`, `kaggle.json`), it resumes downloads, and a process can be ended when it
hangs. What is published as train, validation and test lies in `data/raw/` as the sites kaggle-train and so on, so that
the journal remembers it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from carspotter.curation import curate as curation
from carspotter.paths import Study, find_kaggle_dataset, kaggle
from carspotter.photos import splitting
from carspotter.photos.importing import import_folder
from carspotter.photos.table import read_photos, slugify
from carspotter.progress import progress_bar

DATASET = "ajaykgp12/cars-wagonr-swift"
STUDY = "swift_wagonr"
# The names that data sets use for the three parts, the test first: a photo in two parts counts for the first of them.
PARTS = {
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val"),
    "train": ("train", "training"),
}
SITE = "kaggle-{}"
STALLED_AFTER = 180  # seconds without a new byte
PAUSES = (5, 30)  # seconds before the second and the third try, when the service is busy or the line was cut


class KaggleRefused(RuntimeError):
    """Kaggle cannot be reached or says no; the message says why and what to do. `passing`: later may be better."""

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class PublishedSplit:
    """What a fetch found.

    `counts`: photos by label and published part. `refused`: file and reason. `crossing`: one row per photo that shows
    the same shot as one in another part: sha256, published (its parts), duplicate_cluster, split (what became of it).
    `taken_over` is False where the study had a split before, which then stays.
    """

    study: str
    counts: pd.DataFrame
    refused: pd.DataFrame
    crossing: pd.DataFrame
    excluded: int
    version: str
    taken_over: bool

    def __str__(self) -> str:
        lines = ["published:", self.counts.to_string()]
        lines += [f"refused: {len(self.refused)}"] * bool(len(self.refused))
        lines += [f"  {row.file}: {row.reason}" for row in self.refused.itertuples()]
        same_bytes = self.crossing["published"].str.contains(" ").sum()
        clusters = self.crossing["duplicate_cluster"].replace("", pd.NA).nunique()
        lines.append(
            f"shots in more than one part: {len(self.crossing)} photos, {same_bytes} of them with the same bytes, "
            f"{clusters} clusters of near-duplicates"
            if len(self.crossing)
            else "no shot lies in more than one part"
        )
        kept = "kept as it was" if not self.taken_over else "the published one"
        lines.append(f"split of {self.study}, {kept}: {self.excluded} photos excluded, version {self.version[:12]}")
        return "\n".join(lines)


def fetch(
    study: Study,
    dataset: str = DATASET,
    source: Path | None = None,
    as_published: bool = False,
    minutes: float = 60,
    pauses: Sequence[float] = PAUSES,
    show_progress: bool = True,
) -> PublishedSplit:
    """Bring a data set laid out {train,validation,test}/<class>/ into `study.data`, with its split as the study's.

    Its photos come from `source` (a folder or a zip file), else from where Kaggle mounts it, else over the net within
    `minutes`; killed and called again, it goes on. Copies of a shot in two parts would let the model meet a car again
    in the test: only those in the part that is asked most stay (test, then validation), unless `as_published`.
    Raises KaggleRefused when the service does, ValueError for another layout or photos of these classes from elsewhere,
    FileNotFoundError for a missing source.
    """
    owner, separator, slug = dataset.partition("/")
    if not separator or not re.fullmatch(r"\w[\w-]*", owner) or not re.fullmatch(r"\w[\w-]*", slug):
        raise ValueError(f"data set {dataset!r}: Kaggle names them owner/name, as in {DATASET}")
    source = Path(source) if source else find_kaggle_dataset(owner, slug)
    if source is None:
        source = download(study.data, dataset, minutes, pauses, show_progress)
    study.data.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        refused = _import_parts(study, source, show_progress)
    else:
        with tempfile.TemporaryDirectory(dir=study.data, prefix=".unzipped-") as folder:
            refused = _import_parts(study, _unzip(source, Path(folder)), show_progress)
    return _take_over(study, refused, as_published, show_progress)


def open_study(name: str) -> Study:
    """Return the study that a notebook works on, with its photos in place.

    On Kaggle that is `name` where its archive is attached, else the original's data set. Raises FileNotFoundError, with
    what to attach, where neither is.
    """
    study = Study.open(name)
    if not kaggle() or study.splits.exists():
        return study
    if find_kaggle_dataset(*DATASET.split("/")) is None:
        raise FileNotFoundError(
            f"no photos: attach the data set {DATASET} to this notebook (Add Input, at the right), "
            f"or the archive of {name}"
        )
    study = Study.open(STUDY)
    if not study.splits.exists():
        print(fetch(study, show_progress=False))
    return study


def download(data: Path, dataset: str, minutes: float, pauses: Sequence[float], show_progress: bool) -> Path:
    """Download a data set and return its zip file; goes on with what was cut off, and asks nothing twice.

    Raises KaggleRefused when the service does, or without its client.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise KaggleRefused(f"Kaggle's client is missing: pip install 'carspotter[kaggle]'. {_by_hand(dataset)}")
    folder = Path(data) / "kaggle"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{dataset.split('/')[1]}.zip"
    # The client keeps a note beside a file that is not whole yet.
    if zipfile.is_zipfile(archive) and not archive.with_name(f"{archive.name}.kaggle-partial").exists():
        return archive
    end = time.monotonic() + 60 * minutes
    for pause in (*pauses, None):
        try:
            run_client(("datasets", "download", dataset, "--path", str(folder)), dataset, end, archive, show_progress)
            return archive
        except KaggleRefused as refusal:
            if not refusal.passing or pause is None or time.monotonic() + pause > end:
                raise KaggleRefused(f"{refusal}. {_by_hand(dataset)}", refusal.passing) from None
            print(f"{refusal}\nTrying again in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("the last try gives or raises")


def run_client(
    arguments: Iterable[str], about: str, end: float, growing: Path | None = None, show_progress: bool = False
) -> str:
    """Run Kaggle's client until `end` (monotonic seconds) at the latest; return what it printed.

    `about`: the data set or notebook in question. `growing`: a file that must grow while the client works. Raises
    KaggleRefused, in words that help, when the client fails or says that it failed.
    """
    command = [sys.executable, "-m", "kaggle", *arguments]
    with (
        tempfile.TemporaryFile("w+") as said,
        progress_bar(None, "fetch", "MB", show_progress and growing is not None) as progress,
    ):
        # Elsewhere, a folder named kaggle could be taken for the client.
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=tempfile.gettempdir())
        size, grew = -1, time.monotonic()
        try:
            while process.poll() is None:
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    now, there = time.monotonic(), growing.stat().st_size if growing and growing.exists() else 0
                    if there != size:
                        progress.update(round((there - max(size, 0)) / 1e6, 1))
                        size, grew = there, now
                    if now > end or (growing and now - grew > STALLED_AFTER):
                        why = "the time given is over" if now > end else f"no new byte for {STALLED_AFTER} s"
                        raise KaggleRefused(f"{about}: {why}; run the same command again to go on", True) from None
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
    # The client ends with 0 after some failures.
    lied = re.search("(?m)^(Upload unsuccessful|Dataset .*error|Kernel push error|The following are not valid).*", text)
    if process.returncode or lied:
        raise _explain(about, lied.group() if lied else text)
    return text


def _explain(about: str, text: str) -> KaggleRefused:
    """Turn what the client printed into one sentence that helps."""
    passing = False
    line = (text.strip().splitlines() or ["it said nothing"])[-1].strip()
    status = re.search(r"\b([45]\d\d) (?:Client|Server) Error", text)
    status = int(status.group(1)) if status else None
    if status is None and re.search("ConnectionError|Max retries|Connection aborted|ChunkedEncoding|Proxy", text):
        why, passing = f"no way to Kaggle, or the line was cut ({line[:200]})", True
    # Without credentials the client always says so first, even where a download needs none.
    elif status == 401 or (status is None and "Authentication required" in text):
        why = (
            "Kaggle does not know you (401): make a token at https://www.kaggle.com/settings/api and put it into "
            "KAGGLE_API_TOKEN or ~/.kaggle/access_token (an older kaggle.json works too)"
        )
    elif status == 403:
        why = "Kaggle says no (403): it is private, or its terms must be accepted on its web page first"
    elif status == 404:
        why = "Kaggle has nothing of this name (404), or it is private"
    elif status == 429:
        why, passing = "Kaggle asks for patience (429, too many requests)", True
    elif status and status >= 500:
        why, passing = f"Kaggle has a problem of its own ({status})", True
    else:
        why = f"Kaggle's client failed: {line[:300]}"
    return KaggleRefused(f"{about}: {why}", passing)


def _by_hand(dataset: str) -> str:
    return (
        f"By hand: download https://www.kaggle.com/datasets/{dataset} in a browser, unzip it into a folder, and run "
        f"`python -m carspotter kaggle fetch --from FOLDER`"
    )


def _unzip(archive: Path, folder: Path) -> Path:
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such folder or zip file; unzip the data set and name that folder")
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{archive}: damaged ({error}); delete it and fetch again") from error
    return folder


def _find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of the three parts, wherever below `folder` they lie side by side."""
    for inner in (folder, *sorted(path for path in folder.glob("*") if path.is_dir()), *sorted(folder.glob("*/*/"))):
        there = {path.name.lower(): path for path in inner.iterdir() if path.is_dir()} if inner.is_dir() else {}
        parts = {part: there[name] for part, names in PARTS.items() for name in names if name in there}
        if len(parts) == len(PARTS):
            return parts
    raise ValueError(f"{folder}: no folders train, validation and test side by side, with one folder per class in each")


def _import_parts(study: Study, folder: Path, show_progress: bool) -> pd.DataFrame:
    parts = _find_parts(folder)
    labels = {slugify(path.name) for path in parts["train"].iterdir() if path.is_dir()}
    _refuse_mixture(study, labels)
    reports = {
        part: import_folder(study.data, path, site=SITE.format(part), show_progress=show_progress)
        for part, path in parts.items()
    }
    refused = [report.refused.assign(file=part + "/" + report.refused["file"]) for part, report in reports.items()]
    return pd.concat(refused, ignore_index=True)


def _refuse_mixture(study: Study, labels: set[str]) -> None:
    """A later split would add photos of other sites to the study: rendered cars to real ones, say."""
    if not list(study.raw.glob("*/journal.jsonl")):
        return
    photos = read_photos(study.data)
    others = photos[~photos["site"].str.startswith(SITE.format("")) & photos["label"].isin(labels)]
    if len(others):
        raise ValueError(
            f"{study.raw} holds {len(others)} photos of {' and '.join(sorted(set(others['label'])))} from "
            f"{', '.join(sorted(set(others['site'])))}, which would join the published split; keep the two apart with "
            f"--data DIR here and in the verbs that follow"
        )


def _take_over(study: Study, refused: pd.DataFrame, as_published: bool, show_progress: bool) -> PublishedSplit:
    table = curation.curate_study(study, show_progress=show_progress).merge(
        read_photos(study.data)[["sha256", "sites"]], on="sha256"
    )
    published = [[part for part in PARTS if SITE.format(part) in sites] for sites in table["sites"]]
    table["published"] = list(map(" ".join, published))
    table = table[table["published"] != ""]
    table["split"] = table["published"].str.split().str[0]
    counts = pd.crosstab(table["label"], table["published"])

    # Within a cluster, the first of PARTS keeps its copies.
    rank = {part: number for number, part in enumerate(PARTS)}
    clusters = table[table["duplicate_cluster"] != ""].groupby("duplicate_cluster")["split"]
    first = table["duplicate_cluster"].map(clusters.agg(lambda parts: min(parts, key=rank.get)))
    torn = table["duplicate_cluster"].map(clusters.nunique()).fillna(0) > 1
    if not as_published:
        table.loc[torn & (table["split"] != first), "split"] = "excluded"
    table["group"] = table["sha256"].str[:12]

    taken_over = not study.splits.exists()
    if taken_over:
        study.folder.mkdir(parents=True, exist_ok=True)
        # Beside the study, so that a kill leaves no half split; the labels of test photos are sealed on the way.
        with tempfile.TemporaryDirectory(dir=study.results, prefix=".draft-") as folder:
            draft = replace(study, results=Path(folder))
            draft.folder.mkdir()
            table[splitting.COLUMNS].to_csv(draft.splits, index=False)
            splitting.split_study(draft, sorted(set(table["label"])), keep_crossings=as_published)
            os.replace(splitting.checksum_file(draft), splitting.checksum_file(study))
            os.replace(draft.splits, study.splits)
    splits = splitting.read_splits(study).set_index("sha256")["split"]
    crossing = table.loc[torn | table["published"].str.contains(" "), ["sha256", "published", "duplicate_cluster"]]
    crossing = crossing.assign(split=crossing["sha256"].map(splits)).reset_index(drop=True)
    return PublishedSplit(
        study.name,
        counts,
        refused,
        crossing,
        int((splits == "excluded").sum()),
        splitting.split_version(study),
        taken_over,
    )
