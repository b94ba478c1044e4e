"""The whole way on the sample site, in minutes: scrape, curate, split, train, export, check four photos, show a page.

Each step is the product's own command or function. Started again, the demo goes on where it stopped.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from carspotter.evidence.intervals import accuracy_interval
from carspotter.evidence.plots import training_curves
from carspotter.models.experiments import FAST_RECIPE
from carspotter.models.runs import load_or_train
from carspotter.models.store import Run
from carspotter.paths import Study, atomic_write
from carspotter.photos.table import kind_of, read_curation, read_photos
from carspotter.walkthrough import FRAMEWORK, Steps, figure_html, image_html, run_command, section, write_page
from carspotter_check.photo_check import Answer, PhotoCheck

from .site import ARCHIVE, MODEL_NAMES, SampleSite, read_listings

EPOCHS = 24
RISK = 0.05  # wrong answers among those the check gives; after so few photos one in a hundred cannot be promised
MINUTES, MATRIX_SECONDS = 4.0, 0.1  # the demo's, and those of `_minutes_here`, on one and the same machine
SHOWN = 12  # photos in a grid of the page
QUESTIONS = (  # what a photo shows, the ad's claim, and where the archive has one: its folder, kind and model
    ("a Swift", "swift", "sample", "car", "swift"),
    ("a WagonR", "swift", "sample", "car", "wagonr"),
    ("a Baleno, a model it has never seen", "swift", "others", "car", "baleno"),
    ("a dashboard", "wagonr", "sample", "dashboard", ""),
)
SAID = {  # what a verdict means to somebody who reads the page: words, and the colour's class
    "match": ("Yes", "yes"),
    "other_model": ("No, another model", "no"),
    "unusable": ("No, nothing to check here", "no"),
    "not_sure": ("Not sure: let a person look", "soft"),
}


@dataclass(frozen=True)
class Question:
    """A photo that was never collected, what it shows, what its ad claims, and the answer of the check."""

    shows: str
    claim: str
    photo: bytes
    answer: Answer


def run_demo(folder: Path, listings: int, epochs: int = EPOCHS) -> Path:
    """Go the whole way on the first `listings` of the sample site and return the page.

    Everything is written below `folder`. Raises RuntimeError naming the step that failed.
    """
    folder = folder.resolve()
    _keep_inside(folder)
    study = Study.open("demo")
    own = ["--study", study.name, "--data", str(study.data)]
    print(
        f"This takes about {_minutes_here():.0f} minutes on this machine. Everything is written to {folder}", flush=True
    )
    steps = Steps(6)
    with SampleSite(listings=listings) as site:
        steps.begin(f"collecting photos of {len(site.listings)} cars from a used-car site, with a real browser")
        stored = {path.stem for path in study.raw.glob("*/*/*.webp")}
        if not site.allowed_photos() <= stored:  # by their bytes: the site may be on another port than last time
            run_command("scraper", "sample", "--base-url", site.base_url, "--out", str(study.raw))
    steps.begin("putting copies and junk aside")
    review(study)
    run_command("carspotter", "curate", *own)
    steps.begin("splitting them, so that no car is on both sides")
    run_command("carspotter", "split", *own)
    experiment = replace(FAST_RECIPE, epochs=epochs)
    steps.begin(f"training a network from scratch: {experiment.name}, {epochs} epochs")
    run = load_or_train(study, experiment, FRAMEWORK)
    steps.begin("exporting it, as it goes to production")
    bundle = folder / "bundle"
    if not bundle.exists():
        run_command("carspotter", "export", run.id, "--risk", str(RISK), "--out", str(bundle), *own)
    steps.begin("checking four photos that it has never seen")
    questions = ask(PhotoCheck.load(bundle), listings)
    for one in questions:
        print(f"    {one.shows}, said to be a {MODEL_NAMES[one.claim]}: {one.answer.verdict}: {one.answer.reason}")
    page = write_page(folder / "index.html", "Is this the car that the ad claims?", _page(study, run, questions, steps))
    print(f"[{steps.elapsed}] done", flush=True)
    return page


def review(study: Study) -> None:
    """Reject the junk among the collected photos in a reviewer's stead: the renderer knows what it drew."""
    stored = {path.stem for path in study.raw.glob("*/*/*.webp")}
    lines = (zipfile.Path(ARCHIVE) / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    mine = [line for line in lines if json.loads(line)["sha256"] in stored]
    with atomic_write(study.reviews) as part:
        part.write_text("".join(line + "\n" for line in mine), encoding="utf-8")


def ask(check: PhotoCheck, listings: int) -> list[Question]:
    """Check one photo for each of QUESTIONS, of ads after the first `listings`, which the demo has not collected."""
    root = zipfile.Path(ARCHIVE)
    collected = {one.id for one in read_listings(root / SampleSite.name)[:listings]}
    with (root / "truth.csv").open(encoding="utf-8") as file:
        truth = [row for row in csv.DictReader(file) if row["listing"] not in collected and not row["copy"]]
    questions = []
    for shows, claim, *wanted in QUESTIONS:
        row = next(row for row in truth if [row["file"].partition("/")[0], row["kind"], row["model"]] == wanted)
        photo = (root / row["file"]).read_bytes()
        questions.append(Question(shows, claim, photo, check.check(photo, claim)))
    return questions


def _page(study: Study, run: Run, questions: list[Question], steps: Steps) -> str:
    photos, curation = read_photos(study.data), read_curation(study)
    table = curation.merge(photos[["sha256", "path", "listings"]], on="sha256")
    files = {row.sha256: study.data / row.path for row in table.itertuples()}
    validation = run.validation
    named = validation[run.class_names].idxmax(axis=1)
    sure = validation[run.class_names].max(axis=1)
    listing = validation["sha256"].map(table.set_index("sha256")["listings"].str[0])
    accuracy = accuracy_interval((named == validation["label"]).to_numpy(), listing.to_numpy())
    cards = "".join(map(_card, questions))
    numbers = {
        "photos collected": f"{len(photos):,}",
        "ads": f"{photos['listings'].explode().nunique():,}",
        "copies and junk put aside": f"{(curation['verdict'] == 'reject').sum():,}",
        "photos to learn from": f"{int(run.row['train_photos']):,}",
        "named rightly, of cars not seen before": f"{accuracy.estimate:.1%}",
        "to train, on " + str(run.row["device"]): f"{run.row['seconds'] / 60:.1f} min",
    }
    figures = "".join(f"<div><dt>{name}</dt><dd>{figure}</dd></div>" for name, figure in numbers.items())
    table = table.sample(frac=1, random_state=0)
    kept, rejected = (table[table["verdict"] == verdict] for verdict in ("keep", "reject"))
    why = rejected["reason"].str.removeprefix("reviewed: ").map(kind_of)
    rejected = rejected.assign(why=why)[why.groupby(why).cumcount() < 2].sort_values("why")
    wrong = validation.assign(named=named, sure=sure)[named != validation["label"]].sort_values("sure", ascending=False)
    parts = [
        '<p class="lead">A small network learned to tell two hatchbacks apart, from photos that a browser collected '
        "from used-car ads a few minutes ago. Then it was asked about four ads.</p>",
        f'<div class="cards">{cards}</div>',
        section(
            "From ads to an answer",
            f'<dl class="numbers">{figures}</dl>'
            f'<p class="soft">95 % interval of the accuracy, over cars: {accuracy.low:.1%} to {accuracy.high:.1%}.</p>',
        ),
        section(
            "What the ads showed",
            "<p>The label is what the ad claims: about one photo in ten shows something else, and was put aside.</p>"
            + _grid(files, [(row.sha256, MODEL_NAMES[row.label]) for row in kept.head(SHOWN).itertuples()]),
        ),
        section(
            "What was put aside",
            "<p>Surplus copies go by themselves. The rest a person rejects, in the order that the program proposes; "
            "here the renderer answered in a person's stead, since it knows what it drew.</p>"
            + _grid(files, [(row.sha256, row.why) for row in rejected.head(SHOWN).itertuples()]),
        ),
        section("How it learned", figure_html(training_curves({"this run": run.history}), "training curves")),
        section(
            f"Where it is wrong: {len(wrong)} of {len(validation)} photos of cars that it had not seen",
            _grid(files, [
                (row.sha256, f"{MODEL_NAMES[row.label]}, called {MODEL_NAMES[row.named]} (p = {row.sure:.2f})")
                for row in wrong.head(SHOWN).itertuples()
            ]),
        ),
        section(
            "Go on",
            "<p>Ask this model yourself, or open the notebooks, which do all of this step by step and ask how good it "
            "really is.</p><pre>carspotter serve demo/bundle      # the photo check, with a page to try it\n"
            "make lab                          # the notebooks, from 01_collect.ipynb on</pre>"
            f'<p class="soft">Made in {steps.elapsed.strip()} minutes. The cars, ads and number plates on this page '
            "are drawn by a computer; none of them is real.</p>",
        ),
    ]  # fmt: skip
    return "".join(parts)


def _card(question: Question) -> str:
    words, colour = SAID[question.answer.verdict]
    claim = MODEL_NAMES[question.claim]
    return (
        f'<div class="card">{_photo_html(question.photo, question.shows, 480)}<div>The ad says: {claim}'
        f'<strong class="{colour}">{words}</strong><span class="soft">It shows {html.escape(question.shows)}. '
        f"The check: {html.escape(question.answer.reason)}.</span></div></div>"
    )


def _grid(files: dict[str, Path], photos: list[tuple[str, str]]) -> str:
    figures = (
        f"<figure>{_photo_html(files[sha256].read_bytes(), caption, 240)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for sha256, caption in photos
    )
    return f'<div class="photos">{"".join(figures)}</div>'


def _photo_html(photo: bytes, alt: str, side: int) -> str:
    with Image.open(io.BytesIO(photo)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=80)
    return image_html(stream.getvalue(), "webp", alt)


def _keep_inside(folder: Path) -> None:
    """Point this process and its children at `folder`, so that nothing outside it changes."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CARSPOTTER_HOME"] = str(folder)
    for variable in ("MPLCONFIGDIR", "KERAS_HOME"):
        own = folder / ".settings" / variable.lower()
        own.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(own)


def _minutes_here() -> float:
    """Guess how many minutes the demo takes, from the speed of some matrix products, which training mostly is."""
    matrix = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(8):
        matrix @ matrix
    return max(MINUTES * (time.perf_counter() - started) / MATRIX_SECONDS, 1)
