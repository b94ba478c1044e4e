"""Check a written split: nothing crosses its sides, and it is what the curation and `split` say."""

from dataclasses import dataclass

import pandas as pd

from carspotter.paths import Study
from carspotter.photos.duplicates import relate_photos
from carspotter.photos.fingerprints import measure_photos
from carspotter.photos.sealed_test import find_label_faults
from carspotter.photos.splitting import SEALED, STUDIED, is_changed, read_splits, split_version
from carspotter.photos.table import kind_of, read_curation, read_photos, read_table


@dataclass(frozen=True)
class SplitReport:
    """Photos by label and split, and the problems found, none if all is well."""

    version: str
    counts: pd.DataFrame
    groups: int
    pairs: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"split {self.version[:12]}: {self.groups} groups", self.counts.to_string()]
        lines += [f"NOTE {note}" for note in self.notes]
        well = f"no group, no listing and none of {self.pairs} pairs of one shot or car is in two parts of the split"
        return "\n".join([*lines, well] if self.ok else lines + [f"PROBLEM {problem}" for problem in self.problems])


def verify_split(study: Study, show_progress: bool = True) -> SplitReport:
    """Check that nothing crosses the sides of a written split; photos of one car are searched anew in the pixels.

    Also checks that the file is the one `split` wrote, that labels are those of the curation, and that the sealed file
    covers exactly the test and shifted photos. Prints no label.
    """
    splits = read_splits(study)
    photos = read_photos(study.data)
    problems, notes = [], []
    if is_changed(study):
        problems.append(
            f"{study.splits.name} is not the file that `split` wrote: rows were added, deleted, moved or relabelled; "
            f"restore it from git or from a backup. If `split` was stopped while it wrote, split again instead"
        )
    if twice := splits["sha256"].duplicated().sum():
        problems.append(f"{twice} photos are listed twice")
    active = splits[splits["split"] != "excluded"].drop_duplicates("sha256")
    if unknown := set(active["split"]) - {*STUDIED, "shifted"}:
        problems.append(f"unknown splits: {', '.join(sorted(unknown))}")
    if missing := set(active["sha256"]) - set(photos["sha256"]):
        problems.append(f"{len(missing)} photos of the split are not here, {min(missing)[:12]} first")
    active = active[~active["sha256"].isin(missing)]

    side = active.set_index("sha256")["split"]
    listings = photos.set_index("sha256")["listings"].loc[side.index].explode().dropna()
    for what, names in (("group", active.set_index("sha256")["group"]), ("listing", listings)):
        for name, on in side[names.index].groupby(names.to_numpy()):
            if on.nunique() > 1:
                problems.append(f"{what} {name!r} lies in {' and '.join(sorted(set(on)))}")
    # All photos, as in the curation: with more than a few thousand, which pairs are found depends on the others.
    fingerprints, unreadable = measure_photos(study.data, photos, show_progress)
    problems += [f"{sha[:12]} is unreadable: {reason}" for sha, reason in unreadable.items() if sha in side.index]
    readable = photos[~photos["sha256"].isin(unreadable)].reset_index(drop=True)
    related = relate_photos(study.data, readable, fingerprints, show_progress)
    related = related[related["first"].isin(side.index) & related["second"].isin(side.index)]
    crossing = related[related["first"].map(side).to_numpy() != related["second"].map(side).to_numpy()]
    problems += [
        f"{pair.first[:12]} ({side[pair.first]}) and {pair.second[:12]} ({side[pair.second]}) cross: {pair.relation}"
        for pair in crossing.itertuples()
    ]
    curation = read_curation(study).set_index("sha256")
    counts = pd.crosstab(splits["label"].replace("", "(sealed or none)"), splits["split"])
    kept = curation[(curation["verdict"] == "keep") & curation["label"].isin(set(splits["label"]) - {""})]
    if absent := sorted(set(kept.index) - set(splits["sha256"])):
        notes.append(f"{len(absent)} kept photos of these classes are not in the split, {absent[0][:12]} first; split")
    _check_labels(study, active, curation, problems, notes)
    groups = active["group"].nunique()
    return SplitReport(split_version(study), counts, groups, len(related), tuple(problems), tuple(notes))


def _check_labels(study: Study, active: pd.DataFrame, curation: pd.DataFrame, problems: list, notes: list) -> None:
    """Add problems and notes about the labels of a split, without naming any label."""
    hidden = active["split"].isin(SEALED)
    if open_labels := (active.loc[hidden, "label"] != "").sum():
        problems.append(f"{open_labels} sealed labels stand open in splits.csv")
    sealed = set(read_table(study.sealed, ["sha256"])["sha256"]) if study.sealed.exists() else set()
    if odd := sealed ^ set(active.loc[hidden, "sha256"]):
        problems.append(f"{study.sealed} differs from the sealed rows in {len(odd)} photos; split again")
    faults = find_label_faults(study, curation["label"])
    problems += [f"{fault}; restore {study.sealed}, or correct the curation" for fault in faults]
    labels = active.loc[active["label"] != ""].set_index("sha256")["label"]
    if relabelled := sorted(labels.index[labels != curation["label"].reindex(labels.index)]):
        problems.append(f"{len(relabelled)} labels differ from curation.csv, {relabelled[0][:12]} first; split again")
    now = curation.reindex(active["sha256"])
    # A larger copy that came later does not push out the older one.
    left = (now["verdict"] == "reject") & (now["reason"].fillna("").map(kind_of) != "duplicate")
    rejected, frozen = now.index[left], study.runs_table.exists() & active["split"].isin(SEALED).to_numpy()[left]
    if (~frozen).any():
        first = rejected[~frozen].min()[:12]
        problems.append(f"{(~frozen).sum()} photos were rejected by the curation since, {first} first; split again")
    if frozen.any():
        notes.append(f"{frozen.sum()} sealed photos were rejected by the curation since; they stay, as runs exist")
