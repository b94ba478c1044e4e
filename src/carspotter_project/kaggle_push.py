"""Send to Kaggle: the package as a wheel, the recorded results, and the notebooks that use both."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import nbformat

from carspotter.kaggle import DATASET, KaggleRefused, run_client
from carspotter.models.store import FILES
from carspotter.paths import WHEEL, Study, checkout
from carspotter.photos.table import slugify

# Of results/, what notebooks read.
RECORDED = ("*/*.csv", "*/*.jsonl", "*/splits.sha256", *(f"*/runs/*/{name}" for name in FILES))
MACHINE = "NvidiaTeslaT4"  # two T4; stated, since what Kaggle gives by default has changed before
SECONDS = 1800  # for one errand of Kaggle's client
READY_WITHIN = 600  # seconds for Kaggle to unpack an upload; a notebook pushed before would start without it


def push(
    notebooks: list[str] | None = None,
    user: str | None = None,
    internet: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
) -> list[Path]:
    """Upload wheel and recorded results as the user's private data set, push the notebooks; return their folders.

    `notebooks`: numbers such as "04", default all. With `dry_run` nothing is sent and only `out` is written.
    """
    sources = _find_notebooks(notebooks)
    out = Path(out) if out else Study.open().data / "kaggle" / "push"
    user = user or _user(dry_run)
    package = out / WHEEL
    shutil.rmtree(package, ignore_errors=True)
    wheel = build_wheel(package)
    results = checkout() / "results"
    with zipfile.ZipFile(package / "results.zip", "w", zipfile.ZIP_DEFLATED) as archive:  # Kaggle unzips it
        for file in (file for pattern in RECORDED for file in results.glob(pattern)):
            archive.write(file, file.relative_to(results))
    about = {"title": "Carspotter wheel", "subtitle": "The package that the notebooks install, and recorded runs"}
    about |= {"id": f"{user}/{WHEEL}", "description": "MIT licence.", "licenses": [{"name": "other"}]}
    (package / "dataset-metadata.json").write_text(json.dumps(about, indent=2) + "\n")
    if not dry_run:
        _upload(package, f"{user}/{WHEEL}", wheel.name)
    folders = []
    for source in sources:
        folder = out / source.stem
        write_notebook(source, folder, user, internet, [DATASET, f"{user}/{WHEEL}"])
        if not dry_run:
            said = run_client(("kernels", "push", "--path", str(folder)), source.name, SECONDS)
            print(said.strip().splitlines()[-1], flush=True)
        folders.append(folder)
    return folders


def build_wheel(folder: Path) -> Path:
    """Build the package's wheel into `folder` from a copy of its sources, without the net; return its file."""
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


def write_notebook(source: Path, folder: Path, user: str, internet: bool, datasets: list[str]) -> dict[str, object]:
    """Write a notebook without its outputs and its kernel-metadata.json into `folder`; return the metadata."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
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
        "enable_internet": internet,
        "machine_shape": MACHINE,
        "dataset_sources": datasets,
    }
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return metadata


def _find_notebooks(numbers: list[str] | None) -> list[Path]:
    there = {path.stem[:2]: path for path in sorted((checkout() / "notebooks").glob("[0-9]*.ipynb"))}
    if unknown := set(numbers or ()) - set(there):
        raise ValueError(f"no notebook {min(unknown)}; there are {', '.join(there)}")
    return [there[number] for number in numbers or there]


def _user(dry_run: bool) -> str:
    """Return the user's name on Kaggle: from the environment, kaggle.json or the service."""
    if name := os.environ.get("KAGGLE_USERNAME"):
        return name
    file = Path.home() / ".kaggle" / "kaggle.json"
    if file.is_file() and (name := json.loads(file.read_text()).get("username")):
        return name
    if dry_run:
        raise ValueError("whose notebooks? A dry run asks nobody; name the user with --user NAME")
    said = run_client(("config", "view"), "your account", 120)
    found = re.search(r"(?m)^- username: (\S+)$", said)
    if not found or found.group(1) == "None":
        raise KaggleRefused("Kaggle's client knows no user; make a token at https://www.kaggle.com/settings/api")
    return found.group(1)


def _upload(folder: Path, name: str, notes: str) -> None:
    """Send a data set and wait until Kaggle has unpacked it."""
    try:
        run_client(("datasets", "status", name), name, SECONDS)
        command = ("datasets", "version", "--path", str(folder), "--message", notes, "--dir-mode", "zip")
    except KaggleRefused as refusal:
        # Kaggle does not tell a data set that is not there from one that is not yours.
        if not re.search(r"\b40[34]\b", str(refusal)):
            raise
        command = ("datasets", "create", "--path", str(folder), "--dir-mode", "zip")
    print(run_client(command, name, SECONDS).strip().splitlines()[-1], flush=True)
    end = time.monotonic() + READY_WITHIN
    while "ready" not in run_client(("datasets", "status", name), name, READY_WITHIN):
        if time.monotonic() > end:
            raise KaggleRefused(f"{name}: Kaggle has not made it ready in {READY_WITHIN} s; push again later")
        time.sleep(5)
