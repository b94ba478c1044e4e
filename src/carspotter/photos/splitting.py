"""Stratified, grouped, deterministic split.

A group is what must stay on one side: photos joined by a listing or by a car, as `duplicates` tells it from pixels. The
split depends on the photos and the previous split alone: photos are ordered by hashes.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from carspotter.paths import Study
from carspotter.photos.grouping import Groups, pick_sizes
from carspotter.photos.table import kind_of, read_curation, read_photos, read_removed, read_table, write_table

SHARES = {"test": 0.2, "validation": 0.2}  # in the order they are filled; training takes the rest
STUDIED = ("train", "validation", "test")
SEALED = ("test", "shifted")
COLUMNS = ["sha256", "label", "group", "split"]
ATTEMPTS = 50  # at exact shares: the first side may take what the other needs, then other groups are asked first
FEW, UNBALANCED = 5, 10  # photos of a class on a side, and how often the smallest fits into the largest class


@dataclass(frozen=True)
class NewSplit:
    """Photos by label and split, and notes about what looks odd."""

    counts: pd.DataFrame
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.counts.to_string(), *(f"NOTE {note}" for note in self.notes)])


def split_photos(
    photos: pd.DataFrame,
    curation: pd.DataFrame,
    classes: Iterable[str] | None = None,
    previous: pd.DataFrame | None = None,
    shifted_sites: Iterable[str] = (),
    forgotten: Iterable[str] = (),
    freeze_test: bool = False,
) -> pd.DataFrame:
    """Split the kept photos 60/20/20: sha256, label, group, split, sorted by sha256; no label is blank here.

    `photos` as from `read_photos`, `curation` as from `curate`; `classes` default to those of `previous`, else to all
    labels. split is train, validation, test, shifted (photos of `shifted_sites` alone) or excluded. Photos of
    `previous` keep their side, or are excluded when curation rejects them, when forgotten, or when most photos of their
    listing or car are on another side; with `freeze_test`, test photos stay whatever curation says. A new photo joins
    the side of its group, and is excluded if that would link two sides.
    """
    previous = pd.DataFrame(columns=COLUMNS) if previous is None else previous
    table = photos[["sha256", "listings", "sites"]].merge(curation.drop(columns="score"), on="sha256")
    table = table.sort_values("sha256").set_index("sha256", drop=False)
    if lost := set(previous["sha256"]) - set(table.index) - set(forgotten):
        if len(lost) == len(previous):
            own = "_".join(sorted(set(photos["label"].dropna()))[:3])
            raise ValueError(
                f"this study is a split of other photos, none of which is here, such as one that came with the "
                f"repository; name one for your own photos, as in --study my_{own.replace('-', '_')}"
            )
        raise ValueError(
            f"{len(lost)} photos of the previous split are not here, {min(lost)[:12]} first; scrape or import them "
            f"again and curate, or use another --study"
        )
    classes = _choose_classes(table, classes, previous)
    cars = table["car"].map(lambda car: (f"car:{car}",) if car else ())
    table["keys"] = table["listings"] + cars
    table["usable"] = (table["verdict"] == "keep") & table["label"].isin(classes)

    groups = Groups()
    split, label = _keep_sides(groups, table, previous, classes, freeze_test)
    settled = set(table.loc[[sha for sha, side in split.items() if side != "excluded"], "duplicate_cluster"]) - {""}
    # A surplus duplicate takes no part, but shows that its listing and that of the kept copy offer the same car.
    copies = (table["reason"].map(kind_of) == "duplicate") | (table["reason"] == "reviewed: duplicate")
    for photo in table[copies].itertuples():
        if photo.keys and photo.sha256 not in split and len(groups.sides_of(photo.keys)) < 2:
            groups.join(photo.keys)

    known_sites = set().union(*table["sites"])
    if unknown := set(shifted_sites) - known_sites:
        raise ValueError(f"no photos of site {min(unknown)!r}; there are {', '.join(sorted(known_sites))}")
    # A site once set apart stays apart; a photo that both sites show says nothing about the others of either.
    shifted = [sha for sha, side in split.items() if side == "shifted" and len(table.at[sha, "sites"]) == 1]
    away_sites = set(shifted_sites).union(*table.loc[shifted, "sites"])
    new = table[table["usable"] & ~table.index.isin(split)]
    is_away = new["sites"].map(away_sites.issuperset)
    for part, side in ((new[~is_away], None), (new[is_away], "shifted")):
        free = []
        for photo in part.itertuples():
            label[photo.sha256] = photo.label
            sides = groups.sides_of(photo.keys)
            # A shifted photo that also hangs on the study's own would measure memory, not the shift.
            if len(sides) > 1 or sides and ("shifted" in sides) != bool(side) or photo.duplicate_cluster in settled:
                split[photo.sha256] = "excluded"
            else:
                groups.join((photo.sha256, *photo.keys), side=side)
                free.append(photo.sha256)
        if side:
            split |= dict.fromkeys(free, side)
        else:
            _fill_sides(groups, free, split, label)

    names = _name_groups(groups, split, previous)
    rows = [(sha, label[sha], names.get(sha, ""), split[sha]) for sha in sorted(split)]
    result = pd.DataFrame(rows, columns=COLUMNS)
    _check_sides(result, classes)
    return result


def split_study(
    study: Study,
    classes: Iterable[str] | None = None,
    shifted_sites: Iterable[str] = (),
    previous: pd.DataFrame | None = None,
) -> NewSplit:
    """Split the study's photos and write `splits.csv`, with the labels of test and shifted rows sealed apart.

    `previous`: a split to go on from, by default the study's own. Test photos are frozen once the study has runs.
    """
    photos, curation = read_photos(study.data), read_curation(study)
    if uncurated := set(photos["sha256"]) - set(curation["sha256"]):
        raise ValueError(f"{study.curation}: {len(uncurated)} photos are not curated yet; run `curate` first")
    try:
        splits = split_photos(
            photos,
            curation,
            classes,
            _read_previous(study) if previous is None else previous,
            shifted_sites,
            forgotten=read_removed(study.data),
            freeze_test=study.runs_table.exists(),
        )
    except ValueError as error:
        raise ValueError(f"{study.folder}: {error}") from None
    notes = list(_question(splits))
    if previous is None and is_changed(study):
        notes.insert(
            0,
            f"{study.splits.name} had changed since `split` last finished, by hand or because `split` was stopped "
            f"while it wrote; photos stayed on the sides that it names",
        )
    # The labels first: a kill between the two writes leaves the old split, whose labels are all still here.
    write_table(study.sealed, splits.loc[splits["split"].isin(SEALED), ["sha256", "label"]])
    open_rows = splits["split"].isin(("train", "validation"))
    write_table(study.splits, splits.assign(label=splits["label"].where(open_rows, "")))
    study.splits_checksum.write_text(checksum(study), encoding="utf-8")
    return NewSplit(pd.crosstab(splits["label"], splits["split"]), tuple(notes))


def checksum(study: Study) -> str:
    """Return the content of `splits.sha256`, by which a manual change of `splits.csv` is noticed."""
    content = study.splits.read_bytes().replace(b"\r\n", b"\n")  # git may have turned the line ends
    return f"{hashlib.sha256(content).hexdigest()}  {study.splits.name}\n"


def is_changed(study: Study) -> bool:
    """Return whether `splits.csv` is not the file that `splits.sha256` names: edited, or `split` was killed."""
    if not (study.splits.exists() and study.splits_checksum.exists()):
        return False
    return study.splits_checksum.read_text(encoding="utf-8") != checksum(study)


def _question(splits: pd.DataFrame) -> Iterator[str]:
    """Yield notes about a split: shares far from 20 %, small classes, and classes far smaller than another."""
    studied = splits[splits["split"].isin(STUDIED)]
    counts = pd.crosstab(studied["label"], studied["split"]).reindex(columns=list(STUDIED), fill_value=0)
    for name, row in counts.iterrows():
        for side, share in SHARES.items():
            if row[side] != round(share * row.sum()):
                largest = studied[studied["label"] == name].groupby("group").size().max()
                yield (
                    f"{side} holds {row[side]} of {row.sum()} photos of {name}, not {round(share * row.sum())}: its "
                    f"groups, the largest of {largest} photos, do not add up to that"
                )
        if row.min() < FEW:
            yield f"{name} has {row.min()} photos in {row.idxmin()}: too few to measure anything; collect more cars"
    total = counts.sum(axis=1)
    if total.max() > UNBALANCED * total.min():
        yield (
            f"{total.idxmax()} has {total.max()} photos and {total.idxmin()} {total.min()}: a model that always says "
            f"{total.idxmax()} is right in {total.max() / total.sum():.0%}; look at each class, or collect more"
        )


def read_splits(study: Study) -> pd.DataFrame:
    """Read `splits.csv`: sha256, label, group, split, all text; the label is "" but for train and validation."""
    if not study.splits.exists():
        raise FileNotFoundError(f"{study.splits}: no split yet; run `python -m carspotter split --study {study.name}`")
    return read_table(study.splits, COLUMNS)


def split_version(study: Study) -> str:
    """Return the SHA-256 of `splits.csv` without shifted and excluded photos, which no run has seen."""
    splits = read_splits(study)
    studied = splits.loc[splits["split"].isin(STUDIED), COLUMNS]
    return hashlib.sha256(studied.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _choose_classes(table: pd.DataFrame, classes: Iterable[str] | None, previous: pd.DataFrame) -> list[str]:
    before = sorted(set(previous.loc[previous["split"].isin(STUDIED), "label"]) - {""})
    kept = table.loc[table["verdict"] == "keep", "label"].value_counts()
    kept = kept[kept.index != ""]
    classes = sorted(set(classes)) if classes else before or sorted(kept.index)
    if before and classes != before:
        raise ValueError(f"this study is split for {', '.join(before)}; take another --study for {', '.join(classes)}")
    if len(classes) < 2:
        raise ValueError(
            f"a study needs two classes or more, found {', '.join(classes) or 'none'}; name another with --classes, or "
            f"collect photos of another model"
        )
    for name in classes:
        if not kept.get(name):
            there = ", ".join(f"{label} ({count})" for label, count in kept.items()) or "none at all"
            raise ValueError(f"class {name!r} has no kept photos; kept classes: {there}")
    return classes


def _keep_sides(
    groups: Groups, table: pd.DataFrame, previous: pd.DataFrame, classes: list[str], freeze_test: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Return split and label of the photos of the previous split, excluding those that may no longer take part."""
    # An old photo may turn up again in a listing of another side, or in a car that is known by now. The side of a
    # listing or car is that of most of its photos.
    sides = defaultdict(Counter)
    for was in previous[(previous["split"] != "excluded") & previous["sha256"].isin(table.index)].itertuples():
        for key in table.at[was.sha256, "keys"]:
            sides[key][was.split] += 1
    home = {
        key: max(on, key=lambda side: (freeze_test and side in SEALED, on[side], (*STUDIED, "shifted").index(side)))
        for key, on in sides.items()
    }

    split, label = {}, {}
    for was in previous.sort_values("sha256").itertuples():
        now = table.loc[was.sha256] if was.sha256 in table.index else None
        stays = was.split != "excluded" and now is not None
        stays = stays and all(home.get(key, was.split) == was.split for key in now["keys"])
        frozen = freeze_test and was.split in SEALED
        if stays and not frozen and not now["usable"]:
            # A larger copy of the same shot that came later does not push the older one out.
            stays = kind_of(now["reason"]) == "duplicate" and now["label"] in classes
        # The label of a sealed photo may be missing in `previous`, on a machine that never saw the sealed file.
        label[was.sha256] = was.label if now is None or (frozen and was.label) else now["label"]
        split[was.sha256] = was.split if stays else "excluded"
        if stays:
            groups.join((f"group:{was.group}", was.sha256, *now["keys"]), side=was.split)
    return split, label


def _fill_sides(groups: Groups, free: list[str], split: dict[str, str], label: dict[str, str]) -> None:
    """Put each free photo on the side of its group; groups without one fill the sides up to their shares."""
    waiting = defaultdict(list)
    for sha in free:
        if side := groups.side_of(sha):
            split[sha] = side
        else:
            waiting[groups.root(sha)].append(sha)
    # By a hash of the name: a plain name would favour large groups, whose lowest hash is lower.
    order = sorted(waiting, key=lambda root: hashlib.sha256(min(waiting[root]).encode()).hexdigest())
    sizes = {root: Counter(label[sha] for sha in waiting[root]) for root in order}

    placed = Counter((side, label[sha]) for sha, side in split.items() if side in STUDIED)
    total = Counter(label[sha] for sha, side in split.items() if side in STUDIED)
    total.update(label[sha] for root in order for sha in waiting[root])
    need = {}
    for name, count in total.items():
        wanted = {side: round(share * count) for side, share in SHARES.items()}
        wanted["train"] = count - sum(wanted.values())
        need |= {(side, name): wanted[side] - placed[side, name] for side in STUDIED}

    chosen: dict[str, str] = {}
    # Groups of several classes first, each to the side that lacks most: no exact sum can be promised for them.
    for root in (root for root in order if len(sizes[root]) > 1):
        lack = {side: min(need[side, name] / count for name, count in sizes[root].items()) for side in STUDIED}
        side = max(STUDIED, key=lack.__getitem__)
        chosen[root] = side
        for name, count in sizes[root].items():
            need[side, name] -= count
    for name in sorted(total):
        every = [root for root in order if root not in chosen and name in sizes[root]]
        best = {}
        for start in range(min(len(every), ATTEMPTS)):
            picked = _pick_sides(every[start:] + every[:start], name, sizes, need, placed)
            best = best or picked
            held = {side: sum(sizes[root][name] for root in picked if picked[root] == side) for side in SHARES}
            if all(held[side] == need[side, name] for side in SHARES):
                best = picked
                break
        chosen |= best
    for root, side in chosen.items():
        groups.join((root,), side=side)
        split |= dict.fromkeys(waiting[root], side)


def _pick_sides(roots: list[str], name: str, sizes: dict, need: dict, placed: Counter) -> dict[str, str]:
    """Put groups of the class `name` on sides, each side as near as possible to its need; the rest trains."""
    sides = {}
    for side in SHARES:
        # One group at least, however large: a class must show on every side.
        at_least = int(not placed[side, name])
        picked = pick_sizes([sizes[root][name] for root in roots], need[side, name], at_least)
        if at_least:  # many small groups must not leave a side without any
            picked = picked[: max(1, len(roots) - (2 if side == "test" else 1))]
        sides |= {roots[position]: side for position in picked}
        roots = [root for root in roots if root not in sides]
    return sides | dict.fromkeys(roots, "train")


def _name_groups(groups: Groups, split: dict[str, str], previous: pd.DataFrame) -> dict[str, str]:
    """Name each group by its lowest hash; one that was in the previous split keeps its name, merged ones the lower."""
    members = defaultdict(list)
    for sha, side in split.items():
        if side != "excluded":
            members[groups.root(sha)].append(sha)
    before = dict(zip(previous["sha256"], previous["group"], strict=True))
    names = {}
    for shas in members.values():
        inherited = [before[sha] for sha in shas if before.get(sha)]
        names |= dict.fromkeys(shas, min(inherited) if inherited else min(shas)[:12])
    return names


def _check_sides(splits: pd.DataFrame, classes: list[str]) -> None:
    studied = splits[splits["split"].isin(STUDIED)]
    for name in classes:
        rows = studied[studied["label"] == name]
        sizes = rows.groupby("group").size()
        if absent := [side for side in STUDIED if side not in set(rows["split"])]:
            raise ValueError(
                f"class {name!r} has no {absent[0]} photos: its {len(rows)} photos form {len(sizes)} groups, the "
                f"largest of {sizes.max() if len(sizes) else 0}; photos of one listing or near-duplicates stay "
                f"together, so collect photos of more cars (three groups at the very least)"
            )


def _read_previous(study: Study) -> pd.DataFrame | None:
    """Read the study's split with the labels of its sealed rows, as far as they are on this machine."""
    if not study.splits.exists():
        return None
    splits = read_splits(study)
    if study.sealed.exists():
        sealed = read_table(study.sealed, ["sha256", "label"]).set_index("sha256")["label"]
        splits["label"] = splits["label"].where(splits["label"] != "", splits["sha256"].map(sealed).fillna(""))
    return splits
