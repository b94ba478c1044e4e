"""From photos to a page, step by step: what `make study` does, and what it shares with `make demo`."""

import html
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from carspotter.evidence.intervals import accuracy_interval
from carspotter.evidence.plots import training_curves
from carspotter.evidence.report import runs_report
from carspotter.models.experiments import BASELINE, FAST_RECIPE, Experiment
from carspotter.models.runs import load_or_train
from carspotter.models.store import Run
from carspotter.page import figure, image_html, photo_html, section, write_page
from carspotter.paths import Study, checkout
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import kind_of, read_curation, read_photos
from carspotter_check.bundle import MANIFEST

FRAMEWORK = "torch" if importlib.util.find_spec("torch") else "keras"  # `make setup-light` installs Keras alone
RISK = 0.05  # wrong answers among those the check gives: with few photos one in a hundred cannot be promised
SHOWN = 12  # photos in a grid of the page
SAID = {  # what a verdict means to somebody who reads the page: words, and the colour's class
    "match": ("Yes", "yes"),
    "other_model": ("No, another model", "no"),
    "unusable": ("No, nothing to check here", "no"),
    "not_sure": ("Not sure: let a person look", "soft"),
}


@dataclass(frozen=True)
class Checked:
    """A photo, what it shows and what an ad claims, in words; the verdict of the photo check and its reason.

    `claim_is_true`: whether the photo shows what the ad claims.
    """

    photo: bytes
    shows: str
    claim: str
    verdict: str
    reason: str
    claim_is_true: bool


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
    """Import a folder of photos (or take what `study.data` holds), do all steps on them and return the page.

    The page and the exported model go to `folder`. `epochs` are the baseline's alone.
    """
    steps = Steps(6 + (photos is not None))
    chosen = ["--classes", *classes] if classes else []
    if photos is not None:
        steps.begin(f"importing {photos.name}")
        run_command("import", str(photos), *chosen, *_of(study))
    baseline = replace(BASELINE, epochs=epochs or BASELINE.epochs)
    run, bundle = learn(study, steps, folder / "bundle", (baseline, FAST_RECIPE), chosen)
    steps.begin("checking a photo of each class, and one with a false claim")
    validation = run.validation.merge(read_photos(study.data)[["sha256", "path"]], on="sha256")
    first, second = run.class_names[:2]
    questions = [(first, first, 0), (second, second, 0), (second, first, -1)]
    checked = []
    for label, claim, number in questions:
        path = study.data / validation.loc[validation["label"] == label, "path"].iloc[number]
        answer = json.loads(
            run_command("check", str(path), "--claim", claim, "--model", str(bundle), "--json", capture=True)
        )
        found = answer["verdict"], answer["reason"]
        checked.append(Checked(path.read_bytes(), label, claim, *found, claim_is_true=label == claim))
        print(f"    a photo of {label}, said to be {claim}: {answer['verdict']}: {answer['reason']}", flush=True)
    lead = f"A network learned from the photos of the study {study.name}. Then it was asked about three of them."
    recorded = section("Recorded runs", runs_report(study).to_html(index=False, border=0, escape=True))
    return write_page(folder / "index.html", "What the photos show", lead, page_body(study, run, checked) + recorded)


def learn(
    study: Study, steps: Steps, bundle: Path, experiments: Sequence[Experiment], classes: Sequence[str] = ()
) -> tuple[Run, Path]:
    """Curate, split, train the experiments and export the last one's run to `bundle`; return the run and the bundle."""
    steps.begin("putting copies and junk aside")
    run_command("curate", *_of(study))
    steps.begin("splitting the photos, so that no car is on both sides")
    run_command("split", *classes, *_of(study))
    for experiment in experiments:
        steps.begin(f"training {experiment.name}, {experiment.epochs} epochs")
        run = load_or_train(study, experiment, FRAMEWORK)
    steps.begin("exporting the model, as it goes to production")
    manifest = bundle / MANIFEST
    # What is there may be the run of other photos or epochs.
    if not manifest.exists() or json.loads(manifest.read_text(encoding="utf-8"))["run"] != run.id:
        run_command("export", run.id, "--risk", str(RISK), "--out", str(bundle), *_of(study))
    return run, bundle


def run_command(*arguments: str, module: str = "carspotter", capture: bool = False) -> str:
    """Run `python -m module …` from the checkout; return its output where it is captured."""
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


def page_body(study: Study, run: Run, checked: Sequence[Checked], names: dict[str, str] | None = None) -> str:
    """Return the page's HTML: the answers, the figures, what was put aside, how it learned, its mistakes.

    `names` are the labels as people write them.
    """
    names = names or {name: name for name in run.class_names}
    table = read_curation(study).merge(read_photos(study.data)[["sha256", "path", "listings"]], on="sha256")
    table = table.sample(frac=1, random_state=0)
    files = {row.sha256: study.data / row.path for row in table.itertuples()}
    validation = run.validation
    probabilities = validation[run.class_names]
    validation = validation.assign(named=probabilities.idxmax(axis=1), sure=probabilities.max(axis=1))
    group = validation["sha256"].map(read_splits(study).set_index("sha256")["group"])
    right = validation["named"] == validation["label"]
    accuracy = accuracy_interval(right.to_numpy(), group.to_numpy())
    kept, rejected = (table[table["verdict"] == verdict] for verdict in ("keep", "reject"))
    why = rejected["reason"].str.removeprefix("reviewed: ").map(kind_of)
    rejected = rejected.assign(why=why)[why.groupby(why).cumcount() < 2].sort_values("why")
    wrong = validation[~right].sort_values("sure", ascending=False)
    numbers = {
        "photos collected": f"{len(table):,}",
        "copies and junk put aside": f"{(table['verdict'] == 'reject').sum():,}",
        "photos to learn from": f"{int(run.row['train_photos']):,}",
        "classified correctly, of photos of other cars": f"{100 * accuracy.estimate:.1f} %",
        f"to train, on {run.row['device']}": f"{run.row['seconds'] / 60:.1f} min",
    }
    figures = "".join(f"<div><dt>{name}</dt><dd>{figure}</dd></div>" for name, figure in numbers.items())
    caution = (
        f"The accuracy is {100 * accuracy.low:.1f} % to {100 * accuracy.high:.1f} % at 95 %, over cars, at the best "
        "epoch: a little optimistic."
    )
    shown = [(row.sha256, names.get(row.label, row.label)) for row in kept.head(SHOWN).itertuples()]
    aside = [(row.sha256, row.why) for row in rejected.head(SHOWN).itertuples()]
    mistakes = [
        (row.sha256, f"{names[row.label]}, called {names[row.named]} (p = {row.sure:.2f})")
        for row in wrong.head(SHOWN).itertuples()
    ]
    curves = io.BytesIO()
    training_curves({run.row["experiment"]: run.history}).savefig(curves, format="svg", bbox_inches="tight")
    sections = {
        "From photos to an answer": f'<dl class="numbers">{figures}</dl><p class="soft">{caution}</p>',
        "What it learned from": _grid(files, shown),
        "What was put aside": _grid(files, aside),
        "How it learned": image_html(curves.getvalue(), "svg+xml", "learning curves"),
        f"Where it is wrong: {len(wrong)} of {len(validation)} photos": _grid(files, mistakes),
    }
    cards = f'<div class="cards">{"".join(map(answer_card, checked))}</div>'
    return cards + "".join(section(title, body) for title, body in sections.items())


def _of(study: Study) -> list[str]:
    return ["--study", study.name, "--data", str(study.data)]


def answer_card(checked: Checked) -> str:
    """Return the HTML of a photo with the ad's claim, the answer, and whether that is wrong."""
    words, colour = SAID[checked.verdict]
    if checked.verdict == ("other_model" if checked.claim_is_true else "match"):
        words, colour = f"{words}, wrongly", "no"
    return (
        f'<div class="card">{photo_html(checked.photo, checked.shows, 480)}<div>The ad says: '
        f'{html.escape(checked.claim)}<strong class="{colour}">{words}</strong><span class="soft">It shows '
        f"{html.escape(checked.shows)}. The check: {html.escape(checked.reason)}.</span></div></div>"
    )


def _grid(files: dict[str, Path], photos: Sequence[tuple[str, str]]) -> str:
    if not photos:
        return "<p>None.</p>"
    return f'<div class="photos">{"".join(figure(files[sha256], caption) for sha256, caption in photos)}</div>'
