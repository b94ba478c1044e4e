"""From photos to a page, step by step: what `make study` does, and what it shares with `make demo`.

Each step is the product's own command, function or notebook; started again, it goes on where it stopped.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
from matplotlib.figure import Figure
from nbconvert import HTMLExporter

from carspotter.evidence.report import runs_report
from carspotter.models.experiments import SERIES
from carspotter.models.runs import load_or_train
from carspotter.paths import Study, checkout
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

# The notebooks that need minutes; the others compare many runs, and take hours. Their numbers are left out.
NOTEBOOKS = ("collect", "curate", "split", "baseline_cnn", "augmentation", "photo_check")
# A notebook trains a run that is not recorded yet, but shows no progress meanwhile: so these are trained before it.
TRAINED_BEFORE = {"baseline_cnn": "baseline_cnn", "augmentation": "augmentation", "photo_check": "fast_recipe"}
OWN_LENGTH = "fast_recipe"  # its learning rate rises and falls once over its own number of epochs: not to be cut
MAIN_FIGURE = "main-figure"  # tag of the cell whose figure stands for its notebook on the page
FRAMEWORK = "torch" if importlib.util.find_spec("torch") else "keras"  # `make setup-light` installs Keras alone


class Steps:
    """Says which of `count` steps begins, with the time since the first."""

    def __init__(self, count: int):
        self.count, self.number, self.started = count, 0, time.monotonic()

    def begin(self, what: str) -> None:
        self.number += 1
        print(f"[{self.elapsed}] step {self.number} of {self.count}: {what}", flush=True)

    @property
    def elapsed(self) -> str:
        return "{:2d}:{:02d}".format(*divmod(int(time.monotonic() - self.started), 60))


def run_study(study: Study, folder: Path, photos: Path | None, classes: Sequence[str], epochs: int | None) -> Path:
    """Import a folder of photos (or take what `study.data` holds), run the notebooks on them and return the page.

    Executed notebooks and the page go to `folder`, which is not in git: they show the photos. `epochs` shortens the
    two first trainings. Raises RuntimeError naming the step that failed.
    """
    steps = Steps(len(NOTEBOOKS) + len(TRAINED_BEFORE) + 1 + (photos is not None))
    own = ["--study", study.name, "--data", str(study.data)]
    if photos is not None:
        steps.begin(f"importing {photos.name}")
        run_command("carspotter", "import", str(photos), *own, *(["--classes", *classes] if classes else []))
    parameters = {"STUDY": study.name, "DATA": str(study.data), "EPOCHS": epochs, "SEEDS": (0,)}
    parameters |= {"CLASSES": tuple(classes)} if classes else {}
    executed = []
    for name in NOTEBOOKS:
        (source,) = (checkout() / "notebooks").glob(f"[0-9][0-9]_{name}.ipynb")
        if name in TRAINED_BEFORE:
            train(study, TRAINED_BEFORE[name], epochs, steps)
        steps.begin(f"notebook {source.stem}")
        executed.append(execute_notebook(source, folder / "notebooks" / source.name, **parameters))
    steps.begin("checking three photos")
    sections = [_notebook_section(path) for path in executed]
    sections += [section("Recorded runs", runs_report(study).to_html(index=False, border=0, escape=True))]
    answers = "".join(f"<li>{html.escape(answer)}</li>" for answer in _check_three_photos(study, own))
    sections += [section("Three photos checked", f"<ul>{answers}</ul>")]
    lead = f"Is this the car model that it is said to be? All figures on this page: study {html.escape(study.name)}."
    return write_page(folder / "index.html", "Carspotter", f"<p>{lead}</p>" + "".join(sections))


def train(study: Study, name: str, epochs: int | None, steps: Steps) -> None:
    """Train an experiment of the series, or find its run recorded; `epochs` shortens it where its length is free."""
    steps.begin(f"training {name}")
    experiment = SERIES[name]
    if epochs and name != OWN_LENGTH:
        experiment = replace(experiment, epochs=epochs)
    load_or_train(study, experiment, FRAMEWORK)


def execute_notebook(source: Path, target: Path, **parameters) -> Path:
    """Run notebook `source`, write it, executed, to `target` and as a web page beside it; return `target`.

    `parameters` replace names of the cell tagged `parameters`. The source is never written. Raises RuntimeError naming
    the notebook when a cell fails; the copy, with the error in it, is written all the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for logger in ("papermill", "traitlets"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(source), str(target), parameters, cwd=target.parent, kernel_name="python3",
            progress_bar=sys.stderr.isatty(),
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"notebook {source.name} failed: {error.ename}: {error.evalue}; see {target}") from error
    body, _ = HTMLExporter().from_notebook_node(nbformat.read(target, as_version=4))
    target.with_suffix(".html").write_text(body, encoding="utf-8")
    return target


def run_command(module: str, *arguments: str, capture: bool = False) -> str:
    """Run `python -m module …` from the checkout; its own progress is seen unless it is captured, and returned."""
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


def section(title: str, body: str, link: str = "") -> str:
    """Return a framed part of the page; `title` is plain text, `body` is HTML."""
    heading = f'<a href="{link}">{html.escape(title)}</a>' if link else html.escape(title)
    return f"<section><h2>{heading}</h2>{body}</section>"


def figure_html(figure: Figure, alt: str) -> str:
    """Return a figure as an inline SVG image."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", bbox_inches="tight")
    return image_html(stream.getvalue(), "svg+xml", alt)


def image_html(content: bytes, kind: str, alt: str) -> str:
    """Return an image of the media type `image/<kind>` as HTML that needs no other file."""
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def write_page(path: Path, title: str, body: str) -> Path:
    """Write one self-contained page; `body` is HTML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page += '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    page += f"<style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>{body}</main></body></html>\n"
    path.write_text(page, encoding="utf-8")
    return path


def _notebook_section(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    cells = [cell for cell in notebook.cells if MAIN_FIGURE in cell.metadata.get("tags", [])]
    outputs = [
        output.data["image/jpeg"] for cell in cells for output in cell.outputs if "image/jpeg" in output.get("data", {})
    ]
    pictures = (image_html(base64.b64decode(picture), "jpeg", title) for picture in outputs)
    return section(title, "".join(pictures), f"notebooks/{path.with_suffix('.html').name}")


def _check_three_photos(study: Study, own: list[str]) -> list[str]:
    """Check two validation photos with a true claim and one with a false one, through the product's own command."""
    splits = read_splits(study)
    validation = splits[splits["split"] == "validation"].merge(read_photos(study.data)[["sha256", "path"]], on="sha256")
    first, second = sorted(validation["label"].unique())[:2]
    a = validation[validation["label"] == first].iloc[0]
    b = validation[validation["label"] == second].iloc[0]
    c = validation[validation["label"] == second].iloc[-1]
    answers = []
    for photo, claim in ((a, first), (b, second), (c, first)):
        out = run_command("carspotter", "check", str(study.data / photo["path"]), "--claim", claim, *own, capture=True)
        answers.append(f"{out.strip()} (labelled {photo['label']})")
        print(f"    {answers[-1]}", flush=True)
    return answers


STYLE = """
:root { --ink: #1c2733; --soft: #5b6875; --line: #d8dee5; --blue: #0072B2; --green: #00755a; --red: #b34700; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, 'Liberation Sans', sans-serif; color: var(--ink); background: #f5f7f9; margin: 0; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.15; margin: 1rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; } a { color: var(--blue); } p { margin: .4rem 0; max-width: 44rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.2rem; margin: 1rem 0; }
section { overflow-x: auto; }
img { max-width: 100%; display: block; } table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
.lead { font-size: 1.15rem; color: var(--soft); } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; margin: 1.2rem 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.card img { width: 100%; aspect-ratio: 4/3; object-fit: cover; } .card div { padding: .7rem .9rem .9rem; }
.card strong { display: block; font-size: 1.15rem; } .yes { color: var(--green); } .no { color: var(--red); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 0; }
.numbers div { border-left: 3px solid var(--blue); padding-left: .7rem; }
.numbers dt { color: var(--soft); font-size: .85rem; } .numbers dd { margin: 0; font-size: 1.5rem; font-weight: 700; }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(9rem, 30%), 1fr)); gap: .5rem; }
.photos figure { margin: 0; } .photos img { width: 100%; aspect-ratio: 4/3; object-fit: cover; border-radius: 6px; }
.photos figcaption { font-size: .78rem; color: var(--soft); line-height: 1.3; padding: .2rem 0 .3rem; }
pre { background: #eef2f5; border-radius: 8px; padding: .8rem; overflow-x: auto; font-size: .85rem; margin: .6rem 0 0; }
"""
