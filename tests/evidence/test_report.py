"""Runs side by side: the same photos in the same order, whatever order their files have."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carspotter.evidence.report import (
    correct_by_photo,
    epochs_of,
    framework_verdicts,
    optimism,
    recipes_report,
    results_of,
    runs_report,
    to_markdown,
    training_accuracy,
)
from carspotter.models.runs import COLUMNS, Run, load_run
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


def record(study, framework, seed, wrong=(), photos=range(40), **row):
    """Write a run whose validation file is in the order of `photos` and which names the `wrong` ones wrongly."""
    run = f"cnn-{framework}-s{seed}"
    folder = study.runs / run
    folder.mkdir(parents=True)
    validation = pd.DataFrame({"sha256": [HASHES[n] for n in photos], "label": [LABELS[n] for n in photos]})
    wagonr = (validation["label"] == "wagonr").to_numpy() ^ np.isin(list(photos), list(wrong))
    validation["swift"], validation["wagonr"] = 1.0 - wagonr, wagonr.astype(float)
    validation.to_csv(folder / "validation.csv", index=False)
    (folder / "spec.json").write_text(json.dumps({"class_names": ["swift", "wagonr"]}))
    pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.7, 0.8]}).to_csv(folder / "history.csv", index=False)
    fields = {column: "" for column in COLUMNS} | {"run": run, "experiment": "cnn", "framework": framework}
    fields |= {"seed": seed, "quick": False, "epochs": 2, "split_version": "v"} | row
    header = not study.runs_table.exists()
    pd.DataFrame([fields], columns=COLUMNS).to_csv(study.runs_table, mode="a", index=False, header=header)
    return load_run(study, run)


def test_results_are_ordered_by_hash_and_name_who_is_wrong(study):
    runs = [record(study, "torch", 0, wrong=[3, 8]), record(study, "keras", 0, wrong=[8], photos=range(39, -1, -1))]
    results = results_of(study, runs)
    assert results.labels.tolist() == LABELS.tolist() and results.groups[4] == "g2"
    assert [np.flatnonzero(~row).tolist() for row in results.correct] == [[3, 8], [8]]


def test_runs_on_other_photos_are_refused(study):
    runs = [record(study, "torch", 0), record(study, "torch", 1, photos=range(39))]
    with pytest.raises(ValueError, match="cnn-torch-s1 and cnn-torch-s0 were validated on different photos"):
        results_of(study, runs)


def test_epochs_are_put_into_the_same_order_and_older_runs_have_none(study, monkeypatch):
    run = record(study, "torch", 0, photos=range(39, -1, -1))
    assert optimism(study, run) is None
    of_label = np.eye(2)[(LABELS[::-1] == "wagonr").astype(int)]
    worse = of_label.copy()
    worse[0] = worse[0][::-1]  # the first row is the last photo
    monkeypatch.setattr(Run, "epoch_probabilities", np.stack([worse, of_label]))
    epochs = epochs_of(study, run)
    assert np.argwhere(~epochs.correct).tolist() == [[0, 39]]
    assert optimism(study, run) == pytest.approx(0, abs=0.02)


def test_training_accuracy_is_that_of_inference_where_it_was_recorded(study):
    assert training_accuracy(record(study, "torch", 0)) == 0.8
    assert training_accuracy(record(study, "torch", 1, best_inference_train_accuracy=0.93)) == 0.93


def test_frameworks_are_compared_on_the_seeds_they_share(study):
    for seed in range(5):
        record(study, "torch", seed, wrong=[seed])
        record(study, "keras", seed, wrong=[seed])
    record(study, "keras", 5)
    record(study, "tensorflow", 0, wrong=range(20), quick=True)
    (row,) = framework_verdicts(study, "cnn").to_dict("records")
    assert (row["frameworks"], row["seeds"]) == ("keras → torch", 5)
    assert row["difference [90 %]"].startswith("0.000 [")
    # no photo differs in 20 groups: the exact interval is ± 14 points, and says nothing about three
    assert row["verdict"].startswith("not shown (about")
    assert framework_verdicts(study, "cnn", margin=0.2)["verdict"].tolist() == ["equal within 20 points"]
    assert framework_verdicts(study, "another").empty


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
    one_seed, three_seeds = table["validation, best epoch [95 %]"]
    assert three_seeds.startswith("0.950 [") and three_seeds.endswith("± 0.025")
    assert "±" not in one_seed and table["minutes a run"].tolist() == ["1.0", "1.0"]


def test_runs_of_an_older_recipe_version_are_no_seeds_of_the_new_one(study):
    figures = {"mean_last_five_validation_accuracy": 0.9, "seconds": 60, "epochs": 2, "image_size": 64}
    for seed, version in enumerate([9, 10, 10]):
        wrong = range(20) if version == 9 else [0]
        record(study, "torch", seed, wrong=wrong, **figures, recipe_version=version)
    table = recipes_report(study)
    assert table["seeds"].tolist() == [2] and table["validation, best epoch [95 %]"][0].startswith("0.975 [")


def test_a_table_of_runs_on_part_of_the_photos_is_none(study):
    record(study, "torch", 0, train_on="abc")
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        runs_report(study)
    assert recipes_report(study).empty


def test_the_readme_shows_the_recorded_runs_to_the_digit():
    root = Path(__file__).resolve().parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name in ("sample", "civic_altima"):
        table = to_markdown(recipes_report(Study(name, root / "data", root / "results")))
        assert table in readme, f"README's table of {name} is not what `carspotter report --study {name}` prints"


def test_photos_that_a_later_split_excludes_stand_alone(study):
    run = record(study, "torch", 0)
    splits = pd.read_csv(study.splits)
    splits.loc[:9, ["group", "split"]] = ["", "excluded"]
    splits.to_csv(study.splits, index=False)
    assert correct_by_photo(study, run)["group"].nunique() == 10 + 15
