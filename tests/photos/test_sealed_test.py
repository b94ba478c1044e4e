"""The door to the test labels: every look is written down, and no look can be taken back."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from carspotter.paths import Study
from carspotter.photos.sealed_test import SealedTestRefused, read_ledger, read_test_labels


@pytest.fixture
def study(tmp_path):
    """A study of eight photos, two of them in the test set and two shifted."""
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    study.folder.mkdir(parents=True)
    study.sealed.parent.mkdir(parents=True)
    sides = ["train", "train", "validation", "validation", "test", "test", "shifted", "shifted"]
    labels = ["swift", "wagonr"] * 4
    splits = pd.DataFrame({"sha256": list("abcdefgh"), "label": labels, "group": list("abcdefgh"), "split": sides})
    sealed = splits.loc[4:, ["sha256", "label"]]
    splits.loc[4:, "label"] = ""
    splits.to_csv(study.splits, index=False)
    sealed.to_csv(study.sealed, index=False)
    return study


def git(study, *arguments):
    identity = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=study.results, check=True, capture_output=True)


def test_a_look_gives_the_labels_and_is_in_the_ledger(study):
    labels, look = read_test_labels(study, "run-1", "chosen on validation")
    assert look == 1
    assert labels.to_dict("list") == {"sha256": ["e", "f"], "label": ["swift", "wagonr"]}
    line = json.loads(study.test_ledger.read_text())
    assert (line["run"], line["reason"], line["look"]) == ("run-1", "chosen on validation", 1)
    assert line["time"].endswith("+00:00")


def test_every_look_counts(study):
    assert [read_test_labels(study, "run-1", "look")[1] for _ in range(3)] == [1, 2, 3]
    assert [line["look"] for line in read_ledger(study)] == [1, 2, 3]


def test_looks_at_the_same_moment_are_numbered_one_after_the_other(study):
    code = (
        "import sys; from pathlib import Path; from carspotter.paths import Study\n"
        "from carspotter.photos.sealed_test import read_test_labels\n"
        "study = Study('sample', Path(sys.argv[1]), Path(sys.argv[2])); sys.stdin.readline()\n"
        "print([read_test_labels(study, 'run-1', 'look')[1] for _ in range(20)])"
    )
    command = [sys.executable, "-c", code, str(study.data), str(study.results)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    numbers = [number for process in processes for number in json.loads(process.communicate()[0])]
    assert sorted(numbers) == [line["look"] for line in read_ledger(study)] == list(range(1, 61))


def test_another_model_needs_a_reason_of_its_own(study):
    read_test_labels(study, "run-1", "chosen on validation")
    with pytest.raises(SealedTestRefused, match="opened for run-1 already.*again="):
        read_test_labels(study, "run-2", "just curious")
    assert len(read_ledger(study)) == 1
    _, look = read_test_labels(study, "run-2", "fixed a bug", again="run-1 was trained on wrong labels")
    assert look == 2 and read_ledger(study)[1]["again"] == "run-1 was trained on wrong labels"


def test_shifted_photos_have_looks_of_their_own(study):
    read_test_labels(study, "run-1", "chosen on validation")
    labels, look = read_test_labels(study, "run-1", "the shift", split="shifted")
    assert look == 1 and labels["sha256"].tolist() == ["g", "h"]


@pytest.mark.parametrize("reason", ["", "   "])
def test_a_look_without_a_reason_is_refused(study, reason):
    with pytest.raises(SealedTestRefused, match="say why"):
        read_test_labels(study, "run-1", reason)
    assert not study.test_ledger.exists()


def test_training_labels_do_not_come_through_this_door(study):
    with pytest.raises(ValueError, match="not sealed"):
        read_test_labels(study, "run-1", "why not", split="validation")


def test_missing_labels_are_no_look(study):
    sealed = pd.read_csv(study.sealed)
    sealed[sealed["sha256"] != "e"].to_csv(study.sealed, index=False)
    with pytest.raises(FileNotFoundError, match="1 of 2 test photos are missing"):
        read_test_labels(study, "run-1", "chosen")
    study.sealed.unlink()
    with pytest.raises(FileNotFoundError, match="no sealed labels"):
        read_test_labels(study, "run-1", "chosen")
    assert not study.test_ledger.exists()


@pytest.fixture
def committed(study):
    """Two looks, the ledger in git's HEAD."""
    read_test_labels(study, "run-1", "chosen on validation")
    read_test_labels(study, "run-1", "once more")
    git(study, "init", "-q")
    git(study, "add", ".")
    git(study, "commit", "-qm", "looks")
    return study


def shorten(ledger):
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])


def rewrite(ledger):
    ledger.write_text(ledger.read_text().replace("once more", "nothing to see"))


@pytest.mark.parametrize("tamper", [shorten, rewrite, lambda ledger: ledger.unlink()], ids=["cut", "edited", "removed"])
def test_a_ledger_that_does_not_continue_the_committed_one_is_refused(committed, tamper):
    tamper(committed.test_ledger)
    with pytest.raises(SealedTestRefused, match="do not continue the 2 in git's HEAD"):
        read_test_labels(committed, "run-1", "chosen on validation")


def test_a_ledger_that_continues_the_committed_one_is_fine(committed):
    assert read_test_labels(committed, "run-1", "third")[1] == 3
    assert read_test_labels(committed, "run-1", "fourth")[1] == 4


def test_a_ledger_line_that_is_not_json_is_refused(study):
    read_test_labels(study, "run-1", "chosen")
    study.test_ledger.write_text(study.test_ledger.read_text()[:-9])
    with pytest.raises(SealedTestRefused, match="not JSON"):
        read_test_labels(study, "run-1", "chosen")
