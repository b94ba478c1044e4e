"""The only door to the test labels; it keeps the ledger.

The labels of test and shifted photos lie in `data/sealed/<study>.csv`, and nothing after the split but this file reads
them. That prevents accidents, not snooping: anyone can open a CSV file.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from carspotter.paths import Study


class SealedTestRefused(RuntimeError):
    """The test labels stay shut; the message says why and what to do."""


def read_test_labels(
    study: Study, run_id: str, reason: str, again: str | None = None, split: str = "test"
) -> tuple[pd.DataFrame, int]:
    """Open the test labels (or those of the "shifted" photos) for one run; give the table and the look's number k.

    The table has the columns sha256 and label, sorted by sha256. The look is in the ledger, on disk, before any label
    is handed out; print the score with "look #k" and an interval at 1 − .05/k. Looks at test and shifted photos are
    counted apart. Raises SealedTestRefused for an empty reason, for another run than the one looked at before unless
    `again` says why, and for a ledger that does not continue the one in git's HEAD; FileNotFoundError without labels.
    """
    if split not in ("test", "shifted"):
        raise ValueError(f"split {split!r} is not sealed; only test and shifted are")
    if not reason.strip():
        raise SealedTestRefused(f"{study.name}: say why the test set is opened")
    if not study.sealed.exists():
        raise FileNotFoundError(f"{study.sealed}: no sealed labels; run `python -m carspotter split` first")
    with open(study.sealed) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process looks after this one, and knows it
        return _look(study, run_id, reason, again, split)


def _look(study: Study, run_id: str, reason: str, again: str | None, split: str) -> tuple[pd.DataFrame, int]:
    looks = [look for look in read_ledger(study) if look["split"] == split]
    others = sorted({look["run"] for look in looks} - {run_id})
    if others and not (again or "").strip():
        raise SealedTestRefused(
            f"{study.name}: the {split} set was opened for {others[0]} already; choosing among models by their test "
            f"scores is what the seal prevents. If {run_id} must be looked at all the same, say why with again="
        )
    splits = pd.read_csv(study.splits, dtype=str, keep_default_na=False)
    wanted = splits.loc[splits["split"] == split, "sha256"]
    labels = pd.read_csv(study.sealed, dtype=str, keep_default_na=False)
    labels = labels[labels["sha256"].isin(wanted)].sort_values("sha256", ignore_index=True)
    if labels.empty or len(labels) < len(wanted):
        raise FileNotFoundError(
            f"{study.sealed}: labels of {len(wanted) - len(labels)} of {len(wanted)} {split} photos are missing; "
            f"run `python -m carspotter split` where the photos are (with --shifted SITE for a shifted set)"
        )
    look = {
        "run": run_id,
        "split": split,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": reason,
        "look": len(looks) + 1,
    }
    if again:
        look["again"] = again
    with open(study.test_ledger, "a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(look, ensure_ascii=False) + "\n")
        ledger.flush()
        os.fsync(ledger.fileno())
    return labels, look["look"]


def read_ledger(study: Study) -> list[dict]:
    """Give all looks so far, oldest first. Raises SealedTestRefused when the ledger does not continue git's HEAD."""
    here = study.test_ledger.read_text(encoding="utf-8").splitlines() if study.test_ledger.exists() else []
    committed = _committed_lines(study.test_ledger)
    if here[: len(committed)] != committed:
        raise SealedTestRefused(
            f"{study.test_ledger}: {len(here)} lines do not continue the {len(committed)} in git's HEAD; looks cannot "
            f"be taken back. Restore it with `git checkout HEAD -- {study.test_ledger.name}` in its folder"
        )
    try:
        return [json.loads(line) for line in here]
    except ValueError:
        raise SealedTestRefused(f"{study.test_ledger}: a line is not JSON; mend it (each line is one look)") from None


def _committed_lines(ledger: Path) -> list[str]:
    """Give the lines of the ledger in git's HEAD: none outside a repository, without git, before the first commit."""
    folder = next((parent for parent in ledger.parents if parent.is_dir()), None)
    try:
        prefix = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--show-prefix"], capture_output=True, text=True, check=True
        ).stdout.strip()
        path = prefix + ledger.relative_to(folder).as_posix()
        shown = subprocess.run(
            ["git", "-C", folder, "show", f"HEAD:{path}"], capture_output=True, text=True, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return shown.stdout.splitlines()
