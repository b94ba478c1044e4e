"""The model card of an exported model: what it was made from, how good it is, what it must not be used for.

After Mitchell et al. 2019. Everything in it comes from the recorded run, the split and the ledger; nothing is typed in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from carspotter.evidence.intervals import accuracy_interval
from carspotter.evidence.sealed_score import read_scores
from carspotter.models.store import Run
from carspotter.paths import Study
from carspotter.photos.sealed_test import read_ledger
from carspotter_check.rejection import digits, read_groups


def write_card(path: Path, study: Study, run: Run, manifest: dict[str, Any]) -> None:
    """Write the model card of an export, in Markdown."""
    row, rejection, listing, parity = run.row, manifest["rejection"], manifest["listing"], manifest["parity"]
    names = run.class_names
    correct = run.validation[names].idxmax(axis=1) == run.validation["label"]
    interval = accuracy_interval(correct, read_groups(study, run.validation))
    halved = "choosing_accuracy" in run.history  # older runs chose their epoch on all validation photos
    quick = " (a quick run: it shows that the code runs, no more)" * (str(row["quick"]) == "True")
    sections = {
        f"# Model card: {run.id}": [
            f"Says which of {' and '.join(names)} a photo shows, from outside. Made to compare a listing's photo with "
            "the model that the listing claims; it turns photos away that it cannot tell.",
        ],
        "## Made from": [
            f"- study `{study.name}`, split version `{run.spec['split_version']}`: {row['train_photos']} training and "
            f"{row['validation_photos']} validation photos of {', '.join(names)}",
            f"- experiment `{row['experiment']}`, framework {row['framework']}, seed {row['seed']}, {row['epochs']} "
            f"epochs{quick}",
            f"- {row['versions']}; commit `{row['commit'] or 'unknown'}`; {row['device']}",
            "- preprocessing `{preprocessing}`, {image_size} × {image_size} pixels".format(**manifest),
        ],
        "## Scores": [
            f"- validation accuracy {interval} (95 % interval over groups of photos), at the best epoch, which was "
            f"chosen on {'half' if halved else 'all'} of these photos and is therefore optimistic",
            f"- validation accuracy at the last epoch: {row['last_validation_accuracy']:.3f}",
            *_test_lines(study, run),
            f"- export: {manifest['format']}, probabilities within {parity['largest_difference']:.1e} of the run's on "
            f"{parity['photos']} photos, {parity['flipped_labels']} labels flipped",
        ],
        "## When it answers": [
            f"- temperature {rejection['temperature']:.3f}, fitted on one half of the validation groups",
            f"- one photo: confidence of {digits(rejection['confidence'])} or more, certified on the other half, on "
            f"{rejection['photos']} photos, one of each group (asked for: at most {100 * rejection['risk']:g} % of the "
            f"answers wrong): {rejection['reason']}",
            f"- all photos of one car: confidence of {digits(listing['confidence'])} or more, certified on "
            f"{listing['listings']} listings of the other half (correlation of two photos "
            f"{listing['correlation']:.2f}, fitted on the first): {listing['reason']}",
            f"- photos whose shorter side has at least {rejection['limits']['shorter_side']} pixels, as in training",
            *_kinds_lines(manifest.get("kinds")),
        ],
        "## Limits": [
            "- It knows no other models: at best one that resembles neither class is turned away, else misclassified.",
            "- Its thresholds hold for photos like those of the study; another site, country or camera needs new ones.",
            "- The best epoch was chosen on one half of the validation photos; the other half certifies the risk."
            if halved
            else "- The best epoch was chosen on all validation photos, those that certify too: a small optimism.",
            "- It looks at cars, not at people or plates; do not use it to find or follow anybody.",
        ],
    }
    text = "\n".join("\n".join([title, "", *lines, ""]) for title, lines in sections.items())
    path.write_text(text, encoding="utf-8")


def _kinds_lines(measured: dict[str, dict[str, float]] | None) -> list[str]:
    if measured is None:
        return ["- this format carries no known photos: what is unlike them is not turned away"]
    if not measured:
        return [
            "- no photos of other models or unusable ones were at hand: what is unlike the known cars is told "
            "without examples, unmeasured. Bring some: `import --others FOLDER`, `import --rejects FOLDER`"
        ]
    return [
        "- share of photos that show none of the classes and are turned away (seen: other photos of their kind are "
        "known; unseen: none is):",
        "",
        "| kind | photos | seen | unseen |",
        "|---|---|---|---|",
        *(f"| {kind} | {{photos:.0f}} | {{seen:.2f}} | {{unseen:.2f}} |".format(**of) for kind, of in measured.items()),
        "",
    ]


def _test_lines(study: Study, run: Run) -> list[str]:
    looks = read_ledger(study)
    if not looks:
        return ["- test: the sealed test set has never been opened; there is no test score"]
    scores = {(score.split, score.look): score.interval for score in read_scores(study) if score.run == run.id}
    lines = []
    for split in sorted({look["split"] for look in looks}, reverse=True):  # test, then shifted
        there = [look for look in looks if look["split"] == split]
        of_run = [look for look in there if look["run"] == run.id]
        lines.append(f"- evaluations so far on the sealed {split} photos: {len(there)}, of this run: {len(of_run)}")
        for look in of_run:
            interval = scores.get((split, look["look"]))
            found = (
                f"accuracy {interval} ({100 * interval.level:.4g} % interval)" if interval else "no score was written"
            )
            lines.append(f"  - evaluation {look['look']} at {look['time']}, {look['reason']}: {found}")
    return lines
