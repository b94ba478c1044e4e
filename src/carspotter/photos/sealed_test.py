"""The only door to the test labels; it keeps the ledger.

The labels lie in `data/sealed/<study>.csv`, and nothing after the split but this file reads them. That prevents
accidents, not snooping: anyone can open a CSV file. Each line of the ledger carries the SHA-256 of the line before, and
the whole must continue every version in git's history. A test set drawn anew is a new study.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime

import pandas as pd

from carspotter.paths import Study, git
from carspotter.photos.journal import hold
from carspotter.photos.splitting import read_splits, split_version
from carspotter.photos.table import read_table


class SealedTestRefused(RuntimeError):
    """The test labels stay shut; the message says why and what to do."""


def read_test_labels(
    study: Study,
    run_id: str,
    predictions: pd.DataFrame,
    reason: str,
    again: str | None = None,
    split: str = "test",
    labels_known: pd.Series | None = None,
) -> tuple[pd.DataFrame, int]:
    """Return the test (or "shifted") labels for one run, sorted by sha256, and the number k of this evaluation.

    `predictions`: sha256 and predicted (class names), one row per photo, recorded before any label is read.
    `labels_known`: see `find_label_faults`. Show the score at 1 − .05/2^k. Raises SealedTestRefused: no reason,
    a second run without `again`, predictions of other photos, another test set, faulty labels, a changed ledger.
    """
    if split not in ("test", "shifted"):
        raise ValueError(f"split {split!r} is not sealed; only test and shifted are")
    if not reason.strip():
        raise SealedTestRefused(f"{study.name}: say why the test set is opened")
    if not study.sealed.exists():
        raise FileNotFoundError(f"{study.sealed}: no sealed labels; run `python -m carspotter split` first")
    if faults := find_label_faults(study, labels_known):
        raise SealedTestRefused(f"{study.sealed}: {'; '.join(faults)}; run `python -m carspotter split` first")
    splits = read_splits(study)
    wanted = sorted(splits.loc[splits["split"] == split, "sha256"])
    predictions = predictions[["sha256", "predicted"]].sort_values("sha256")
    with hold(study.folder / ".ledger.lock"):  # a second process evaluates after this one, and knows it
        check_history(study)
        looks = [look for look in read_ledger(study) if look["split"] == split]
        others = sorted({look["run"] for look in looks} - {run_id})
        if others and not (again or "").strip():
            raise SealedTestRefused(
                f"{study.name}: the {split} set was opened for {others[0]} already; choosing among models by their "
                f"test scores is what the seal prevents. If {run_id} must be evaluated all the same, say why with "
                f"--again (again= in Python)"
            )
        if predictions["sha256"].tolist() != wanted:
            raise SealedTestRefused(
                f"{study.name}: predictions of {len(predictions)} photos, but the {split} set has {len(wanted)}; "
                f"predict each of its photos once, and no other"
            )
        if any(look["photos"] != _digest(wanted) for look in looks):
            raise SealedTestRefused(
                f"{study.test_ledger}: the {split} set is not the one evaluated before; photos drawn anew are a new "
                f"study: split them with another --study, as in {study.name}_2"
            )
        labels = read_table(study.sealed, ["sha256", "label"])
        labels = labels[labels["sha256"].isin(wanted)].sort_values("sha256", ignore_index=True)
        if labels.empty or len(labels) < len(wanted):
            raise FileNotFoundError(
                f"{study.sealed}: labels of {len(wanted) - len(labels)} of {len(wanted)} {split} photos are missing; "
                f"run `python -m carspotter split` where the photos are (with --shifted SITE for a shifted set)"
            )
        look = {
            "run": run_id,
            "split": split,
            "look": len(looks) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "reason": reason,
            **({"again": again} if again else {}),
            "split_version": split_version(study)[:12],
            "photos": _digest(wanted),
            "commit": git(study.folder, "rev-parse", "HEAD").strip(),
            "predictions": _digest(predictions["sha256"] + " " + predictions["predicted"].astype(str)),
            "previous": _digest(_read_lines(study)[-1:]),
        }
        with open(study.test_ledger, "a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(look, ensure_ascii=False) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
    return labels, look["look"]


def read_ledger(study: Study) -> list[dict]:
    """Return all evaluations, oldest first. Raises SealedTestRefused where a line lacks the hash of the one before."""
    lines, looks = _read_lines(study), []
    for number, line in enumerate(lines):
        try:
            look = json.loads(line)
        except ValueError:
            raise SealedTestRefused(
                f"{study.test_ledger}: line {number + 1} is not JSON; restore the file from git"
            ) from None
        if look.get("previous") != _digest(lines[max(0, number - 1) : number]):
            raise SealedTestRefused(
                f"{study.test_ledger}: line {number + 1} does not carry the hash of the line before it, so a line was "
                f"changed or dropped; restore the file from git"
            )
        looks.append(look)
    return looks


def check_history(study: Study) -> None:
    """Raise SealedTestRefused unless the ledger continues each version of it in this repository's history."""
    here, ledger = _read_lines(study), study.test_ledger
    for commit in git(study.folder, "log", "--all", "--full-history", "--format=%H", "--", ledger.name).split():
        then = git(study.folder, "show", f"{commit}:./{ledger.name}").splitlines()
        if here[: len(then)] != then:
            raise SealedTestRefused(
                f"{ledger}: its {len(here)} lines do not continue the {len(then)} of commit {commit[:12]}; evaluations "
                f"cannot be taken back. Restore it (git checkout {commit[:12]} -- {ledger.name}), or split these "
                f"photos as a new study, as in {study.name}_2"
            )


def find_label_faults(study: Study, labels_known: pd.Series | None = None) -> list[str]:
    """Return what is wrong with the sealed labels, a sentence each, naming photos and numbers but never a label.

    `labels_known`: curation's labels by sha256, which sealed labels must equal where it has them.
    """
    if not study.sealed.exists():
        return []
    sealed, splits = read_table(study.sealed, ["sha256", "label"]), read_splits(study)
    classes = set(splits.loc[splits["split"] == "train", "label"])
    found = {
        "are sealed twice": sealed["sha256"].duplicated(),
        "have a sealed label that is no class of this study": ~sealed["label"].isin(classes),
    }
    if labels_known is not None:
        known = sealed["sha256"].map(labels_known[~labels_known.index.duplicated()])
        found["have another sealed label than in curation.csv"] = known.notna() & (known != sealed["label"])
    return [
        f"{odd.sum()} photos {what}, {sealed['sha256'][odd].min()[:12]} first"
        for what, odd in found.items()
        if odd.any()
    ]


def _read_lines(study: Study) -> list[str]:
    return study.test_ledger.read_text(encoding="utf-8").splitlines() if study.test_ledger.exists() else []


def _digest(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines, each ended by a newline; that of no lines is the chain's beginning."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
