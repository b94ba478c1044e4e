"""The demo: from ads to a page, with a browser and a training that is cut short."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from carspotter.models.experiments import FAST_RECIPE
from carspotter.paths import Study
from carspotter_check.photo_check import Answer
from carspotter_project import walkthrough
from carspotter_project.walkthrough import SAID, Checked, answer_card
from carspotter_sample.demo import QUESTIONS, ask, ask_about_others
from carspotter_sample.site import ARCHIVE, MODEL_NAMES, read_listings

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not ARCHIVE.exists(), reason="data/sample_2.zip is missing")


class Stub:
    """Stands for a PhotoCheck that says "match" to the first `matches` photos; keeps what it was asked."""

    def __init__(self, matches: int = 1_000):
        self.asked, self.matches = [], matches

    def check(self, photo: bytes, claim: str) -> Answer:
        self.asked.append((photo, claim))
        verdict = "match" if len(self.asked) <= self.matches else "not_sure"
        return Answer("photo", verdict, claim, {}, "", decided_by="confidence", run="run", version="version")


def test_the_four_questions_are_about_photos_of_ads_that_the_demo_has_not_collected():
    stub, listings = Stub(), 300
    questions = ask(stub, listings)
    assert [one.claim for one in questions] == [MODEL_NAMES[claim] for _, claim, *_ in QUESTIONS]
    with (zipfile.Path(ARCHIVE) / "truth.csv").open(encoding="utf-8") as file:
        truth = {row["sha256"]: row for row in csv.DictReader(file)}
    asked = [truth[hashlib.sha256(photo).hexdigest()] for photo, _ in stub.asked]
    assert [(row["kind"], row["model"]) for row in asked] == [(kind, model) for *_, kind, model, _ in QUESTIONS]
    collected = {one.id for one in read_listings(zipfile.Path(ARCHIVE) / "sample")[:listings]}
    assert [one.claim_is_true for one in questions] == [True, False, False, False]
    assert len(collected) == listings and collected.isdisjoint(row["listing"] for row in asked)


def test_a_part_of_the_page_without_photos_says_so(tmp_path):
    assert walkthrough._grid({}, []) == "<p>None.</p>"


def test_a_bundle_of_another_run_is_exported_anew(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(walkthrough, "run_command", lambda verb, *_: done.append(verb))
    study, bundle, run = Study("toy", tmp_path, tmp_path), tmp_path / "bundle", SimpleNamespace(id="new")
    monkeypatch.setattr(walkthrough, "load_or_train", lambda *_: run)
    bundle.mkdir()
    for there, exported in (("old", 1), ("new", 0)):
        (bundle / "manifest.json").write_text(json.dumps({"run": there}))
        done.clear()
        walkthrough.learn(study, walkthrough.Steps(4), bundle, [FAST_RECIPE])
        assert done.count("export") == exported


@pytest.mark.parametrize(("verdict", "claim_is_true"), [("match", False), ("other_model", True)])
def test_the_page_says_where_an_answer_is_wrong(verdict, claim_is_true):
    stub = Stub()
    ask(stub, 1)
    photo = stub.asked[0][0]
    wrong, right = (
        answer_card(Checked(photo, "", "", verdict, "", true)) for true in (claim_is_true, not claim_is_true)
    )
    assert "<strong" in right and ", wrongly</strong>" in wrong and "wrongly" not in right


def test_the_demo_counts_the_photos_of_other_models_that_are_taken_for_a_swift():
    stub = Stub(matches=7)
    said = ask_about_others(stub)
    count = len(stub.asked)
    assert count > 100 and said.startswith(f"Of {count} photos of 5 other models, each said to be a Swift, 7 are")
    assert {claim for _, claim in stub.asked} == {"swift"}


@pytest.mark.slow
def test_the_demo_goes_from_ads_to_a_page_and_writes_nowhere_else(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    before = subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True).stdout
    command = [sys.executable, "-m", "carspotter", "demo", "--out", "demo", "--listings", "60", "--epochs", "2"]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True).stdout == before
    page = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == len(QUESTIONS)
    assert any(words in page for words, _ in SAID.values())
    assert re.search(r"Of \d+ photos of 5 other models, each said to be a Swift, \d+ are taken", page)
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs a file beside it"
    again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "photos found" not in again.stdout, "it collected the photos again"
