"""The whole road in one go: `make demo` on the sample site, `make study` on a folder of photos.

Every stage is the product's own command or notebook; this file starts them one after the other, keeps everything in one
folder, says how far it is, and writes a page that links what came out. Started again, it resumes.
"""

from __future__ import annotations

import html
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from carspotter.evidence.report import runs_report
from carspotter.paths import Study, checkout
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos
from carspotter_sample.listings import write_photos
from carspotter_sample.site import SampleSite

# The notebooks of the road. The others compare many runs, and take hours rather than minutes.
ROAD = ("01_collect", "02_curate", "03_split", "04_baseline_cnn", "05_augmentation", "14_photo_check")
# A notebook that finds no recorded run trains it, but a kernel shows no progress; so the verb does it first.
TRAINED_BEFORE = {
    "04_baseline_cnn": "baseline_cnn",
    "05_augmentation": "augmentation",
    "14_photo_check": "fast_recipe",
}
OWN_LENGTH = "fast_recipe"  # its learning rate rises and falls once over its own number of epochs: not to be cut
DEMO_IMAGE_SIZE = 64  # pixels: a minute for each training on two processor cores
MAIN_FIGURE = "main-figure"  # tag of the cell whose figure stands for its notebook on the page


def run_demo(folder: Path, listings: int, seed: int, epochs: int) -> Path:
    """Scrape the sample site with a real browser, run the notebooks, check three photos; give the page's path.

    Everything is written below `folder`. `listings` and `seed` shape the sample site; `epochs` is the length of the two
    trainings. Raises RuntimeError naming the stage that failed.
    """
    folder = folder.resolve()
    _keep_inside(folder)
    study = Study.open("sample")
    started = time.monotonic()
    _say(started, f"drawing the photos of {listings} listings")
    site_folder = folder / f"site-{listings}-{seed}"
    if not site_folder.exists():
        write_photos(site_folder, listings=listings, seed=seed)
    with SampleSite(site_folder) as site:
        _say(started, f"scraping {site.base_url} with a real browser")
        _command("scraper", "sample", "--base-url", site.base_url, "--out", str(study.raw))
    return _run_notebooks(study, folder, started, epochs, DEMO_IMAGE_SIZE)


def run_study(study: Study, folder: Path, photos: Path | None, classes: list[str], epochs: int | None) -> Path:
    """Import a folder of photos (or take what `data/` holds), run the notebooks on them; give the page's path.

    Executed notebooks and the page go to `folder`, which is not in git: they show the photos. Raises RuntimeError
    naming the stage that failed.
    """
    started = time.monotonic()
    if photos is not None:
        _say(started, f"importing {photos.name}")
        _command("carspotter", "import", str(photos), *_of(study), *(["--classes", *classes] if classes else []))
    return _run_notebooks(study, folder, started, epochs, classes=classes)


def _run_notebooks(
    study: Study,
    folder: Path,
    started: float,
    epochs: int | None,
    image_size: int | None = None,
    classes: list[str] | None = None,
) -> Path:
    parameters = {
        "STUDY": study.name,
        "DATA": str(study.data),
        "EPOCHS": epochs,
        "IMAGE_SIZE": image_size,
        "DTYPE": None,
    }
    parameters |= {"SEEDS": (0,)} | ({"CLASSES": tuple(classes)} if classes else {})
    executed = []
    for name in ROAD:
        source = checkout() / "notebooks" / f"{name}.ipynb"
        if experiment := TRAINED_BEFORE.get(name):
            _say(started, f"training {experiment}")
            given = {"--epochs": epochs, "--image-size": image_size} if experiment != OWN_LENGTH else {}
            options = [text for name, value in given.items() if value for text in (name, str(value))]
            _command("carspotter", "train", experiment, "--framework", "torch", *_of(study), *options)
        _say(started, f"notebook {source.stem}")
        target = folder / "notebooks" / source.name
        execute_notebook(source, target, **parameters)
        executed.append(target)
    _say(started, "checking three photos")
    answers = _check_three_photos(study)
    page = folder / "index.html"
    page.write_text(_page(study, executed, answers), encoding="utf-8")
    _say(started, "done")
    return page


def execute_notebook(source: Path, target: Path, **parameters) -> None:
    """Run a copy of notebook `source` and write it, executed, to `target` and as a web page beside it.

    `parameters` replace names of the cell tagged `parameters`. The source is never written. Raises RuntimeError naming
    the notebook when a cell fails; the copy, with the error in it, is written all the same.
    """
    notebook = nbformat.read(source, as_version=4)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise RuntimeError(f"{source.name} has no cell tagged `parameters`; add one, as in the other notebooks")
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    injected = nbformat.v4.new_code_cell(lines, metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(tagged[0] + 1, injected)
    target.parent.mkdir(parents=True, exist_ok=True)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = 0

    def report(cell, cell_index, execute_reply=None):
        nonlocal done
        done += 1
        print(f"    {source.stem}: cell {done} of {cells}", end="\r" if sys.stdout.isatty() else "\n", flush=True)

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(target.parent)}},
        on_cell_executed=report,
        extra_arguments=["--log-level=ERROR"],  # the kernel's note on its transport is not news to anybody here
    )
    try:
        client.execute()
    except Exception as error:
        # without the colours that the kernel paints its traceback with
        last_line = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-1]
        raise RuntimeError(f"notebook {source.name} failed: {last_line}; see {target}") from error
    finally:
        nbformat.write(notebook, target)
    exporter = HTMLExporter()
    exporter.log.setLevel(logging.ERROR)
    body, _ = exporter.from_notebook_node(notebook)
    target.with_suffix(".html").write_text(body, encoding="utf-8")


def _check_three_photos(study: Study) -> list[str]:
    """Two validation photos with a true claim and one with a false one, through the product's own command."""
    splits = read_splits(study)
    validation = splits[splits["split"] == "validation"].merge(read_photos(study.data)[["sha256", "path"]], on="sha256")
    first, second = sorted(validation["label"].unique())[:2]
    a = validation[validation["label"] == first].iloc[0]
    b = validation[validation["label"] == second].iloc[0]
    c = validation[validation["label"] == second].iloc[-1]
    answers = []
    for photo, claim in ((a, first), (b, second), (c, first)):
        path = str(study.data / photo["path"])
        out = _command("carspotter", "check", path, "--claim", claim, *_of(study), capture=True).strip()
        answers.append(f"{out} — labelled {photo['label']}")
        print(f"    {answers[-1]}", flush=True)
    return answers


def _keep_inside(folder: Path) -> None:
    """Point this process and its children at `folder`, so that nothing outside it changes."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CARSPOTTER_HOME"] = str(folder)
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR", "KERAS_HOME"):
        own = folder / ".settings" / variable.lower()
        own.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(own)


def _command(module: str, *arguments: str, capture: bool = False) -> str:
    """Run `python -m module …` from the checkout; its own progress is seen unless it is captured."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout() / "src"), str(checkout())])}
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE if capture else None,
        text=True,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"python -m {module} {arguments[0]} stopped with exit code {finished.returncode}; see above")
    return finished.stdout or ""


def _of(study: Study) -> list[str]:
    return ["--study", study.name, "--data", str(study.data)]


def _say(started: float, what: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    print(f"[{minutes:2d}:{seconds:02d}] {what}", flush=True)


def _page(study: Study, notebooks: list[Path], answers: list[str]) -> str:
    sections = []
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        alt = html.escape(title)
        pictures = _main_figures(notebook)
        figures = "".join(f'<img alt="{alt}" src="data:image/jpeg;base64,{picture}">' for picture in pictures)
        link = f"notebooks/{path.with_suffix('.html').name}"
        sections.append(f'<section><h2><a href="{link}">{html.escape(title)}</a></h2>{figures}</section>')
    table = runs_report(study).to_html(index=False, border=0, escape=True)
    checks = "".join(f"<li>{html.escape(answer)}</li>" for answer in answers)
    data = "rendered sample photos" if study.name == "sample" else f"study {html.escape(study.name)}"
    return PAGE.format(data=data, sections="".join(sections), table=table, checks=checks)


def _main_figures(notebook) -> list[str]:
    figures = []
    for cell in notebook.cells:
        if MAIN_FIGURE in cell.metadata.get("tags", []):
            pictures = [output.data for output in cell.outputs if "image/jpeg" in output.get("data", {})]
            figures += ["".join(picture["image/jpeg"].split()) for picture in pictures]
    return figures


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Carspotter: what the run found</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin: 0 0 .5rem; font-size: 1.15rem; }} a {{ color: #0072B2; }}
section {{ border: 1px solid #d8dee5; border-radius: 8px; padding: 1rem; margin: 1rem 0; overflow-x: auto; }}
img {{ max-width: 100%; display: block; }} table {{ border-collapse: collapse; font-size: .85rem; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e5e9ee; white-space: nowrap; }}
</style></head><body>
<h1>Carspotter</h1>
<p>Is this the car model that it is said to be? All figures on this page: {data}.</p>
{sections}
<section><h2>Recorded runs</h2>{table}</section>
<section><h2>Three photos checked</h2><ul>{checks}</ul></section>
</body></html>
"""
