"""The whole way on the sample site, in minutes: scrape, curate, split, train, export, check four photos, show a page.

Started again, the demo goes on where it stopped.
"""

import csv
import json
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from carspotter.models.experiments import FAST_RECIPE
from carspotter.page import section, write_page
from carspotter.paths import Study, atomic_write
from carspotter_check.photo_check import PhotoCheck
from carspotter_project.walkthrough import Checked, Steps, learn, page_body, run_command

from .site import ARCHIVE, MODEL_NAMES, SampleSite, read_listings

EPOCHS = 28
MINUTES, MATRIX_SECONDS = 4.0, 0.1  # the demo's, and those of `_minutes_here`, on one and the same machine
QUESTIONS = (  # what a photo shows, the ad's claim, and where the archive has one: folder, kind, model, view
    ("a Swift", "swift", "sample", "car", "swift", "left"),
    ("a WagonR", "swift", "sample", "car", "wagonr", "front_left"),
    ("a Baleno, a model it has never seen", "swift", "others", "car", "baleno", "front_left"),
    ("a dashboard", "wagonr", "sample", "dashboard", "", ""),
)
LEAD = """A small network learned to tell two hatchbacks apart, from photos that a browser collected from used-car ads
a few minutes ago. Then it was asked about four ads that it had never seen."""
GO_ON = """<p>Ask this model yourself, or open the notebooks, which do all of this step by step and ask how good it
really is.</p><pre>carspotter serve {bundle}    # the photo check, with a page to try it
make lab    # the notebooks, from 01_collect.ipynb on</pre><p class="soft">Made in {minutes} minutes. The cars, ads
and number plates on this page are drawn by a computer, none of them is real; and the junk was put aside by the computer
that drew it, in place of a person.</p>"""


def run_demo(folder: Path, listings: int, epochs: int = EPOCHS) -> Path:
    """Go the whole way on the first `listings` of the sample site and return the page.

    Everything is written below `folder`. Raises RuntimeError naming the step that failed.
    """
    folder = folder.resolve()
    _keep_inside(folder)
    study = Study.open("demo")
    print(
        f"This takes about {_minutes_here():.0f} minutes on this machine. Everything is written to {folder}", flush=True
    )
    steps = Steps(6)
    with SampleSite(listings=listings) as site:
        steps.begin(f"collecting photos of {len(site.listings)} cars from a used-car site, with a real browser")
        stored = {path.stem for path in study.raw.glob("*/*/*.webp")}
        if not site.allowed_photos() <= stored:  # by their bytes: the site may be on another port than last time
            run_command("sample", "--base-url", site.base_url, "--out", str(study.raw), module="scraper")
    review(study)
    run, bundle = learn(study, steps, folder / "bundle", [replace(FAST_RECIPE, epochs=epochs)])
    steps.begin("checking four photos that it has never seen")
    check = PhotoCheck.load(bundle)
    checked = ask(check, listings)
    for one in checked:
        print(f"    {one.shows}, said to be a {one.claim}: {one.verdict}: {one.reason}", flush=True)
    taken = ask_about_others(check)
    print(f"    {taken}", flush=True)
    go_on = section("Go on", GO_ON.format(bundle=f"{folder.name}/{bundle.name}", minutes=steps.elapsed.strip()))
    others = section("Models it has never seen", f"<p>{taken}</p>")
    body = page_body(study, run, checked, MODEL_NAMES) + others + go_on
    page = write_page(folder / "index.html", "Is this the car that the ad claims?", LEAD, body)
    print(f"[{steps.elapsed}] done", flush=True)
    return page


def review(study: Study) -> None:
    """Reject the junk among the collected photos, as a reviewer would: the renderer knows what it drew."""
    stored = {path.stem for path in study.raw.glob("*/*/*.webp")}
    lines = (zipfile.Path(ARCHIVE) / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    mine = [line for line in lines if json.loads(line)["sha256"] in stored]
    with atomic_write(study.reviews) as part:
        part.write_text("".join(line + "\n" for line in mine), encoding="utf-8")


def ask(check: PhotoCheck, listings: int) -> list[Checked]:
    """Check one photo for each of QUESTIONS, of ads after the first `listings`, which the demo has not collected."""
    root = zipfile.Path(ARCHIVE)
    collected = {one.id for one in read_listings(root / SampleSite.name)[:listings]}
    truth = [row for row in _drawn(root) if row["listing"] not in collected]
    checked = []
    for shows, claim, *wanted in QUESTIONS:
        row = next(
            row for row in truth if [row["file"].partition("/")[0], row["kind"], row["model"], row["view"]] == wanted
        )
        photo = (root / row["file"]).read_bytes()
        answer = check.check(photo, claim)
        checked.append(Checked(photo, shows, MODEL_NAMES[claim], answer.verdict, answer.reason, row["model"] == claim))
    return checked


def ask_about_others(check: PhotoCheck) -> str:
    """Say how many of the archive's photos of other models pass for the Swift that an ad claims: one alone is luck."""
    root = zipfile.Path(ARCHIVE)
    others = [row for row in _drawn(root) if row["file"].startswith("others/") and row["kind"] == "car"]
    verdicts = [check.check((root / row["file"]).read_bytes(), "swift").verdict for row in others]
    return (
        f"Of {len(verdicts)} photos of {len({row['model'] for row in others})} other models, each said to be a Swift, "
        f"{verdicts.count('match')} are taken for one. This is the hard part of a photo check; notebook 16 measures it."
    )


def _drawn(root: zipfile.Path) -> list[dict[str, str]]:
    """Return what the archive's photos show, without copies of others."""
    with (root / "truth.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if not row["copy"]]


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
