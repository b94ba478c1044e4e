"""Fetch a data set from Kaggle with its published split; open a study on the data that Kaggle mounts.

All traffic is that of Kaggle's own client, in a process of its own. Published parts are sites, as kaggle-train.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from carspotter.curation import curate as curation
from carspotter.paths import WHEEL, Study, find_archive, find_kaggle_dataset, find_recorded, kaggle
from carspotter.photos import splitting
from carspotter.photos.folders import PARTS, part_of
from carspotter.photos.importing import import_folder
from carspotter.photos.table import read_photos, slugify

DATASET = "ajaykgp12/cars-wagonr-swift"
STUDY = "swift_wagonr"
SITE = "kaggle-{}"
REFUSALS = {
    401: "Kaggle does not know you (401): make a token at https://www.kaggle.com/settings/api and put it into "
    "KAGGLE_API_TOKEN or ~/.kaggle/access_token (an older kaggle.json works too)",
    403: "Kaggle says no (403): it is private, or its terms must be accepted on its web page first",
    404: "Kaggle has nothing of this name (404), or it is private",
    429: "Kaggle asks for patience (429, too many requests); try again later",
}


class KaggleRefused(RuntimeError):
    """Kaggle cannot be reached or refuses; the message says why and what to do."""


@dataclass(frozen=True)
class PublishedSplit:
    """What a fetch found: photos by label and published part, refused files, and the split taken over.

    `crossing`: one row per photo that shows the same shot as one in another part: sha256, published (its parts),
    duplicate_cluster, split. `taken_over` is False where the study had a split before, which then stays.
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
        kept = "the published one" if self.taken_over else "kept as it was"
        lines.append(f"split of {self.study}, {kept}: {self.excluded} photos excluded, version {self.version[:12]}")
        return "\n".join(lines)


def fetch(
    study: Study, dataset: str = DATASET, source: Path | None = None, minutes: float = 60, show_progress: bool = True
) -> PublishedSplit:
    """Bring a data set laid out {train,validation,test}/<class>/ into `study.data`, with its split as the study's.

    Its photos come from `source` (a folder or a zip file), else from where Kaggle mounts it, else from the net within
    `minutes`. Of copies of a shot in several parts only those in the test, else validation, part stay. Raises
    KaggleRefused when the service refuses, ValueError for another layout or photos of these classes from elsewhere.
    """
    named = re.fullmatch(r"(\w[\w-]*)/(\w[\w-]*)", dataset)
    if not named:
        raise ValueError(f"data set {dataset!r}: Kaggle names them owner/name, as in {DATASET}")
    remedy = "name a zip file or an unzipped folder" if source else "delete it and fetch again"
    source = Path(source or find_kaggle_dataset(*named.groups()) or download(study.data, dataset, minutes))
    study.data.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        refused = _import_parts(study, source, show_progress)
    elif not source.is_file():
        raise FileNotFoundError(f"{source}: no such folder or zip file; unzip the data set and name that folder")
    else:
        with tempfile.TemporaryDirectory(dir=study.data, prefix=".unzipped-") as folder:
            try:
                with zipfile.ZipFile(source) as archive:
                    archive.extractall(folder)
            except (zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{source}: not a whole zip file ({error}); {remedy}") from error
            refused = _import_parts(study, Path(folder), show_progress)
    return _take_over(study, refused, show_progress)


def open_study(name: str) -> Study:
    """Return the study that a notebook works on, with its photos in place.

    On Kaggle that is `name` where its archive is attached, else the original's data set; recorded runs attached with
    the wheel are copied. Raises FileNotFoundError, with what to attach, where there are no photos.
    """
    study = Study.open(name)
    if not kaggle():
        return study
    if recorded := find_recorded():
        for file in (path for path in recorded.rglob("*") if path.is_file()):
            copy = study.results / file.relative_to(recorded)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copyfile(file, copy)
    if study.splits.exists() and find_archive(study.data):
        return study
    if find_kaggle_dataset(*DATASET.split("/")) is None:
        if study.splits.exists() and study.raw.exists():
            return study
        raise FileNotFoundError(
            f"no photos: attach the data set {DATASET} to this notebook (Add Input, at the right), "
            f"or the archive of {name} and the data set {WHEEL} with its split"
        )
    study = Study.open(STUDY)
    if not study.splits.exists():
        print(fetch(study, show_progress=False))
    return study


def download(data: Path, dataset: str, minutes: float) -> Path:
    """Download a data set, going on with what was cut off, and return its zip file. Raises KaggleRefused."""
    by_hand = (
        f"By hand: download https://www.kaggle.com/datasets/{dataset} in a browser, unzip it into a folder, and run "
        f"`python -m carspotter kaggle fetch --from FOLDER`"
    )
    if importlib.util.find_spec("kaggle") is None:
        raise KaggleRefused(f"Kaggle's client is missing: pip install 'carspotter[kaggle]'. {by_hand}")
    folder = Path(data) / "kaggle"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{dataset.split('/')[1]}.zip"
    # The client keeps a note beside a file that is not whole yet.
    if zipfile.is_zipfile(archive) and not archive.with_name(f"{archive.name}.kaggle-partial").exists():
        return archive
    print(f"downloading {dataset} from Kaggle, {minutes:g} minutes at most", file=sys.stderr, flush=True)
    try:
        run_client(("datasets", "download", dataset, "--path", str(folder)), dataset, 60 * minutes)
    except KaggleRefused as refusal:
        raise KaggleRefused(f"{refusal}. {by_hand}") from None
    return archive


def run_client(arguments: Iterable[str], about: str, seconds: float) -> str:
    """Run Kaggle's client for `seconds` at most and return what it printed. Raises KaggleRefused when it fails."""
    command = [sys.executable, "-m", "kaggle", *arguments]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": seconds}
    try:
        # Elsewhere, a folder named kaggle could be taken for the client.
        finished = subprocess.run(command, cwd=tempfile.gettempdir(), **both)
    except subprocess.TimeoutExpired:
        raise KaggleRefused(f"{about}: the time given is over; run the same command again to go on") from None
    # The client ends with 0 after some failures.
    failures = "(?m)^(Upload unsuccessful|Dataset .*error|Kernel push error|The following are not valid).*"
    lied = re.search(failures, finished.stdout)
    if finished.returncode or lied:
        raise _explain(about, lied.group() if lied else finished.stdout)
    return finished.stdout


def _explain(about: str, text: str) -> KaggleRefused:
    """Turn what the client printed into one helpful sentence."""
    line = (text.strip().splitlines() or ["it said nothing"])[-1].strip()
    said = re.search(r"\b([45]\d\d) (?:Client|Server) Error", text)
    status = int(said[1]) if said else 0
    if not said and re.search("ConnectionError|Max retries|Connection aborted|ChunkedEncoding|Proxy", text):
        return KaggleRefused(f"{about}: no way to Kaggle, or the line was cut ({line[:200]}); try again")
    # Without credentials the client always says so first, even where a download needs none.
    if not said and "Authentication required" in text:
        status = 401
    why = REFUSALS.get(status, f"Kaggle's client failed: {line[:300]}")
    why = f"Kaggle has a problem of its own ({status}); try again later" if status >= 500 else why
    return KaggleRefused(f"{about}: {why}")


def _find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of the three parts, wherever below `folder` they lie side by side."""
    for inner in (folder, *sorted(path for path in folder.glob("*") if path.is_dir()), *sorted(folder.glob("*/*/"))):
        there = {part_of(path.name): path for path in inner.iterdir() if path.is_dir()} if inner.is_dir() else {}
        if there.keys() >= PARTS.keys():
            return {part: there[part] for part in PARTS}
    raise ValueError(f"{folder}: no folders train, validation and test side by side, with one folder per class in each")


def _import_parts(study: Study, folder: Path, show_progress: bool) -> pd.DataFrame:
    """Import the three parts; return what was refused. Raises ValueError for photos of these labels from elsewhere."""
    parts = _find_parts(folder)
    if list(study.raw.glob("*/journal.jsonl")):
        photos = read_photos(study.data)
        labels = {slugify(path.name) for path in parts["train"].iterdir() if path.is_dir()}
        others = photos[~photos["site"].str.startswith(SITE.format("")) & photos["label"].isin(labels)]
        if len(others):
            raise ValueError(
                f"{study.raw} holds {len(others)} photos of {' and '.join(sorted(set(others['label'])))} from "
                f"{', '.join(sorted(set(others['site'])))}, which would join the published split; keep the two apart "
                f"with --data DIR here and in the verbs that follow"
            )
    refused = []
    for part, path in parts.items():
        report = import_folder(study.data, path, site=SITE.format(part), show_progress=show_progress)
        refused.append(report.refused.assign(file=part + "/" + report.refused["file"]))
    return pd.concat(refused, ignore_index=True)


def _take_over(study: Study, refused: pd.DataFrame, show_progress: bool) -> PublishedSplit:
    table = curation.curate_study(study, show_progress=show_progress)
    sites = table["sha256"].map(read_photos(study.data).set_index("sha256")["sites"])
    table["published"] = [" ".join(part for part in PARTS if SITE.format(part) in names) for names in sites]
    table = table[table["published"] != ""].copy()
    table["split"] = table["published"].str.split().str[0]
    counts = pd.crosstab(table["label"], table["published"])

    # Within a cluster, the first of PARTS keeps its copies.
    rank = {part: number for number, part in enumerate(PARTS)}
    clusters = table[table["duplicate_cluster"] != ""].groupby("duplicate_cluster")["split"]
    first = table["duplicate_cluster"].map(clusters.agg(lambda parts: min(parts, key=rank.get)))
    torn = table["duplicate_cluster"].map(clusters.nunique()).fillna(0) > 1
    table.loc[torn & (table["split"] != first), "split"] = "excluded"
    table["group"] = table["sha256"].str[:12]

    taken_over = not study.splits.exists()
    if taken_over:
        splitting.split_study(study, sorted(set(table["label"])), previous=table[splitting.COLUMNS])
    splits = splitting.read_splits(study).set_index("sha256")["split"]
    crossing = table.loc[torn | table["published"].str.contains(" "), ["sha256", "published", "duplicate_cluster"]]
    crossing = crossing.assign(split=crossing["sha256"].map(splits)).reset_index(drop=True)
    excluded, version = int((splits == "excluded").sum()), splitting.split_version(study)
    return PublishedSplit(study.name, counts, refused, crossing, excluded, version, taken_over)
