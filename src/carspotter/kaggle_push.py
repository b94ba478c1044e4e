"""Send to Kaggle: the package as a wheel, the notebooks that use it, and one's own photos as a data set.

Everything is written into a folder first, which a dry run leaves to be looked at, and sent by Kaggle's own client.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd

from carspotter.kaggle import DATASET, KaggleRefused, run_client
from carspotter.paths import Study, checkout
from carspotter.photos import splitting
from carspotter.photos.table import read_curation, read_photos, slugify

WHEEL = "carspotter-wheel"
MACHINE = "NvidiaTeslaT4"  # two T4; stated, since what Kaggle gives by default has changed before
MINUTES = 30
READY_WITHIN = 600  # seconds for Kaggle to unpack an upload; a notebook pushed before would start without it

# The set-up cell of every notebook, tagged `bootstrap`. It names no folder of Kaggle's: notebooks start beside `input`.
BOOTSTRAP = """\
# On Kaggle and Colab this installs the package; after `make setup` there is nothing to install.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

GIT = ""  # the package's address, git+https://…; filled in when notebooks are pushed to Kaggle
if find_spec("carspotter") is None:
    source = sorted(map(str, Path("../input").rglob("carspotter-*.whl")))[-1:] or [GIT]
    if not source[0]:
        raise SystemExit("carspotter is missing: attach its wheel (Add Input, carspotter-wheel) and run this again")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *source], check=True)
from carspotter.kaggle import open_study

study = open_study(STUDY)"""

RIGHTS = """\
Before photos leave your machine:
- Rights. Photos of ads belong to those who took them. Publish only your own, or what its licence or owner lets you.
- Plates and faces. Number plates and people in the picture are personal data in many countries. Blur them, leave such
  photos out with `review`, or ask the persons. Nothing here blurs them for you.
- Files are sent as they were collected: EXIF may tell where and with what a photo was taken.
- A data set that was public can be copied by anyone; deleting it later brings nothing back."""


def push(
    notebooks: list[str] | None = None,
    user: str | None = None,
    internet: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
    dataset: str = DATASET,
) -> list[Path]:
    """Build the wheel, upload it as the user's private data set, push the notebooks; give their folders.

    `notebooks`: numbers such as "04", all of them by default. `user`: the name on Kaggle, else that of the credentials.
    With `dry_run` nothing is sent and only `out` is written. Raises KaggleRefused when the service does, ValueError for
    an unknown notebook or, in a dry run, without a user's name.
    """
    sources = _find_notebooks(notebooks)
    out = Path(out) if out else Study.open().data / "kaggle" / "push"
    user = user or _user(dry_run)
    package = out / WHEEL
    shutil.rmtree(package, ignore_errors=True)
    wheel = build_wheel(package)
    _write_dataset(package, user, WHEEL, "Carspotter wheel", "The package that the notebooks install", "MIT licence.")
    if not dry_run:
        _upload(package, f"{user}/{WHEEL}", f"{wheel.name}", public=False)
        _wait_until_ready(f"{user}/{WHEEL}")
    git = _git_source()
    folders = []
    for source in sources:
        folder = out / source.stem
        write_notebook(source, folder, user, internet, git, [dataset, f"{user}/{WHEEL}"])
        if not dry_run:
            said = run_client(("kernels", "push", "--path", str(folder)), source.name, time.monotonic() + 60 * MINUTES)
            print(said.strip().splitlines()[-1], flush=True)
        folders.append(folder)
    return folders


def build_wheel(folder: Path) -> Path:
    """Build the package's wheel into `folder`, from a copy of its sources and without the net; give its file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        # In the checkout itself, setuptools would leave folders behind and take deleted files from an older build.
        copy = Path(place)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(checkout() / name, copy)
        shutil.copytree(checkout() / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        built = subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(f"the wheel could not be built: {(built.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return next(folder.glob("carspotter-*.whl"))


def write_notebook(
    source: Path, folder: Path, user: str, internet: bool, git: str, datasets: list[str]
) -> dict[str, object]:
    """Write a notebook without its outputs and its kernel-metadata.json into `folder`; give the metadata."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "bootstrap" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('GIT = ""', f"GIT = {json.dumps(git)}")
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / source.name)
    title = f"Carspotter {source.stem.replace('_', ' ')}"
    metadata = {
        "id": f"{user}/{slugify(title)}",
        "title": title,
        "code_file": source.name,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": internet,
        "machine_shape": MACHINE,
        "dataset_sources": datasets,
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
    }
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return metadata


def publish(
    study: Study,
    name: str,
    licence: str,
    user: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
) -> Path:
    """Upload the study's photos and split as a data set with a data card; give the folder that was sent.

    `name`: its slug, as in my-cars; `licence` as Kaggle spells it, as in CC-BY-SA-4.0. Laid out as `fetch` reads it,
    data/{train,validation,test}/<class>/<group>__<number>, so that groups stay together on the other side too; rejected
    and excluded photos stay here. Private unless `public`. Raises as `push` does, ValueError for an impossible name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{4,48}[a-z0-9]", name):
        raise ValueError(f"name {name!r}: Kaggle takes 6 to 50 lower-case letters, digits and hyphens, as in my-cars")
    if out and Path(out).exists() and any(Path(out).iterdir()) and not (Path(out) / "dataset-metadata.json").is_file():
        raise FileExistsError(f"{out}: holds something else than an earlier upload; name another folder with --out")
    out = Path(out) if out else study.data / "kaggle" / "publish" / name
    user = user or _user(dry_run)
    shutil.rmtree(out, ignore_errors=True)
    # Labels of test photos from the curation, as everybody sees them: the sealed file has one reader only.
    labels = read_curation(study)[["sha256", "label"]]
    table = splitting.read_splits(study).drop(columns="label").merge(labels, on="sha256")
    table = table[table["split"].isin(splitting.STUDIED)].merge(
        read_photos(study.data), on="sha256", suffixes=("", "_")
    )
    table["number"] = table.groupby(["split", "label", "group"]).cumcount()
    for photo in table.itertuples():
        file = study.data / photo.path
        target = out / "data" / photo.split / photo.label / f"{photo.group}__{photo.number:02}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, target)
    counts = pd.crosstab(table["label"], table["split"])
    card = _card(study, table, counts, licence)
    title = name.replace("-", " ").capitalize()
    _write_dataset(out, user, name, title, f"Photos of {' and '.join(counts.index)}"[:80].ljust(20, "."), card, licence)
    if not dry_run:
        _upload(out, f"{user}/{name}", f"split {splitting.split_version(study)[:12]}", public)
    return out


def _find_notebooks(numbers: list[str] | None) -> list[Path]:
    there = {path.stem[:2]: path for path in sorted((checkout() / "notebooks").glob("[0-9]*.ipynb"))}
    if unknown := set(numbers or ()) - set(there):
        raise ValueError(f"no notebook {min(unknown)}; there are {', '.join(there)}")
    return [there[number] for number in numbers or there]


def _user(dry_run: bool) -> str:
    """Give the user's name on Kaggle: from the environment or kaggle.json, else asked of the service for a token."""
    if name := os.environ.get("KAGGLE_USERNAME"):
        return name
    file = Path.home() / ".kaggle" / "kaggle.json"
    if file.is_file() and (name := json.loads(file.read_text()).get("username")):
        return name
    if dry_run:
        raise ValueError("whose notebooks? A dry run asks nobody; name the user with --user NAME")
    said = run_client(("config", "view"), "your account", time.monotonic() + 120)
    found = re.search(r"(?m)^- username: (\S+)$", said)
    if not found or found.group(1) == "None":
        raise KaggleRefused("Kaggle's client knows no user; make a token at https://www.kaggle.com/settings/api")
    return found.group(1)


def _git_source() -> str:
    """Give where pip finds this commit over the net, "" where the checkout has no public origin."""
    git = ["git", "-C", str(checkout())]
    remote = subprocess.run([*git, "remote", "get-url", "origin"], capture_output=True, text=True).stdout.strip()
    remote = re.sub(r"^git@([^:]+):", r"https://\1/", remote)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return f"git+{remote}@{commit}" if re.match(r"https://[^@]+$", remote) and commit else ""


def _write_dataset(
    folder: Path, user: str, name: str, title: str, subtitle: str, description: str, licence: str = "other"
) -> None:
    metadata = {
        "id": f"{user}/{name}",
        "title": title,
        "subtitle": subtitle,
        "description": description,
        "licenses": [{"name": licence}],
    }
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")


def _upload(folder: Path, name: str, notes: str, public: bool) -> None:
    end = time.monotonic() + 60 * MINUTES
    try:
        run_client(("datasets", "status", name), name, end)
        command = ("datasets", "version", "--path", str(folder), "--message", notes, "--dir-mode", "zip")
    except KaggleRefused as refusal:
        # Kaggle does not tell a data set that is not there from one that is not yours.
        if not re.search(r"\b40[34]\b", str(refusal)):
            raise
        command = ("datasets", "create", "--path", str(folder), "--dir-mode", "zip", *["--public"] * public)
    print(run_client(command, name, end).strip().splitlines()[-1], flush=True)


def _wait_until_ready(name: str) -> None:
    end = time.monotonic() + READY_WITHIN
    while "ready" not in run_client(("datasets", "status", name), name, end):
        if time.monotonic() > end:
            raise KaggleRefused(f"{name}: Kaggle has not made it ready in {READY_WITHIN} s; push again later")
        time.sleep(5)


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copy(file, target)


def _card(study: Study, table: pd.DataFrame, counts: pd.DataFrame, licence: str) -> str:
    rows = "\n".join(
        f"| {label} | " + " | ".join(f"{counts.at[label, side]:,}" for side in counts) + " |" for label in counts.index
    )
    return f"""\
# {study.name}: is this the car model that it is said to be?

| class | {" | ".join(counts)} |
|---|{"---|" * counts.shape[1]}
{rows}

**Collected** from {", ".join(sorted(set(table["site"])))}. A class is what the listing claimed, where a person's review
did not change it; not every photo was looked at.
**Split** {splitting.split_version(study)[:12]}: photos of one listing and near-duplicates lie on one side. A file is
named <group>__<number>; files of one group must stay together in any other split.
**Left out**: unreadable photos, surplus copies, photos that a review rejected.
**Not for** telling people or number plates; a photo that shows yours is removed on request, in a new version.
**Licence** {licence}. Read with `python -m carspotter kaggle fetch --dataset OWNER/NAME`.
"""
