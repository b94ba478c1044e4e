"""Is one verdict on all photos of a car better than the best single photo? Measured on a study's validation listings.

    python benchmarks/listings.py BUNDLE --study NAME [--data DIR] [--others FOLDER]

All photos of a validation listing count, as a site has them, also those that curation rejected. Where photos carry no
listing, those of one group of the split are one car. Correlation and temperature are fitted on one half of the listings
and judged on the other, and the other way round. `--others`: a folder of folders, each with photos of one car of
another model, for which no answer is right. Needs the extras serve and export.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from carspotter.models.history import halves
from carspotter.paths import Study
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos
from carspotter.progress import progress_bar
from carspotter_check.listing import combine, read_listings
from carspotter_check.photo_check import PhotoCheck
from carspotter_check.rejection import calibrate, pool

CORRELATIONS = np.linspace(0, 1, 21)
TEMPERATURES = np.geomspace(0.2, 5, 33)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--study", required=True)
    parser.add_argument("--data")
    parser.add_argument("--others", type=Path)
    options = parser.parse_args()
    study, check = Study.open(options.study, options.data), PhotoCheck.load(options.bundle)
    photos = listings_of(study, check.class_names)
    with progress_bar(len(photos), "check", "photos") as progress:

        def judge(path: Path):
            progress.update(1)
            return check.check(path)

        photos["answer"] = [judge(study.data / path) for path in photos["path"]]
    cars = [
        (check.class_names.index(label), group, car["answer"].tolist())
        for (_, label, group), car in photos.groupby(["listing", "label", "group"])
    ]
    report(check, cars)
    if options.others:
        verdicts = [
            combine(check, [check.check(photo) for photo in files]).verdict
            for _, files, _ in read_listings(options.others)
        ]
        print(f"other models: {len(verdicts)} listings, {np.mean(np.array(verdicts) != 'named'):.2f} not named")


def listings_of(study: Study, class_names: list[str]):
    """Return the photos of validation listings: sha256, path, label, listing, group."""
    splits = read_splits(study)
    splits = splits[splits["split"] == "validation"].set_index("sha256")
    table = read_photos(study.data)
    table["listing"] = [listings[0] if listings else "" for listings in table["listings"]]
    table = table.join(splits["group"], on="sha256")
    in_validation = table["group"].notna()
    alone = in_validation & (table["listing"] == "")
    table.loc[alone, "listing"] = "group " + table.loc[alone, "group"]
    groups = table[in_validation].groupby("listing")["group"].first()
    elsewhere = table["sha256"].isin(read_splits(study)["sha256"]) & ~in_validation
    table = table[table["listing"].isin(groups.index) & table["label"].isin(class_names) & ~elsewhere]
    return table.assign(group=table["listing"].map(groups))


def report(check: PhotoCheck, cars: list) -> None:
    counts = np.array([len(answers) for _, _, answers in cars])
    print(f"{len(cars)} listings, {counts.sum()} photos, {(counts > 1).sum()} listings with two photos or more")
    kept = []
    for label, group, answers in cars:
        seen = [one for one in answers if one.probabilities and one.decided_by == "confidence"]
        if seen:
            kept.append((label, group, np.array([list(one.probabilities.values()) for one in seen])))
    labels, groups = np.array([label for label, _, _ in kept]), np.array([group for _, group, _ in kept])
    first = halves(groups)

    def best(photos: np.ndarray, temperature: float) -> np.ndarray:
        return calibrate(photos[[photos.max(axis=1).argmax()]], temperature)[0]

    def fitted(how, settings, learn: np.ndarray) -> tuple[float, np.ndarray]:
        losses = [
            np.mean([-np.log(max(how(photos, setting)[label], 1e-6)) for label, _, photos in pick(kept, learn)])
            for setting in settings
        ]
        setting = settings[int(np.argmin(losses))]
        return setting, np.array([how(photos, setting) for _, _, photos in pick(kept, ~learn)])

    for name, how, settings in (("best single photo", best, TEMPERATURES), ("all photos pooled", pool, CORRELATIONS)):
        shares, chosen = np.zeros((len(kept), len(check.class_names))), []
        for learn in (first, ~first):
            setting, shares[~learn] = fitted(how, settings, learn)
            chosen.append(f"{setting:.2f}")
        wrong = shares.argmax(axis=1) != labels
        surest = np.argsort(-shares.max(axis=1), kind="stable")
        until = int(np.argmax(wrong[surest])) if wrong.any() else len(kept)
        area = np.mean(np.cumsum(wrong[surest]) / np.arange(1, len(kept) + 1))
        loss = np.mean(-np.log(np.maximum(shares[np.arange(len(kept)), labels], 1e-6)))
        print(
            f"{name}: {wrong.sum()} of {len(kept)} wrong; surest first, {until / len(cars):.3f} of all listings are "
            f"answered before one is wrong; area under risk-coverage {area:.4f}; log loss {loss:.3f} "
            f"(fitted: {', '.join(chosen)})"
        )
    for claimed in ("truth", "falsehood"):
        names, verdicts = check.class_names, []
        for label, _, answers in cars:
            claim = names[label] if claimed == "truth" else names[(label + 1) % len(names)]
            verdicts.append(combine(check, answers, claim).verdict)
        found, numbers = np.unique(verdicts, return_counts=True)
        shown = ", ".join(f"{verdict} {number}" for verdict, number in zip(found, numbers, strict=True))
        print(f"claim is a {claimed}, the bundle's own thresholds (fitted on these listings): {shown}")


def pick(kept: list, mask: np.ndarray) -> list:
    return [one for one, chosen in zip(kept, mask, strict=True) if chosen]


if __name__ == "__main__":
    main()
