"""Unsealing: one look, written down before it is taken; levels that pay for looking again; the drop on other photos."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carspotter import cli
from carspotter.evidence import sealed_score
from carspotter.evidence.intervals import accuracy_interval
from carspotter.evidence.report import runs_report
from carspotter.evidence.results import results_of
from carspotter.evidence.sealed_score import SealedScore, drop, read_scores, score_sealed
from carspotter.evidence.selection import choose_run
from carspotter.models.store import COLUMNS, Run, load_run
from carspotter.paths import Study
from carspotter.photos.importing import import_folder
from carspotter.photos.sealed_test import SealedTestRefused, read_ledger
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

SIZE = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A study of 96 plain photos of two classes, told apart by brightness, but for one from Pune."""
    home = tmp_path_factory.mktemp("world")
    data, folder = home / "data", home / "photos"
    rng = np.random.default_rng(0)
    listings = []
    for number in range(96):
        label = ("swift", "wagonr")[number % 2]
        city = ("Delhi", "Pune")[number // 2 % 2]
        light = 60 if label == "swift" else (90 if city == "Pune" else 200)
        pixels = np.clip(light + rng.integers(-9, 9, (SIZE + number % 3, 12, 3)), 0, 255).astype(np.uint8)
        path = folder / label / f"car{number // 4}_{label}__{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        listings.append((f"{label}/{path.name}", path.name.split("__")[0], city))
    pd.DataFrame(listings, columns=["file", "listing", "city"]).to_csv(folder / "listings.csv", index=False)
    import_folder(data, folder, show_progress=False)
    return home


@pytest.fixture
def study(world, tmp_path, monkeypatch):
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    (data / "raw").symlink_to(world / "data" / "raw")
    study = Study("study", data, tmp_path / "results")
    photos = read_photos(data).sort_values("listings", ignore_index=True)
    group = photos["listings"].str[0]
    place = pd.factorize(group)[0] % 8
    split = np.select([place < 2, place < 4, place < 6], ["train", "validation", "test"], "shifted")
    splits = pd.DataFrame({"sha256": photos["sha256"], "label": photos["label"], "group": group, "split": split})
    sealed = splits["split"].isin(["test", "shifted"])
    study.folder.mkdir(parents=True)
    study.sealed.parent.mkdir()
    splits.loc[sealed, ["sha256", "label"]].to_csv(study.sealed, index=False)
    splits.loc[sealed, "label"] = ""
    splits.to_csv(study.splits, index=False)
    record(study, splits, "large", 0, parameters=9, wrong=1)
    record(study, splits, "small", 0, parameters=5, wrong=2)
    record(study, splits, "small", 1, parameters=5, wrong=1)
    record(study, splits, "tiny", 0, parameters=1, wrong=9)
    record(study, splits, "toy", 0, parameters=1, wrong=0, quick=True)
    # the model: bright photos are wagonr, which is false for the dark ones of Pune
    bright = lambda run, images: np.eye(2, dtype=np.float32)[(images.mean((1, 2, 3)) > 120).astype(int)]  # noqa: E731
    monkeypatch.setattr(Run, "predict", bright)
    return study


def record(study, splits, experiment, seed, parameters, wrong, quick=False):
    """Write a recorded run that classifies all validation photos correctly but the first `wrong` ones."""
    run = f"{experiment}-s{seed}"
    folder = study.runs / run
    folder.mkdir(parents=True)
    validation = splits[splits["split"] == "validation"][["sha256", "label"]].reset_index(drop=True)
    right = (validation["label"] == "wagonr").to_numpy() ^ (np.arange(len(validation)) < wrong)
    validation["swift"], validation["wagonr"] = 1.0 - right, right.astype(float)
    validation.to_csv(folder / "validation.csv", index=False)
    scores = np.repeat(validation[["swift", "wagonr"]].to_numpy(np.float16)[np.newaxis], 5, axis=0)
    np.savez(folder / "validation_epochs.npz", scores=scores)
    (folder / "spec.json").write_text(json.dumps({"class_names": ["swift", "wagonr"], "image_size": SIZE}))
    pd.DataFrame({"epoch": [1], "train_accuracy": [0.9], "validation_accuracy": [0.9]}).to_csv(
        folder / "history.csv", index=False
    )
    row = {column: "" for column in COLUMNS} | {
        "run": run,
        "experiment": experiment,
        "framework": "torch",
        "seed": seed,
    }
    row |= {"parameters": parameters, "quick": quick, "split_version": "v1", "finished_time": f"2026-01-0{seed + 1}"}
    row |= {"epochs": 1, "image_size": SIZE, "dtype": "float32", "best_epoch": 1, "seconds": 60}
    row |= {"best_validation_accuracy": 0.9, "last_validation_accuracy": 0.9, "processor_seconds": 60}
    row |= {"last_inference_train_accuracy": 0.9}
    table = pd.DataFrame([row], columns=COLUMNS)
    table.to_csv(study.runs_table, mode="a", index=False, header=not study.runs_table.exists())


def unseal(study, run, *arguments):
    return cli.main(["unseal", run, "--study", study.name, "--data", str(study.data), *arguments])


def test_a_look_is_scored_written_down_and_taken_apart(study):
    score = score_sealed(study, load_run(study, "large-s0"), "chosen on validation")
    assert str(score).startswith("test accuracy 0.750 [") and "97.5 % interval, evaluation 1" in str(score)
    parts = score.parts.set_index(["by", "part"])["accuracy"]
    assert parts["city", "Delhi"] == 1 and parts["city", "Pune"] == 0.5
    assert parts["label", "swift"] == 1 and parts["label", "wagonr"] == 0.5
    for by, members in score.parts.groupby("by"):
        assert members["photos"].sum() == score.interval.photos, by
    assert set(score.parts["by"]) == {"label", "city"}
    assert [look["run"] for look in read_ledger(study)] == ["large-s0"]
    (again,) = read_scores(study)
    assert again.interval == score.interval
    pd.testing.assert_frame_equal(again.parts, score.parts)


def test_each_look_costs_confidence(study):
    run = load_run(study, "large-s0")
    scores = [score_sealed(study, run, "look") for _ in range(3)]
    assert [score.look for score in scores] == [1, 2, 3]
    assert [score.interval.level for score in scores] == pytest.approx([0.975, 0.9875, 0.99375])
    widths = [score.interval.high - score.interval.low for score in scores]
    assert widths == sorted(widths) and widths[0] < widths[2]
    assert "99.38 % interval, evaluation 3" in str(scores[2])


def test_what_cannot_be_predicted_costs_no_look(study, monkeypatch):
    def broken(run, images):
        raise FileNotFoundError("no checkpoint")

    monkeypatch.setattr(Run, "predict", broken)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        score_sealed(study, load_run(study, "large-s0"), "chosen")
    assert read_ledger(study) == [] and read_scores(study) == []


def test_the_verb_prints_look_level_and_drop_and_guards_against_a_second_model(study, capsys):
    assert unseal(study, "large-s0", "--reason", "chosen on validation") == 0
    out = capsys.readouterr().out
    assert "validation accuracy 0.958" in out
    assert "evaluation 1" in out and "drop from validation to test +" not in out
    assert "shifted accuracy 0.750" in out and "drop from test to shifted 0.000 [" in out and ": undetermined" in out
    assert unseal(study, "small-s0", "--reason", "just curious") == 2
    assert "opened for large-s0 already" in capsys.readouterr().err
    assert unseal(study, "small-s0", "--reason", "a bug", "--again", "large-s0 had wrong labels") == 0
    assert "98.75 % interval, evaluation 2" in capsys.readouterr().out


def test_the_verb_refuses_a_ledger_that_was_tampered_with(study, capsys):
    assert unseal(study, "large-s0", "--reason", "first") == 0
    identity = ["git", "-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "look"]):
        subprocess.run([*identity, *command], cwd=study.results, check=True, capture_output=True)
    study.test_ledger.write_text("")
    capsys.readouterr()
    assert unseal(study, "large-s0", "--reason", "as if for the first time") == 2
    captured = capsys.readouterr()
    assert "do not continue the 2 of commit" in captured.err and "test accuracy" not in captured.out
    assert study.test_ledger.read_text() == ""


def test_the_smallest_recipe_within_one_standard_error_is_chosen_by_its_first_seed(study, capsys):
    run, table = choose_run(study)
    assert run.id == "small-s0"
    assert table["within"].tolist() == [True, True, False]
    assert not table["model"].str.contains("toy").any()
    assert unseal(study, "chosen", "--reason", "the plan") == 0
    assert "chosen: small-s0, the smallest of 2 recipes" in capsys.readouterr().out


def test_nothing_to_choose_is_said(study):
    study.runs_table.unlink()
    with pytest.raises(FileNotFoundError, match="no full run to choose"):
        choose_run(study)


def test_a_drop_is_the_difference_of_two_sets_of_photos_at_the_level_of_the_second():
    correct, groups = np.arange(400) < 380, np.arange(400) // 5
    after = accuracy_interval(np.arange(300) < 255, np.arange(300) // 5, level=0.9875)
    before = accuracy_interval(correct, groups, level=0.9875)
    fallen = drop(correct, groups, SealedScore("run", "shifted", 2, after, pd.DataFrame()))
    assert fallen.level == 0.9875 and fallen.estimate == pytest.approx(0.1)
    assert fallen.low == pytest.approx(0.1 - np.hypot(0.95 - before.low, after.high - 0.85))


def test_labels_that_are_not_those_of_curation_are_not_scored_against(study):
    sealed = pd.read_csv(study.sealed)
    curation = pd.concat([sealed, read_splits(study).loc[lambda t: t["label"] != "", ["sha256", "label"]]])
    columns = ["sha256", "label", "verdict", "reason", "score", "duplicate_cluster", "car", "decided_by"]
    curation.assign(score=0).reindex(columns=columns).to_csv(study.curation, index=False)
    first, last = sealed.index[sealed["label"] == "swift"][0], sealed.index[sealed["label"] == "wagonr"][0]
    sealed.loc[[first, last], "label"] = ["wagonr", "swift"]
    sealed.to_csv(study.sealed, index=False)
    with pytest.raises(SealedTestRefused, match="2 photos have another sealed label than in curation.csv"):
        score_sealed(study, load_run(study, "large-s0"), "chosen")
    assert read_ledger(study) == [] and read_scores(study) == []


def test_the_interval_is_that_of_groups(study, monkeypatch):
    seen = {}

    def spy(correct, groups, level=0.95):
        seen["groups"] = SimpleNamespace(photos=len(groups), groups=len(set(groups)), level=level)
        return accuracy_interval(correct, groups, level)

    monkeypatch.setattr(sealed_score, "accuracy_interval", spy)
    score_sealed(study, load_run(study, "large-s0"), "chosen")
    assert (seen["groups"].groups, seen["groups"].photos) == (12, 24)


def test_a_sealed_set_that_is_refused_leaves_no_score(study):
    with pytest.raises(SealedTestRefused, match="say why"):
        score_sealed(study, load_run(study, "large-s0"), " ")
    assert read_scores(study) == []


OPENED = []  # (whether sealed_test.py was at work, the file): an audit hook cannot be taken off again


def _watch(event, arguments):
    if event == "open" and "sealed" in Path(str(arguments[0])).parts:
        frame, files = sys._getframe(1), []
        while frame is not None:
            files.append(Path(frame.f_code.co_filename).name)
            frame = frame.f_back
        OPENED.append(("sealed_test.py" in files, Path(str(arguments[0])).name))


sys.addaudithook(_watch)


def test_at_run_time_nothing_but_the_door_opens_the_sealed_file(study):
    OPENED.clear()
    run, _ = choose_run(study)
    results_of(study, [run]).interval()
    runs_report(study)
    read_scores(study)
    assert OPENED == []
    score_sealed(study, run, "chosen on validation")
    assert OPENED and all(through_the_door for through_the_door, _ in OPENED)
    pd.read_csv(study.sealed)
    assert OPENED[-1] == (False, "study.csv"), "the watch does not see who reads"
