"""Runs side by side: the same photos in the same order, whatever order their files have."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carspotter.evidence.report import (
    RECIPES,
    STEPS,
    framework_runs,
    framework_verdicts,
    recipes_report,
    recorded_steps,
    runs_report,
    to_markdown,
    verdicts_report,
    write_report,
)
from carspotter.evidence.results import (
    beside_recorded,
    compare_runs,
    correct_by_photo,
    results_of,
    training_accuracy,
)
from carspotter.evidence.selection import choose_run
from carspotter.models.store import COLUMNS, load_run
from carspotter.paths import Study

HASHES = [f"x{n:02}" for n in range(40)]
LABELS = np.array(["swift", "wagonr"] * 20)


@pytest.fixture
def study(tmp_path):
    study = Study("study", tmp_path / "data", tmp_path / "results")
    study.folder.mkdir(parents=True)
    groups = [f"g{n // 2}" for n in range(40)]
    pd.DataFrame({"sha256": HASHES, "label": LABELS, "group": groups, "split": "validation"}).to_csv(
        study.splits, index=False
    )
    return study


def record(study, framework, seed, wrong=(), photos=range(40), earlier=None, experiment="cnn", **row):
    """Write a run whose files are in the order of `photos` and which misclassifies the `wrong` ones after each epoch.

    `earlier`: which it misclassified in the epoch before the last.
    """
    run = f"{experiment}-{framework}-s{seed}"
    folder = study.runs / run
    folder.mkdir(parents=True)
    validation = pd.DataFrame({"sha256": [HASHES[n] for n in photos], "label": [LABELS[n] for n in photos]})
    wagonr = (validation["label"] == "wagonr").to_numpy() ^ np.isin(list(photos), list(wrong))
    validation["swift"], validation["wagonr"] = 1.0 - wagonr, wagonr.astype(float)
    validation.to_csv(folder / "validation.csv", index=False)
    epochs = [wagonr] * 6
    if earlier is not None:
        epochs[-2] = (validation["label"] == "wagonr").to_numpy() ^ np.isin(list(photos), list(earlier))
    scores = np.stack([np.stack([1.0 - after, after], axis=1) for after in epochs])
    np.savez(folder / "validation_epochs.npz", scores=scores.astype(np.float16))
    (folder / "spec.json").write_text(json.dumps({"class_names": ["swift", "wagonr"], "framework": framework}))
    history = {"epoch": [1, 2, 3, 4], "train_accuracy": 0.8, "validation_accuracy": [0.5, 0.6, 0.7, 0.8 + seed / 10]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    fields = {column: "" for column in COLUMNS} | {"run": run, "experiment": experiment, "framework": framework}
    fields |= {"seed": seed, "quick": False, "epochs": 2, "split_version": "v", "processor_seconds": 60}
    fields |= {"last_inference_train_accuracy": 0.8} | row
    header = not study.runs_table.exists()
    pd.DataFrame([fields], columns=COLUMNS).to_csv(study.runs_table, mode="a", index=False, header=header)
    return load_run(study, run)


def test_results_are_ordered_by_hash_and_say_who_is_wrong_and_how_often(study):
    runs = [record(study, "torch", 0, wrong=[3, 8]), record(study, "keras", 0, [8], range(39, -1, -1), earlier=[8, 9])]
    results = results_of(study, runs)
    assert results.labels.tolist() == LABELS.tolist() and results.groups[4] == "g2"
    assert results.predicted.shape == (2, 5, 40)
    assert [np.flatnonzero(row < 1).tolist() for row in results.correct] == [[3, 8], [8, 9]]
    assert results.correct[1, [8, 9]].tolist() == [0, 0.8]
    best = results_of(study, runs, "best")
    assert best.predicted.shape == (2, 1, 40) and np.flatnonzero(best.correct[1] < 1).tolist() == [8]
    assert results_of(study, runs, 6).predicted.shape == (2, 6, 40)
    assert results.interval().estimate == pytest.approx(results.correct.mean())


def test_runs_on_other_photos_are_refused(study):
    runs = [record(study, "torch", 0), record(study, "torch", 1, photos=range(39))]
    with pytest.raises(ValueError, match="cnn-torch-s1 and cnn-torch-s0 were validated on different photos"):
        results_of(study, runs)


def test_training_accuracy_is_that_of_the_last_epoch_at_inference(study):
    assert training_accuracy(record(study, "torch", 1, last_inference_train_accuracy=0.93)) == 0.93


def test_a_live_training_is_put_beside_the_recorded_seeds_at_the_same_epochs(study):
    runs = [record(study, "torch", seed, image_size=64, train_photos=1200) for seed in (0, 1)]
    said = "here, {} in recorded runs (torch, 64 px, 1,200 photos, seeds: 2)"
    assert beside_recorded([0.9, 0.6, 0.6, 0.3], runs) == "validation, epochs 2 to 4: 0.500 " + said.format("0.717")
    assert beside_recorded([0.4], runs) == "validation, epochs 1 to 1: 0.400 " + said.format("0.500")


def test_frameworks_are_shown_at_the_settings_that_most_of_them_share(study):
    record(study, "keras", 0, dtype="float32")
    record(study, "tensorflow", 0, dtype="float32")
    for seed in range(3):
        record(study, "torch", seed, dtype="bfloat16")
    assert {name: len(runs) for name, runs in framework_runs(study, "cnn").items()} == {"keras": 1, "tensorflow": 1}
    assert framework_runs(study, "another") == {}


def test_recipes_are_compared_on_the_seeds_they_share(study):
    a = [record(study, "torch", seed, wrong=range(10)) for seed in range(4)]
    b = [record(study, "torch", seed, wrong=[0], experiment="better") for seed in (3, 2, 1)]
    found = compare_runs(study, a, b)
    assert found.difference.seeds == 3 and (found.name_a, found.name_b) == ("cnn", "better")
    assert found.difference.estimate == pytest.approx(9 / 40) and (found.wins, found.losses) == (9, 0)
    with pytest.raises(ValueError, match="no seed in common"):
        compare_runs(study, a[:1], b)


def test_frameworks_are_compared_on_the_seeds_they_share(study):
    for seed in range(5):
        record(study, "torch", seed, wrong=[seed])
        record(study, "keras", seed, wrong=[seed])
    record(study, "keras", 5)
    record(study, "tensorflow", 0, wrong=range(20), quick=True)
    (row,) = framework_verdicts(study, "cnn").to_dict("records")
    assert (row["comparison"], row["seeds"]) == ("torch − keras", "5")
    assert row["points [95 %]"].startswith("+0.0 [")
    # twenty groups cannot say that two runs that agree on all of them are equal within three points
    assert row["verdict"] == "undetermined"
    assert framework_verdicts(study, "another").empty


def test_the_table_of_verdicts_shares_its_error_among_all_its_questions_answered_or_not(study):
    figures = {"image_size": 64, "epochs": 2, "mean_last_five_validation_accuracy": 0.9, "seconds": 60}
    for seed in range(3):
        record(study, "torch", seed, wrong=range(20), experiment="baseline_cnn", **figures)
        record(study, "torch", seed, wrong=[0], experiment="augmentation", **figures)
        record(study, "torch", seed + 3, wrong=[0], experiment="augmentation", **figures | {"image_size": 150})
    (row,) = verdicts_report(study, STEPS).to_dict("records")
    assert row["comparison"] == "augmentation − baseline_cnn" and row["setting"] == "torch 64 px 2 epochs"
    assert row["points [98.75 %]"].startswith("+47.5 [") and row["verdict"] == "different"
    assert verdicts_report(study, RECIPES).empty


def test_a_step_of_the_series_is_compared_at_equal_pixels_and_epochs(study):
    figures = {"image_size": 64, "epochs": 2, "train_photos": 1200}
    for seed in range(3):
        record(study, "torch", seed, wrong=range(20), experiment="baseline_cnn", **figures)
        record(study, "torch", seed + 3, wrong=[], experiment="baseline_cnn", **figures | {"image_size": 150})
        record(study, "torch", seed, wrong=[0], experiment="augmentation", **figures)
    step = recorded_steps({"here": study}, "baseline_cnn", "augmentation")["here"]
    said = str(step)
    assert said.startswith("augmentation changes the validation accuracy of baseline_cnn by +47.5 points [")
    assert "]: different\n    (1,200 training photos, 64 px, 2 epochs, seeds: 3, " in said
    assert "98.75 % interval" in said
    assert list(step.histories) == ["baseline_cnn", "augmentation"]
    assert recorded_steps({"here": study}, "augmentation", "dropout") == {}
    record(study, "torch", 0, experiment="dropout", **figures | {"epochs": 9})
    assert recorded_steps({"here": study}, "augmentation", "dropout") == {}, "not at equal epochs"


def test_one_rule_chooses_a_run_for_all(study):
    figures = {"image_size": 64, "epochs": 2, "finished_time": "2026-01-02"}
    record(study, "torch", 0, wrong=[0], experiment="large", parameters=9, **figures)
    small = record(study, "torch", 0, wrong=[0, 1], experiment="small", parameters=3, **figures)
    tiny = record(study, "torch", 0, wrong=range(20), experiment="tiny", parameters=1, **figures)
    old = record(
        study,
        "torch",
        0,
        experiment="old",
        parameters=1,
        **figures | {"split_version": "u", "finished_time": "2026-01-01"},
    )
    quick = record(study, "torch", 0, experiment="quick", parameters=1, quick=True, **figures)
    assert choose_run(study)[0].id == small.id
    with pytest.raises(FileNotFoundError, match="no run with a checkpoint on this machine to choose among 5"):
        choose_run(study, with_checkpoint=True)
    (old.folder / "checkpoint.pt").touch()
    (quick.folder / "checkpoint.pt").touch()
    assert choose_run(study, with_checkpoint=True)[0].id == quick.id, "where nothing better is here"
    (tiny.folder / "checkpoint.pt").touch()
    assert choose_run(study, with_checkpoint=True)[0].id == tiny.id, "the split and recipe of today come first"


def test_the_report_is_written_beside_the_runs(study):
    record(study, "torch", 0, wrong=[0], image_size=64, seconds=60, processor_seconds=30, best_epoch=2, commit="abc")
    assert runs_report(study)["processor minutes"].tolist() == ["0.5"], "not those on the clock"
    text = write_report(study)
    assert (study.folder / "report.md").read_text() == text
    assert "## Recipes" in text and "## Runs" in text and "| abc |" in text and "## What each" not in text


def test_a_recipe_is_one_row_for_all_its_seeds_on_all_photos(study):
    figures = {"mean_last_five_validation_accuracy": 0.9, "seconds": 60, "epochs": 2, "image_size": 64}
    for seed, wrong in enumerate([[0], [0, 1], [0, 1, 2]]):
        record(study, "torch", seed, wrong=wrong, **figures)
    record(study, "torch", 3, wrong=range(20), **figures | {"train_on": "abc"})
    record(study, "torch", 4, wrong=range(20), **figures | {"quick": True})
    record(study, "keras", 0, wrong=[5], **figures | {"epochs": 3})
    table = recipes_report(study)
    assert table["framework"].tolist() == ["keras", "torch"], "the longer run first"
    assert table["seeds"].tolist() == [1, 3]
    one_seed, three_seeds = table["validation, mean of the last five [95 %]"]
    assert three_seeds.startswith("0.950 [") and three_seeds.endswith("± 0.025")
    assert "±" not in one_seed and table["minutes a run"].tolist() == ["1.0", "1.0"]


def test_runs_of_an_older_recipe_version_are_no_seeds_of_the_new_one(study):
    figures = {"mean_last_five_validation_accuracy": 0.9, "seconds": 60, "epochs": 2, "image_size": 64}
    for seed, version in enumerate([9, 10, 10]):
        wrong = range(20) if version == 9 else [0]
        record(study, "torch", seed, wrong=wrong, **figures, recipe_version=version)
    table = recipes_report(study)
    assert table["seeds"].tolist() == [2] and table["validation, mean of the last five [95 %]"][0].startswith("0.975 [")


def test_a_table_of_runs_on_part_of_the_photos_is_none(study):
    record(study, "torch", 0, train_on="abc")
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        runs_report(study)
    assert recipes_report(study).empty


@pytest.mark.parametrize("name", ["sample_2", "civic_altima_2"])
def test_the_results_page_shows_the_recorded_runs_to_the_digit(name):
    root = Path(__file__).resolve().parents[2]
    page = (root / "results" / "README.md").read_text(encoding="utf-8")
    study = Study(name, root / "data", root / "results")
    tables = [recipes_report(study), *(verdicts_report(study, questions) for questions in (STEPS, RECIPES))]
    tables += [framework_verdicts(study, experiment) for experiment in ("augmentation", "batch_norm")]
    for table in tables:
        assert table.empty or to_markdown(table) in page, f"results/README.md is not what `report --study {name}` says"


def test_photos_that_a_later_split_excludes_stand_alone(study):
    run = record(study, "torch", 0)
    splits = pd.read_csv(study.splits)
    splits.loc[:9, ["group", "split"]] = ["", "excluded"]
    splits.to_csv(study.splits, index=False)
    assert correct_by_photo(study, run)["group"].nunique() == 10 + 15
