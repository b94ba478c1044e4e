"""The door to the test labels: every look is written down, and no look can be taken back."""

import hashlib
import json
import subprocess
import sys

import pandas as pd
import pytest

from carspotter.paths import Study
from carspotter.photos.sealed_test import SealedTestRefused, check_history, find_label_faults, read_ledger
from carspotter.photos.sealed_test import read_test_labels as open_labels
from carspotter.photos.splitting import split_version


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


def predicted(split="test", named="swift"):
    return pd.DataFrame({"sha256": list({"test": "ef", "shifted": "gh"}.get(split, "")), "predicted": named})


def read_test_labels(study, run, reason, **options):
    return open_labels(study, run, predicted(options.get("split", "test")), reason, **options)


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
        "import pandas; from carspotter.photos.sealed_test import read_test_labels\n"
        "seen = pandas.DataFrame({'sha256': ['e', 'f'], 'predicted': 'swift'})\n"
        "study = Study('sample', Path(sys.argv[1]), Path(sys.argv[2])); sys.stdin.readline()\n"
        "print([read_test_labels(study, 'run-1', seen, 'look')[1] for _ in range(20)])"
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
    with pytest.raises(SealedTestRefused, match="opened for run-1 already.*--again "):
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
    with pytest.raises(SealedTestRefused, match="hash of the line before|do not continue the 2 of commit"):
        read_test_labels(committed, "run-1", "chosen on validation")


def test_a_ledger_that_continues_the_committed_one_is_fine(committed):
    assert read_test_labels(committed, "run-1", "third")[1] == 3
    assert read_test_labels(committed, "run-1", "fourth")[1] == 4


def test_a_line_says_what_was_evaluated_and_carries_the_hash_of_the_line_before(committed):
    first, second = committed.test_ledger.read_text().splitlines()
    assert json.loads(second)["previous"] == hashlib.sha256(f"{first}\n".encode()).hexdigest()
    assert json.loads(first)["previous"] == hashlib.sha256(b"").hexdigest()
    assert json.loads(first)["split_version"] == split_version(committed)[:12]
    read_test_labels(committed, "run-1", "third")
    line = json.loads(committed.test_ledger.read_text().splitlines()[2])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=committed.folder, capture_output=True, text=True)
    assert line["commit"] == head.stdout.strip()
    open_labels(committed, "run-1", predicted(named="wagonr"), "other predictions")
    looks = read_ledger(committed)
    assert looks[0]["predictions"] == looks[2]["predictions"] != looks[3]["predictions"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_line_changed_or_dropped_breaks_the_chain(study, number):
    for reason in ("one", "two", "three"):
        read_test_labels(study, "run-1", reason)
    lines = study.test_ledger.read_text().splitlines()
    study.test_ledger.write_text("\n".join(lines[:number] + lines[number + 1 :]) + "\n")
    with pytest.raises(SealedTestRefused, match="hash of the line before"):
        read_ledger(study)
    lines[number] = lines[number].replace('"run-1"', '"run-0"')
    study.test_ledger.write_text("\n".join(lines) + "\n")
    with pytest.raises(SealedTestRefused, match="hash of the line before"):
        read_test_labels(study, "run-1", "chosen")


def test_a_ledger_started_anew_is_refused_even_when_the_new_one_was_committed(committed):
    committed.test_ledger.unlink()
    git(committed, "add", "-A")
    git(committed, "commit", "-qm", "start anew")
    with pytest.raises(SealedTestRefused, match="0 lines do not continue the 2 of commit .*new study, as in sample_2"):
        read_test_labels(committed, "run-1", "as if for the first time")
    assert not committed.test_ledger.exists()


def test_what_another_branch_evaluated_counts_even_after_a_merge_that_drops_it(committed):
    git(committed, "checkout", "-qb", "side")
    read_test_labels(committed, "run-1", "on the side")
    git(committed, "commit", "-qam", "third")
    git(committed, "checkout", "-q", "-")
    git(committed, "merge", "-q", "-s", "ours", "side", "-m", "without it")
    git(committed, "branch", "-D", "side")
    with pytest.raises(SealedTestRefused, match="2 lines do not continue the 3"):
        check_history(committed)


def test_a_ledger_line_without_the_hash_of_the_line_before_is_refused(study):
    read_test_labels(study, "run-1", "chosen")
    with study.test_ledger.open("a") as ledger:
        ledger.write(json.dumps({"run": "run-1", "split": "test", "look": 2, "reason": "unchained"}) + "\n")
    with pytest.raises(SealedTestRefused, match="line 2 does not carry the hash"):
        read_ledger(study)


def test_a_test_set_drawn_anew_needs_a_new_study(study):
    read_test_labels(study, "run-1", "chosen")
    splits = pd.read_csv(study.splits, keep_default_na=False)
    splits.loc[splits["sha256"] == "e", "split"] = "excluded"
    splits.to_csv(study.splits, index=False)
    with pytest.raises(SealedTestRefused, match="not the one evaluated before.*sample_2"):
        open_labels(study, "run-1", predicted().iloc[1:], "again")


def test_predictions_of_other_photos_open_nothing(study):
    for other in (predicted("shifted"), predicted().iloc[:1], pd.concat([predicted(), predicted()])):
        with pytest.raises(SealedTestRefused, match="predict each of its photos once"):
            open_labels(study, "run-1", other, "chosen")
    assert not study.test_ledger.exists()


def test_faulty_sealed_labels_are_named_without_a_label_and_open_nothing(study):
    known = pd.Series(["swift", "wagonr"] * 2, index=list("efgh"))
    assert find_label_faults(study, known) == []
    good = pd.read_csv(study.sealed)
    faulty = {
        "2 photos have another sealed label than in curation.csv, e first": good.assign(label=["wagonr", "swift"] * 2)[
            :2
        ],
        "1 photos have a sealed label that is no class of this study, g first": good.replace({"label": {2: "x"}}),
        "1 photos are sealed twice, e first": pd.concat([good, good[:1]]),
    }
    faulty["1 photos have a sealed label that is no class of this study, g first"].loc[2, "label"] = "banana"
    for fault, sealed in faulty.items():
        sealed.to_csv(study.sealed, index=False)
        found = find_label_faults(study, known)
        assert fault in found
        assert not any(word in " ".join(found) for word in ("swift", "wagonr", "banana"))
        with pytest.raises(SealedTestRefused, match="run `python -m carspotter split` first"):
            read_test_labels(study, "run-1", "chosen", labels_known=known)
    assert not study.test_ledger.exists()


def test_a_ledger_line_that_is_not_json_is_refused(study):
    read_test_labels(study, "run-1", "chosen")
    study.test_ledger.write_text(study.test_ledger.read_text()[:-9])
    with pytest.raises(SealedTestRefused, match="not JSON"):
        read_test_labels(study, "run-1", "chosen")
